"""Every setting of Punctual: read from the environment or from `.env` beside manage.py, and typed only here.

Its one rule: an invalid value stops the process with the variable's name. For any variable, NAME_FILE may give the path
of a file that holds the value. So secrets can stay out of the environment.
With DEBUG off, SECRET_KEY, ALLOWED_HOSTS, DATABASE_URL and REDIS_URL are required. With EMBEDDED=true, SQLite and an
embedded Valkey server in VAR_DIR replace the last two if they are not set.
"""

import os
import sqlite3
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import django_stubs_ext
import environ
from celery.schedules import crontab
from django.core.exceptions import ImproperlyConfigured

from jobs.local import embedded
from jobs.rules import restricted
from project.variables import email_url, read, read_all, required

BASE_DIR = Path(__file__).resolve().parent.parent
environ.Env.read_env(os.environ.get("ENV_FILE", BASE_DIR / ".env"))
django_stubs_ext.monkeypatch()  # makes Django's generic classes subscriptable, for the type checker

# --- This installation ----------------------------------------------------------------------------------------------

# Development mode: detailed error pages, a generated SECRET_KEY, embedded servers. Never use it on a public address.
DEBUG: bool = read("bool", "DEBUG", False)
# Whether SQLite and an embedded Valkey server in VAR_DIR replace an unset DATABASE_URL and REDIS_URL.
EMBEDDED: bool = read("bool", "EMBEDDED", DEBUG)
# The folder for the state of the embedded servers and the logs of `manage.py up`.
VAR_DIR = Path(read("str", "VAR_DIR", str(BASE_DIR / "var"))).absolute()
if EMBEDDED:
    embedded.close_to_others(VAR_DIR)
# Signs sessions and tokens: at least 50 random characters, the same in every process.
SECRET_KEY: str = read("str", "SECRET_KEY", "" if DEBUG else required) or embedded.secret_key(VAR_DIR)
# The name of this installation, such as production or staging. A database that one of another name has adopted is left
# alone. Empty: no check.
INSTALLATION: str = read("name", "INSTALLATION", "")
# The host names that the web process serves, separated by commas.
ALLOWED_HOSTS: list[str] = read("list", "ALLOWED_HOSTS", ["localhost", "127.0.0.1", "[::1]"] if DEBUG else required)
# The address under which users and jobs reach the web process.
SITE_URL: str = read("site", "SITE_URL", "http://127.0.0.1:8000")
# Whether jobs may call private addresses, such as services in your network. Jobs may always call this site.
HTTP_ALLOW_PRIVATE: bool = read("bool", "HTTP_ALLOW_PRIVATE", False)


# The values of all variables JOB_SECRET_NAME. Arguments of jobs refer to them as secret:NAME. Only workers need them.
JOB_SECRETS: dict[str, str] = read_all("secret", "JOB_SECRET_")
# For each secret, from the variables SECRET_HOSTS_NAME: the hosts that it may go to, such as api.example.org (HTTPS),
# *.example.org, host:8443, http://host:8080 or *. A secret without hosts goes nowhere. Every process needs these.
SECRET_HOSTS: dict[str, list[str]] = read_all("hosts", "SECRET_HOSTS_")
# For each secret, from the variables SECRET_JOBS_NAME: the jobs that may use it, also without a host. A secret without
# such a variable may go to its hosts in any job.
SECRET_JOBS: dict[str, list[str]] = read_all("patterns", "SECRET_JOBS_")
# For each sender of webhooks, from the variables WEBHOOK_KEYS_NAME: its keys, each of which may sign a delivery. Add a
# new key before the sender uses it, and remove the old one afterwards. Only web processes need these.
WEBHOOK_KEYS: dict[str, list[str]] = read_all("webhook_keys", "WEBHOOK_KEYS_")
# For each channel of alerts, from the variables CHANNEL_URL_NAME: its address, which is a secret. For each signed
# webhook, from CHANNEL_KEY_NAME: the key that signs its messages; of several, each signs. Beat and web need these.
CHANNEL_URLS: dict[str, str] = read_all("channel_url", "CHANNEL_URL_")
CHANNEL_KEYS: dict[str, list[str]] = read_all("channel_keys", "CHANNEL_KEY_")
# The address that beat calls once a minute while it works, such as that of a check at healthchecks.io: it notices when
# beat, its machine or its network is gone. Empty: none. Only beat needs it.
BEAT_PING_URL: str = read("ping_url", "BEAT_PING_URL", "")
# The jobs that only users with the right for them may schedule, start or change: names, `billing.*` for all names that
# begin with `billing.`, or `*`. Each entry is a permission, which `manage.py migrate` creates. The default lists jobs
# that can delete data, copy everything, send data out or run commands.
RESTRICTED_JOBS: list[str] = read("patterns", "RESTRICTED_JOBS", [*restricted.DEFAULT])
# The management commands that `jobs.run_command` may run.
RUN_COMMANDS: list[str] = read("list", "RUN_COMMANDS", [*restricted.COMMANDS])
# The folder for files of jobs and uploads. Every process needs access to it.
MEDIA_ROOT = Path(read("str", "FILES_DIR", str(VAR_DIR / "files"))).absolute()
FILE_UPLOAD_PERMISSIONS, FILE_UPLOAD_DIRECTORY_PERMISSIONS = 0o600, 0o700  # backups are stored there, too

