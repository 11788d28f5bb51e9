"""Every setting of Punctual, read from the environment or from `.env` beside manage.py, and typed here, nowhere else.

Its one rule: a value that cannot be read stops the process with the variable's name. Any variable may be given as
NAME_FILE instead, the path of a file that holds the value, so that secrets need not stand in the environment.
With DEBUG off, nothing is guessed: SECRET_KEY, ALLOWED_HOSTS, DATABASE_URL and REDIS_URL must be there, or
EMBEDDED=true must ask for SQLite and a Valkey server of our own in VAR_DIR.
"""

import os
import re
from collections.abc import Callable
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit
from zoneinfo import ZoneInfo

import django_stubs_ext
import environ
from celery.app.backends import BACKEND_ALIASES
from django.core.exceptions import ImproperlyConfigured

from jobs.local import embedded

django_stubs_ext.monkeypatch()  # lets Django's generic classes name their model, which the type checker needs

BASE_DIR = Path(__file__).resolve().parent.parent
environ.Env.read_env(os.environ.get("ENV_FILE", BASE_DIR / ".env"))
env = environ.FileAwareEnv().ENVIRON
required = environ.Env.NOTSET


def truth(text: str) -> bool:
    """Stricter than django-environ, to which every word it does not know is false."""
    if text.lower() not in {"true", "yes", "on", "1", "false", "no", "off", "0"}:
        raise ValueError
    return text.lower() in {"true", "yes", "on", "1"}


def zone(text: str) -> str:
    return ZoneInfo(text).key


def level(text: str) -> str:
    return {name: name for name in ("DEBUG", "INFO", "WARNING", "ERROR")}[text.upper()]


def positive(text: str) -> float:
    if not 0 < float(text) < float("inf"):
        raise ValueError
    return float(text)