# --- Database -------------------------------------------------------------------------------------------------------

OLDEST_SQLITE = (3, 35)  # the first with RETURNING, which says which runs an UPDATE has ended
SQLITE_OPTIONS = {
    "transaction_mode": "IMMEDIATE",  # a writer waits at BEGIN instead of failing at its first write
    "timeout": 20,  # seconds
    "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
}
POSTGRESQL_OPTIONS = {
    "connect_timeout": 5,  # seconds
    # These detect a vanished server (its machine died, a firewall dropped the connection) in half a minute. The
    # kernel's defaults would let beat and workers wait for fifteen minutes or two hours.
    "keepalives_idle": 15,  # seconds
    "keepalives_interval": 5,  # seconds
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # milliseconds
}


def _sqlite_options() -> dict[str, Any]:
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise ImproperlyConfigured(
            f"SQLite {sqlite3.sqlite_version} is too old: use a Python with SQLite 3.35 or newer, or PostgreSQL."
        )
    return SQLITE_OPTIONS


def _database(name: str, url: str) -> dict[str, Any]:
    """The entry in DATABASES for the address in variable `name`."""
    scheme = url.split("://", 1)[0]
    if scheme not in {"postgres", "postgresql", "sqlite"}:
        raise ImproperlyConfigured(
            f"{name} is invalid: it must look like postgres://user:password@host:5432/name or "
            "sqlite:////absolute/path.sqlite3."
        )
    # Each process has its own database in memory: enough for commands that need no data.
    if scheme == "sqlite" and not url.startswith("sqlite:////") and url != "sqlite://:memory:":
        raise ImproperlyConfigured(
            f"{name} needs an absolute path after sqlite:///, such as sqlite:////srv/name.sqlite3."
        )
    try:
        config: dict[str, Any] = environ.Env.db_url_config(url)
    except ValueError:
        raise ImproperlyConfigured(
            f"{name} is invalid: check its port, and write / : @ # ? in a password as %2F %3A %40 %23 %3F."
        ) from None
    if not config["NAME"]:
        raise ImproperlyConfigured(f"{name} names no database: add /name at the end.")
    options = _sqlite_options() if scheme == "sqlite" else POSTGRESQL_OPTIONS
    config["OPTIONS"] = {**options, **config.get("OPTIONS", {})}
    return {"CONN_HEALTH_CHECKS": True, "CONN_MAX_AGE": 0 if scheme == "sqlite" else 60, **config}  # seconds


def _direct(pooled: dict[str, Any]) -> dict[str, Any] | None:
    url: str = read("str", "DATABASE_DIRECT_URL", "")
    if not url:
        return None
    config = _database("DATABASE_DIRECT_URL", url)
    if config["ENGINE"] != pooled["ENGINE"]:
        raise ImproperlyConfigured("DATABASE_DIRECT_URL is invalid: it must lead to the database of DATABASE_URL.")
    return config