def count(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def site(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0:
        raise ValueError
    return text.rstrip("/")


def email_url(text: str) -> dict[str, Any]:
    """Stricter than django-environ, which ignores options it does not know: mail meant for TLS would go in clear."""
    config: dict[str, Any] = environ.Env.email_url_config(text)
    if config.pop("OPTIONS", None):
        raise ValueError
    return config


def secret(text: str) -> str:
    """Long enough to be masked wherever it stands, and text that can be sent."""
    if len(text.encode()) < 8:
        raise ValueError
    return text


def result_backend(text: str) -> str:
    """What Celery has a name for, or a class of a module that is there."""
    name = text.partition("://")[0].partition("+")[0]
    known = {*BACKEND_ALIASES, *entry_points(group="celery.result_backends").names}
    module, colon, _ = name.partition(":")
    if name not in known and not (colon and find_spec(module)):
        raise ValueError
    return text


# How each kind of value is read, and what it must be. Lower case, for Django takes capitals for a setting.
kinds: dict[str, tuple[Callable[[str], Any], str]] = {
    "str": (str, "text"),
    "bool": (truth, "true or false"),
    "count": (count, "a whole number above 0"),
    "float": (positive, "a number above 0"),
    "list": (words, "words with commas between them"),
    "site": (site, "the address of a site, such as https://punctual.example"),
    "zone": (zone, "an IANA time zone such as Europe/Berlin"),
    "level": (level, "DEBUG, INFO, WARNING or ERROR"),
    "secret": (secret, "at least 8 characters of UTF-8"),
    "result_backend": (result_backend, "django-db, redis://host:6379/0 or another backend that Celery knows"),
    "email_url": (email_url, "like smtp+tls://user:password@host:587 (smtp+ssl://, smtp://) or consolemail://"),
}


def read(kind: str, name: str, default: Any = required) -> Any:
    """The value of variable `name` as one of `kinds`, or its default; empty is unset. The value is never echoed."""
    function, look = kinds[kind]
    try:
        text = env.get(name, "").strip()  # the value in a file may end in a newline
    except (OSError, UnicodeDecodeError):
        raise ImproperlyConfigured(f"{name}_FILE names a file that cannot be read: mend its path or rights.") from None
    if not text and default is required:
        raise ImproperlyConfigured(f"{name} is not set. Set it (or {name}_FILE), or DEBUG=true to develop.")
    try:
        return function(text) if text else default
    except (ValueError, LookupError, OSError, ImportError, ImproperlyConfigured):
        raise ImproperlyConfigured(f"{name} cannot be read: it must be {look}.") from None


# --- What this process is -------------------------------------------------------------------------------------------

# Development mode: error pages with details, a generated SECRET_KEY, embedded parts. Never on a public address.
DEBUG: bool = read("bool", "DEBUG", False)
# Whether SQLite and an own Valkey server in VAR_DIR may stand in for DATABASE_URL and REDIS_URL.
EMBEDDED: bool = read("bool", "EMBEDDED", DEBUG)
# Where the embedded parts keep their state, and `manage.py up` its logs.
VAR_DIR = Path(read("str", "VAR_DIR", str(BASE_DIR / "var"))).absolute()
# Signs sessions and tokens: at least 50 random characters, the same for every process.
SECRET_KEY: str = read("str", "SECRET_KEY", "" if DEBUG else required) or embedded.secret_key(VAR_DIR)
# Host names the web process answers to, separated by commas.
ALLOWED_HOSTS: list[str] = read("list", "ALLOWED_HOSTS", ["localhost", "127.0.0.1", "[::1]"] if DEBUG else required)
# The address under which people and jobs reach the web process.
SITE_URL: str = read("site", "SITE_URL", "http://127.0.0.1:8000")
# Whether jobs may call private addresses, such as services of your own network. This site itself is always allowed.
HTTP_ALLOW_PRIVATE: bool = read("bool", "HTTP_ALLOW_PRIVATE", False)


def _job_secrets() -> dict[str, str]:
    prefix, found = "JOB_SECRET_", {}
    for variable in filter(lambda name: name.startswith(prefix), os.environ):
        name = variable.removeprefix(prefix).removesuffix("_FILE")
        if not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name):
            raise ImproperlyConfigured(f"{variable} cannot be named by a job: write a word after {prefix}.")
        if value := read("secret", f"{prefix}{name}", ""):
            found[name] = value
    return found


# What arguments of jobs may name as secret:NAME: the values of all variables JOB_SECRET_NAME.
JOB_SECRETS: dict[str, str] = _job_secrets()
# Management commands that `jobs.run_command` may run: any that people with the right to edit schedules may run.
RUN_COMMANDS: list[str] = read("list", "RUN_COMMANDS", ["check", "clearsessions"])
# Where jobs and uploads keep their files; every process must reach it.
MEDIA_ROOT = Path(read("str", "FILES_DIR", str(VAR_DIR / "files"))).absolute()
FILE_UPLOAD_PERMISSIONS, FILE_UPLOAD_DIRECTORY_PERMISSIONS = 0o600, 0o700  # backups are among them

# --- Database -------------------------------------------------------------------------------------------------------

SQLITE_OPTIONS = {
    "transaction_mode": "IMMEDIATE",  # a writer waits for its turn at BEGIN instead of failing at its first write
    "timeout": 20,  # seconds
    "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
}
POSTGRESQL_OPTIONS = {
    "connect_timeout": 5,  # seconds
    # A server that vanished without a word (its machine died, a firewall forgot the connection) is noticed in half a
    # minute. The kernel alone would let beat and workers wait for fifteen minutes, or for two hours.
    "keepalives_idle": 15,  # seconds
    "keepalives_interval": 5,  # seconds
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # milliseconds
}


def _database() -> dict[str, Any]:
    default = f"sqlite:///{quote(str(VAR_DIR))}/punctual.sqlite3" if EMBEDDED else required
    url: str = read("str", "DATABASE_URL", default)
    scheme = url.split("://", 1)[0]
    if scheme not in {"postgres", "postgresql", "sqlite"}:
        raise ImproperlyConfigured(
            "DATABASE_URL cannot be read: it must look like postgres://user:password@host:5432/name or "
            "sqlite:////absolute/path.sqlite3."
        )
    # In memory, each process would have its own: good enough for commands that look at no data.
    if scheme == "sqlite" and not url.startswith("sqlite:////") and url != "sqlite://:memory:":
        raise ImproperlyConfigured(
            "DATABASE_URL needs an absolute path, after four slashes: sqlite:////srv/name.sqlite3."
        )
    try:
        config: dict[str, Any] = environ.Env.db_url_config(url)
    except ValueError:
        raise ImproperlyConfigured(
            "DATABASE_URL cannot be read: check its port, and write / : @ # ? in a password as %2F %3A %40 %23 %3F."
        ) from None
    if not config["NAME"]:
        raise ImproperlyConfigured("DATABASE_URL names no database: add /name at its end.")
    options = SQLITE_OPTIONS if scheme == "sqlite" else POSTGRESQL_OPTIONS
    config["OPTIONS"] = {**options, **config.get("OPTIONS", {})}
    return {"CONN_HEALTH_CHECKS": True, "CONN_MAX_AGE": 0 if scheme == "sqlite" else 60, **config}  # seconds


# postgres://user:password@host:5432/name or sqlite:////absolute/path.sqlite3
DATABASES = {"default": _database()}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# --- Broker and results ---------------------------------------------------------------------------------------------


def _is_redis(url: str) -> bool:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        database = parse_qs(parts.query).get("db", ["0"])[0]
        return not parts.hostname and len(parts.path) > 1 and database.isdecimal()
    database = parts.path[1:] or "0"
    return parts.scheme in {"redis", "rediss"} and bool(parts.hostname) and parts.port != 0 and database.isdecimal()


def _checked(name: str, url: str) -> str:
    try:
        usable = _is_redis(url)
    except ValueError:
        usable = False
    if not usable:
        raise ImproperlyConfigured(
            f"{name} cannot be read: it must look like redis://:password@host:6379/0, rediss://... or "
            "unix:///path/to/socket?db=0."
        )
    return url


# redis://[:password@]host:6379/0, rediss:// (TLS) or unix:///path/to/socket?db=0
REDIS_URL = _checked("REDIS_URL", read("str", "REDIS_URL", embedded.redis_url(VAR_DIR) if EMBEDDED else required))

# The broker, where it is not REDIS_URL: any address Celery knows (redis://, sentinel://, amqp://, sqs://).
CELERY_BROKER_URL: str = read("str", "BROKER_URL", embedded.broker_url(REDIS_URL))
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
# A broker that answers with an error (out of memory, a replica after a failover, no rights) must not end a worker.
CELERY_BROKER_CHANNEL_ERROR_RETRY = True
# A frozen or absent broker must not hang beat or web: nothing waits longer than this, in seconds, or tries twice.
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "socket_connect_timeout": 2,
    "socket_timeout": 5,
    "health_check_interval": 10,
    "max_retries": 0,
}