# postgres://user:password@host:5432/name or sqlite:////absolute/path.sqlite3
DATABASES = {
    "default": _database(
        "DATABASE_URL", read("str", "DATABASE_URL", "" if EMBEDDED else required) or embedded.database_url(VAR_DIR)
    )
}
# The same database without a pooler such as PgBouncer, for jobs that need a session: backups, reports.
DATABASE_DIRECT = _direct(DATABASES["default"])
DATABASES["default"]["DISABLE_SERVER_SIDE_CURSORS"] = DATABASE_DIRECT is not None
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
            f"{name} is invalid: it must look like redis://:password@host:6379/0, rediss://... or "
            "unix:///path/to/socket?db=0."
        )
    return url


# redis://[:password@]host:6379/0, rediss:// (TLS) or unix:///path/to/socket?db=0
REDIS_URL = _checked("REDIS_URL", read("str", "REDIS_URL", embedded.redis_url(VAR_DIR) if EMBEDDED else required))

# The broker, if it differs from REDIS_URL: any address that Celery supports (redis://, sentinel://, amqp://, sqs://).
CELERY_BROKER_URL: str = read("str", "BROKER_URL", embedded.broker_url(REDIS_URL))
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
# A broker's error (out of memory, a replica after a failover, no permission) must not end a worker.
CELERY_BROKER_CHANNEL_ERROR_RETRY = True
# A frozen or absent broker must not block beat or web: each call waits at most this long (seconds) and never retries.
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "socket_connect_timeout": 2,
    "socket_timeout": 5,
    "health_check_interval": 10,
    "max_retries": 0,
}

# Queues besides Celery's own, `celery`, separated by commas. Users may choose them for schedules, and a worker without
# --queues consumes all of them. Unset: such a worker consumes only `celery`.
QUEUES: list[str] = read("queues", "QUEUES", [])
if QUEUES:
    CELERY_TASK_QUEUES = {name: {"exchange": name, "routing_key": name} for name in ("celery", *QUEUES)}
# Sign all messages and refuse others: random keys of at least 32 bytes, the same in every process. Senders sign with
# the first key, workers accept each: put a new key behind the old one everywhere, then in front. Empty: no signatures.
MESSAGE_KEYS: list[str] = read("signing_keys", "MESSAGE_KEYS", [])
# Which commands of remote control workers obey: those that read (inspect), all of them (full) or none (off).
REMOTE_CONTROL: str = read("remote_control", "REMOTE_CONTROL", "inspect")
CELERY_WORKER_ENABLE_REMOTE_CONTROL = REMOTE_CONTROL != "off"

# Results are off by default: a task opts in with ignore_result=False. Its result is kept for RESULT_EXPIRES seconds, or
# for good if that is "never".
CELERY_RESULT_BACKEND: str = read("result_backend", "RESULT_BACKEND", "django-db")
if CELERY_RESULT_BACKEND == "django-db":
    CELERY_RESULT_BACKEND = "jobs.worker.results:Backend"  # counts the members of chords correctly
CELERY_TASK_IGNORE_RESULT = True
CELERY_RESULT_EXTENDED = True
CELERY_RESULT_EXPIRES: int | None = read("lifetime", "RESULT_EXPIRES", 3600)

CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TASK_SERIALIZER = "json"
CELERY_RESULT_SERIALIZER = "json"
CELERY_BEAT_SCHEDULER = "jobs.beat:Scheduler"
# Beat installs these schedules; the admin can change, pause and disable them. Yours may join them.
CELERY_BEAT_SCHEDULE: dict[str, Any] = {
    "Clean up": {
        "task": "jobs.cleanup",
        "schedule": crontab(hour="3", minute="17"),
        "description": "Deletes old runs, files, sessions and results; its arguments say how old.",
    },
}
CELERY_WORKER_CONSUMER = "jobs.worker.consumer:Consumer"
# The ledger, not the broker, records which runs a worker holds: acknowledge messages early and prefetch few.
CELERY_TASK_ACKS_LATE = False
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_REDIRECT_STDOUTS = False
# Celery itself closes no database connection: jobs.worker.connection decides which are kept from task to task.
CELERY_DB_REUSE_MAX = sys.maxsize