# Results are the exception: a task opts in with ignore_result=False, and its result lives for RESULT_EXPIRES seconds.
CELERY_RESULT_BACKEND: str = read("result_backend", "RESULT_BACKEND", "django-db")
if CELERY_RESULT_BACKEND == "django-db":
    CELERY_RESULT_BACKEND = "jobs.worker.results:Backend"  # which masks secrets
CELERY_TASK_IGNORE_RESULT = True
CELERY_RESULT_EXTENDED = True
CELERY_RESULT_EXPIRES: int = read("count", "RESULT_EXPIRES", 3600)

CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TASK_SERIALIZER = "json"
CELERY_RESULT_SERIALIZER = "json"
CELERY_BEAT_SCHEDULER = "jobs.beat:Scheduler"
CELERY_WORKER_CONSUMER = "jobs.worker.consumer:Consumer"
# The ledger, not the broker, remembers what a worker holds: acknowledge early, fetch little.
CELERY_TASK_ACKS_LATE = False
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_REDIRECT_STDOUTS = False
# Celery closes a worker's database connections before and after each task, unless it may keep them for so many tasks;
# one that broke meanwhile is replaced when the next run starts.
CELERY_DB_REUSE_MAX = 1000

# How long, in seconds, a run stays with a process that gives no sign of life. A lost run is found within this and 5 s.
LEASE_SECONDS: float = read("float", "LEASE_SECONDS", 60.0)

# How long, in seconds, a run that was cancelled has to clean up before its process is killed (in prefork workers).
CANCEL_GRACE_SECONDS: float = read("float", "CANCEL_GRACE_SECONDS", 10.0)

# Which version of your code this is, a commit or a tag: shown beside each beat and worker.
CODE_VERSION: str = read("str", "CODE_VERSION", "")