# Seconds after which a run is lost if its process has stopped renewing its lease. Beat finds it within 5 s more.
LEASE_SECONDS: float = read("float", "LEASE_SECONDS", 60.0)

# Seconds that a cancelled run has to clean up before its process is killed (only in prefork workers).
CANCEL_GRACE_SECONDS: float = read("float", "CANCEL_GRACE_SECONDS", 10.0)

# The name of this project. Several may share a database: each installs, changes and removes only its own entries of
# CELERY_BEAT_SCHEDULE. A developer's machine (DEBUG) counts as a project of its own.
PROJECT: str = read("name", "PROJECT", "punctual-debug" if DEBUG else "punctual")

# The version of your code, such as a commit or a tag. The admin shows it beside each beat and worker.
CODE_VERSION: str = read("str", "CODE_VERSION", "")

# Seconds that a step of a run (a task of its chain, group or chord) may wait in the broker. After that the step and its
# run count as lost. Make it longer than the longest backlog of the queues for steps.
STEP_PATIENCE_SECONDS: float = read("float", "STEP_PATIENCE_SECONDS", 3600.0)

# Seconds after which a run fails that was sent again and again, while no worker took it: each one refused its message,
# or no worker consumes its queue, or the consumers start nothing. Make it longer than a deploy and a planned outage.
UNDELIVERABLE_AFTER: float = read("float", "UNDELIVERABLE_AFTER", 86_400.0)

# Seconds that a run may wait in a queue that workers consume, until that is reported as a backlog.
QUEUE_AGE_ALERT: float = read("float", "QUEUE_AGE_ALERT", 600.0)

# --- Cache ----------------------------------------------------------------------------------------------------------

# The Redis for cached values, with an address like REDIS_URL. It may share a database with the broker.
CACHE_URL = _checked("CACHE_URL", read("str", "CACHE_URL", REDIS_URL))
CACHES = {
    "default": {
        "BACKEND": "jobs.cache.backend.Cache",
        "LOCATION": [CACHE_URL],  # a list, because Django splits text at commas
        "KEY_PREFIX": "punctual",
    }
}

# --- Time and language ----------------------------------------------------------------------------------------------

# The time zone of the admin and the default of crontabs: an IANA name such as Europe/Berlin. Stored times are UTC.
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
EMAIL_TIMEOUT = 30  # seconds that a mail server may take to answer
DEFAULT_FROM_EMAIL: str = read("str", "DEFAULT_FROM_EMAIL", "punctual@localhost")
# The domains to which jobs may send mail, such as example.org, *.example.org (all below it). Empty: any.
MAIL_DOMAINS: list[str] = read("domains", "MAIL_DOMAINS", [])

# --- The web process ------------------------------------------------------------------------------------------------