# How long, in seconds, a step of a run (a task of its chain, group or chord) may wait in the broker before it counts as
# lost, and its run with it. Longer than the longest backlog of the queues that steps go to.
STEP_PATIENCE_SECONDS: float = read("float", "STEP_PATIENCE_SECONDS", 3600.0)

# --- Cache ----------------------------------------------------------------------------------------------------------

# Where values are remembered for a while by every process: as REDIS_URL, whose database it may share with the broker.
CACHE_URL = _checked("CACHE_URL", read("str", "CACHE_URL", REDIS_URL))
CACHES = {
    "default": {
        "BACKEND": "jobs.cache.backend.Cache",
        "LOCATION": [CACHE_URL],  # a list, or Django would cut the address at its commas
        "KEY_PREFIX": "punctual",
    }
}

# --- Time and language ----------------------------------------------------------------------------------------------

# The zone of the admin, and of crontabs that name none: an IANA name such as Europe/Berlin. Stored times are UTC.
TIME_ZONE: str = read("zone", "TIME_ZONE", "UTC")
USE_TZ = True
CELERY_TIMEZONE = TIME_ZONE
LANGUAGE_CODE = "en"

# --- Mail -----------------------------------------------------------------------------------------------------------

# smtp+tls://user:password@host:587, or smtp+ssl:// or smtp://. With DEBUG on, the default prints mail instead.
_mail: dict[str, Any] = read("email_url", "EMAIL_URL", email_url("consolemail://" if DEBUG else "smtp://localhost:25"))
EMAIL_BACKEND = _mail["EMAIL_BACKEND"]
EMAIL_HOST, EMAIL_PORT = _mail["EMAIL_HOST"], _mail["EMAIL_PORT"]
EMAIL_HOST_USER, EMAIL_HOST_PASSWORD = _mail["EMAIL_HOST_USER"], _mail["EMAIL_HOST_PASSWORD"]
EMAIL_USE_TLS, EMAIL_USE_SSL = _mail.get("EMAIL_USE_TLS", False), _mail.get("EMAIL_USE_SSL", False)
EMAIL_FILE_PATH = _mail["EMAIL_FILE_PATH"]
EMAIL_TIMEOUT = 30  # seconds that a mail server may take for an answer
DEFAULT_FROM_EMAIL: str = read("str", "DEFAULT_FROM_EMAIL", "punctual@localhost")

# --- The web process ------------------------------------------------------------------------------------------------

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_celery_beat",
    "django_celery_results",
    "jobs",
]
MIDDLEWARE = [
    "project.health.alive",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
ROOT_URLCONF = "project.urls"
WSGI_APPLICATION = "project.wsgi.application"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("UserAttributeSimilarityValidator", "MinimumLengthValidator", "CommonPasswordValidator")
]
STATIC_URL = "static/"
STATIC_ROOT = VAR_DIR / "static"
WHITENOISE_USE_FINDERS = DEBUG
X_FRAME_OPTIONS = "DENY"

# Whether the site is reached over HTTPS: redirects to it, HSTS and secure cookies. Off with DEBUG.
HTTPS: bool = read("bool", "HTTPS", not DEBUG)
# Whether a proxy in front sets X-Forwarded-Proto (and removes it from what clients send).
BEHIND_PROXY: bool = read("bool", "BEHIND_PROXY", False)
SECURE_SSL_REDIRECT = SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = HTTPS
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = HTTPS
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if BEHIND_PROXY else None
CSRF_TRUSTED_ORIGINS = [SITE_URL] if SITE_URL.startswith("https://") else []

# --- Logs -----------------------------------------------------------------------------------------------------------

# DEBUG, INFO, WARNING or ERROR; for every process, whatever `celery --loglevel` says.
LOG_LEVEL: str = read("level", "LOG_LEVEL", "INFO")
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {"()": "jobs.worker.logs.Formatter", "format": "%(asctime)s %(levelname)s %(name)s: %(message)s"},
    },
    "handlers": {
        "console": {"class": "logging.StreamHandler", "formatter": "line"},
        "run": {"class": "jobs.worker.logs.RunHandler", "formatter": "line"},
    },
    "root": {"handlers": ["console", "run"], "level": LOG_LEVEL},
}