INSTALLED_APPS = [
    "project.admin.Config",  # Django's admin, with every page guarded
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_celery_beat",
    "django_celery_results",
    "axes",
    "csp",
    "ninja",  # the page of the API's document
    "jobs",
]
MIDDLEWARE = [
    "project.headers.Headers",
    "project.request_ids.identified",
    "jobs.web.api.problems.Problems",
    "project.health.answered",
    "project.metrics.served",
    "jobs.web.traced.traced",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "project.sessions.limited",
    "jobs.web.tokens.admitted",
    "project.uploads.Uploads",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "axes.middleware.AxesMiddleware",
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
DEFAULT_EXCEPTION_REPORTER_FILTER = "project.errors.Masked"

# Whether users reach the site over HTTPS: redirects to it, HSTS and secure cookies. Off with DEBUG.
HTTPS: bool = read("bool", "HTTPS", not DEBUG)
# Whether a proxy in front sets X-Forwarded-Proto, and adds its client to X-Forwarded-For.
BEHIND_PROXY: bool = read("bool", "BEHIND_PROXY", False)
SECURE_SSL_REDIRECT = SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = HTTPS
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = HTTPS
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if BEHIND_PROXY else None
CSRF_TRUSTED_ORIGINS = [SITE_URL] if SITE_URL.startswith("https://") else []

# The path of the admin. Only users who are logged in as staff see a path other than admin/.
ADMIN_PATH: str = read("path", "ADMIN_PATH", "admin/")
LOGIN_URL = "admin:login"

# Minutes without a request, and days since the login, after which a user must log in again.
SESSION_IDLE_MINUTES: int = read("count", "SESSION_IDLE_MINUTES", 720)
SESSION_COOKIE_AGE: int = read("count", "SESSION_DAYS", 7) * 86_400  # seconds
CSRF_COOKIE_HTTPONLY = True

# django-axes counts failed logins by name and address (project/login.py). A lock expires, or `axes_reset` ends it.
AUTHENTICATION_BACKENDS = ["axes.backends.AxesStandaloneBackend", "django.contrib.auth.backends.ModelBackend"]
AXES_HANDLER = "project.login.Throttle"
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"], "ip_address"]
AXES_FAILURE_LIMIT = 5  # wrong passwords
AXES_COOLOFF_TIME = timedelta(minutes=15)
AXES_RESET_COOL_OFF_ON_FAILURE_DURING_LOCKOUT = False  # otherwise an attacker could lock a user out for good
AXES_RESET_ON_SUCCESS = True
AXES_CLIENT_IP_CALLABLE = "project.login.address_of"
AXES_LOCKOUT_CALLABLE = "project.login.locked_out"
# Some users type their password as the name.
AXES_SENSITIVE_PARAMETERS = ["username", "csrfmiddlewaretoken", "old_password", "new_password1", "new_password2"]

# The header in which a proxy names the user whom it has logged in. The proxy must remove it from clients' requests.
SSO_HEADER: str = read("header", "SSO_HEADER", "")
if SSO_HEADER:
    if not BEHIND_PROXY:
        raise ImproperlyConfigured(
            "SSO_HEADER needs BEHIND_PROXY=true: without a proxy any client could send the header."
        )
    AUTHENTICATION_BACKENDS.append("project.login.ProxyBackend")
    MIDDLEWARE.insert(MIDDLEWARE.index("project.sessions.limited"), "project.login.ProxyLogin")

# Django reads bodies only up to these sizes (project/uploads.py).
FILE_UPLOAD_HANDLERS = ["project.uploads.NoUpload"]
DATA_UPLOAD_MAX_MEMORY_SIZE = 2_500_000  # bytes of a form
DATA_UPLOAD_MAX_NUMBER_FIELDS, DATA_UPLOAD_MAX_NUMBER_FILES = 1000, 10

# What a scrape of /metrics must send as its Bearer token, and the networks that may scrape, in CIDR notation. If both
# are set, both must hold. Neither: there is no such page. Only web processes need these.
METRICS_TOKEN: str = read("secret", "METRICS_TOKEN", "")
METRICS_NETWORKS: list[Any] = read("networks", "METRICS_NETWORKS", [])

# Browsers load everything from this site only, and run nothing inline.
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": ["'none'"],
        **{f"{kind}-src": ["'self'"] for kind in ("script", "style", "img", "connect", "font")},
        **{name: ["'none'"] for name in ("object-src", "base-uri", "frame-ancestors")},
        "form-action": ["'self'"],
    }
}

# --- Logs -----------------------------------------------------------------------------------------------------------

# DEBUG, INFO, WARNING or ERROR, for every process; `celery --loglevel` replaces it.
LOG_LEVEL: str = read("level", "LOG_LEVEL", "INFO")
# text (a sentence with key=value) or json (one object a line), for every process.
LOG_FORMAT: str = read("log_format", "LOG_FORMAT", "text")
LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"()": "jobs.logs.Formatter"}},
    "filters": {"links": {"()": "project.logs.WithoutLinks"}},
    "handlers": {
        "console": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["links"]},
        "run": {"class": "jobs.worker.logs.RunHandler"},
    },
    "loggers": {"axes": {"level": "WARNING"}},  # INFO repeats each login many times
    "root": {"handlers": ["console", "run"], "level": LOG_LEVEL},
}
