"""Which doors do the settings leave open? The checks of `manage.py check --deploy`, beside Django's own.

Its one rule: a warning names a door that most installations should close; an info names one that some need open. Each
hint says what to write. A missing setting opens no door.

Limits: a check sees the settings of its own process, and only files that this process may read.
"""

import ipaddress
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from ssl import CERT_NONE
from typing import Any
from urllib.parse import parse_qs, urlsplit

from celery import current_app
from django.conf import settings
from django.core import checks
from django.db import connections

from jobs.rules import origins, restricted

LONGEST_SESSION = 31 * 86_400  # seconds
PICKLING = ("redis", "memcached", "db", "filebased")  # modules of Django's caches that store pickles
EXECUTABLE = {"pickle", "application/x-python-serialize", "yaml", "application/x-yaml"}
ENCRYPTED = {"rediss", "amqps"}
NETWORKED = ENCRYPTED | {"redis", "amqp", "pyamqp", "librabbitmq", "sentinel"}
SQL = ("db+", "database+")  # beginnings of Celery's addresses of SQL databases
SSL_MODES = {"require", "verify-ca", "verify-full"}
PRIVATE_ENDINGS = (".internal", ".local", ".localdomain", ".lan", ".home.arpa")
NO_PASSWORD = {"passfile", "sslcert", "service", "krbsrvname"}  # options of PostgreSQL that replace a password

Found = Iterator[tuple[str, str]]  # sentences and hints


def remote_control() -> Found:
    if getattr(settings, "REMOTE_CONTROL", "") == "full":
        yield (
            "REMOTE_CONTROL is full: any program that can write to the broker can stop workers.",
            "Remove the setting, or write REMOTE_CONTROL=off.",
        )


def private_addresses() -> Found:
    if getattr(settings, "HTTP_ALLOW_PRIVATE", False):
        yield (
            "HTTP_ALLOW_PRIVATE is on: every user who may edit schedules can call the services of your network.",
            "Remove HTTP_ALLOW_PRIVATE. Jobs may always call this site by its paths.",
        )


def commands() -> Found:
    if further := sorted(set(getattr(settings, "RUN_COMMANDS", ())) - set(restricted.COMMANDS)):
        yield (
            f"RUN_COMMANDS lets jobs run {', '.join(further)}.",
            "Keep only commands that every user with the right for jobs.run_command may run with any argument.",
        )


def restricted_jobs() -> Found:
    entries = getattr(settings, "RESTRICTED_JOBS", restricted.DEFAULT)
    if free := [job for job in restricted.DEFAULT if restricted.entry_of(job, entries) is None]:
        yield (
            f"RESTRICTED_JOBS lets every user who may change schedules start {', '.join(free)}.",
            "Remove the setting, or list these jobs in it, too.",
        )


def destinations() -> Found:
    for name, hosts in getattr(settings, "SECRET_HOSTS", {}).items():
        if open_to := [host for host in hosts if host == origins.ANY or host.startswith("http://")]:
            yield (
                f"SECRET_HOSTS_{name} lets the secret go to {', '.join(open_to)}.",
                "List the hosts that need it, without http://, so that it travels encrypted.",
            )


def servers() -> Found:
    """Servers without a password, connections without encryption, and certificates without a check."""
    for name, place in _places():
        if place.is_here:
            continue
        if not place.has_password:
            yield (
                f"{name} names a server on {place.host} without a password, or with a default one.",
                f"Set one there, and write it in {name}.",
            )
        if not place.is_encrypted and not _is_private(place.host):
            yield (
                f"{name} sends passwords and data to {place.host} unencrypted.",
                f"{place.remedy or f'Write rediss:// in {name}'}, or use a private network.",
            )
        if place.is_unchecked:
            yield (
                f"{name} does not check the certificate of {place.host}: any server on the way can pose as it.",
                f"Remove ssl_cert_reqs from {name}; ssl_ca_certs can name the file of your own authority.",
            )


def executable_messages() -> Found:
    accepted = {*(current_app.conf.accept_content or ()), *(current_app.conf.result_accept_content or ())}
    if dangerous := sorted(accepted & EXECUTABLE):
        yield (
            f"Workers accept {', '.join(dangerous)}: any program that can write to the broker can run code in them.",
            'Write CELERY_ACCEPT_CONTENT = ["json"].',
        )


def pickling_caches() -> Found:
    for alias, config in settings.CACHES.items():
        package, _, module = str(config["BACKEND"]).rpartition(".")[0].rpartition(".")
        if package == "django.core.cache.backends" and module in PICKLING:
            yield (
                f"The cache {alias!r} stores pickles: any program that can write to it can run code in this process.",
                'Write "BACKEND": "jobs.cache.backend.Cache", which stores JSON in Redis.',
            )


def single_sign_on() -> Found:
    if getattr(settings, "SSO_HEADER", "") and not getattr(settings, "BEHIND_PROXY", False):
        yield (
            "SSO_HEADER is set without BEHIND_PROXY: any client can send the header, and so log in as any user.",
            "Put a proxy in front that removes the header from requests, and write BEHIND_PROXY=true.",
        )


def host_names() -> Found:
    if "*" in settings.ALLOWED_HOSTS:
        yield (
            "ALLOWED_HOSTS has *: the site answers for any host name, which clients choose.",
            "List the host names of this site in ALLOWED_HOSTS.",
        )


def trusted_header() -> Found:
    if (name := getattr(settings, "SSO_HEADER", "")) and getattr(settings, "BEHIND_PROXY", False):
        yield (
            f"A client that reaches the web process without the proxy can log in as any user with the header {name}.",
            f"Let only the proxy reach the web process, and let it remove {name} from requests.",
        )


def logins() -> Found:
    is_throttled = "axes" in settings.INSTALLED_APPS and getattr(settings, "AXES_ENABLED", True)
    if not is_throttled or not any(path.startswith("axes.") for path in settings.AUTHENTICATION_BACKENDS):
        yield (
            "Logins are not throttled: an attacker can try any number of passwords.",
            'Add "axes" to INSTALLED_APPS and "axes.backends.AxesStandaloneBackend" to AUTHENTICATION_BACKENDS.',
        )


def sessions() -> Found:
    if settings.SESSION_COOKIE_AGE > LONGEST_SESSION:
        yield (
            f"A session lasts {settings.SESSION_COOKIE_AGE // 86_400} days: a stolen cookie is as good as a password.",
            "Set SESSION_DAYS to 31 or less.",
        )


def page_policy() -> Found:
    if not getattr(settings, "CONTENT_SECURITY_POLICY", None):
        yield (
            "Pages have no Content-Security-Policy: a text that escapes its page could run scripts.",
            "Restore CONTENT_SECURITY_POLICY and its middleware.",
        )


def open_files() -> Found:
    """Only rights of all users count, because an operator may have chosen those of a group."""
    databases = [each.settings_dict["NAME"] for each in connections.all() if each.vendor == "sqlite"]
    variables = os.environ.get("ENV_FILE", getattr(settings, "BASE_DIR", Path()) / ".env")
    key = getattr(settings, "VAR_DIR", Path()) / "secret_key"
    for path in map(Path, (settings.MEDIA_ROOT, variables, key, *databases)):
        if (path.is_file() or path.is_dir()) and _is_open_to_all(path):
            hint = f"Run: chmod {700 if path.is_dir() else 600} {path}."
            is_shared = path.stat().st_mode & stat.S_ISVTX  # as /tmp is
            yield (f"Every user of this machine can read {path}.", "Choose a folder of its own." if is_shared else hint)


def _is_open_to_all(path: Path) -> bool:
    can_enter = all(parent.stat().st_mode & 0o001 for parent in path.resolve().parents)
    return can_enter and bool(path.stat().st_mode & 0o006)


def unsigned_messages() -> Found:
    if getattr(settings, "MESSAGE_KEYS", True) == []:
        yield (
            "Messages are not signed: a program that can write to the broker can make workers run jobs.",
            "Set MESSAGE_KEYS to 32 random bytes or more, the same in every process.",
        )


def secrets_here() -> Found:
    if number := len(getattr(settings, "JOB_SECRETS", ())):
        yield (
            f"This process knows {number} secret{'s' * (number > 1)} of jobs. Only workers need them.",
            "Set the variables JOB_SECRET_... for workers only, not for web, beat and manage.py.",
        )


def proxy() -> Found:
    if settings.SECURE_SSL_REDIRECT and not settings.SECURE_PROXY_SSL_HEADER:
        yield (
            "HTTPS is on and BEHIND_PROXY is off: behind a proxy, every page would redirect to itself.",
            "Write BEHIND_PROXY=true if a proxy in front sets X-Forwarded-Proto.",
        )


def embedded_servers() -> Found:
    if getattr(settings, "EMBEDDED", False) and not settings.DEBUG:
        yield (
            "EMBEDDED is on: all data stay in VAR_DIR on this machine, and only one user of it can read them.",
            "Set DATABASE_URL and REDIS_URL, and EMBEDDED=false, to run on several machines.",
        )


@dataclass(frozen=True, slots=True)
class _Place:
    """A server, as a setting names it."""

    host: str
    has_password: bool
    is_encrypted: bool
    remedy: str = ""  # how to encrypt the connection, if not by rediss://
    is_unchecked: bool = False  # encrypted, but the server's certificate is not checked

    @property
    def is_here(self) -> bool:
        return not self.host or self.host.startswith("/") or _address(self.host).is_loopback


def _places() -> Iterator[tuple[str, _Place]]:
    """Every server that a setting names, with the name of the setting."""
    for alias in connections:
        name = "DATABASE_URL" if alias == "default" else f"DATABASES[{alias!r}]"
        yield from _database(name, connections[alias].settings_dict)
    yield from _database("DATABASE_DIRECT_URL", getattr(settings, "DATABASE_DIRECT", None) or {})
    if settings.EMAIL_BACKEND.endswith("smtp.EmailBackend") and settings.EMAIL_HOST_PASSWORD:
        has_tls = settings.EMAIL_USE_TLS or settings.EMAIL_USE_SSL
        yield "EMAIL_URL", _Place(settings.EMAIL_HOST, True, has_tls, "Write smtp+tls:// in EMAIL_URL")
    conf = current_app.conf
    broker, backend = str(conf.broker_url or ""), str(conf.result_backend or "")
    caches = [str(url) for config in settings.CACHES.values() for url in _listed(config.get("LOCATION", ""))]
    yield from _urls("BROKER_URL or REDIS_URL", broker.split(";"), "CELERY_BROKER_USE_SSL", conf.broker_use_ssl)
    yield from _urls("CACHE_URL", caches)
    ssl = conf.redis_backend_use_ssl
    yield from _urls("RESULT_BACKEND", backend.split(";"), "CELERY_REDIS_BACKEND_USE_SSL", ssl)


def _database(name: str, config: dict[str, Any]) -> Iterator[tuple[str, _Place]]:
    if "postgresql" in config.get("ENGINE", ""):
        options = config.get("OPTIONS", {})
        has_password = bool(config["PASSWORD"] or NO_PASSWORD & options.keys())
        remedy = f"Write ?sslmode=verify-full in {name}"
        yield name, _Place(str(config["HOST"]), has_password, options.get("sslmode") in SSL_MODES, remedy)


def _urls(name: str, urls: list[str], setting: str = "", ssl: Any = None) -> Iterator[tuple[str, _Place]]:
    """The servers of one setting. Celery's other `setting` can ask for encryption, too."""
    for parts in map(urlsplit, urls):
        options = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        host, has_password = parts.hostname or "", bool(parts.password)
        if parts.scheme in NETWORKED:
            is_default = (parts.username, parts.password) == ("guest", "guest")
            is_encrypted = parts.scheme in ENCRYPTED or bool(ssl)
            required = ssl.get("ssl_cert_reqs", "") if isinstance(ssl, dict) else ""
            is_unchecked = is_encrypted and _is_none(options.get("ssl_cert_reqs", required))
            remedy = f"Write amqps:// in {name}" if "amqp" in parts.scheme else ""
            remedy = f"Set {setting}" if parts.scheme == "sentinel" else remedy
            yield name, _Place(host, has_password and not is_default, is_encrypted, remedy, is_unchecked)
        elif parts.scheme.startswith(SQL):
            is_encrypted = options.get("sslmode") in SSL_MODES or any(key.startswith("ssl_") for key in options)
            yield name, _Place(host, has_password, is_encrypted, f"Write ?sslmode=verify-full in {name}")


def _is_none(required: object) -> bool:
    """Whether this value of ssl_cert_reqs means no check of certificates."""
    return required == CERT_NONE or str(required).lower() in {"none", "cert_none"}


def _listed(location: Any) -> list[Any]:
    return list(location) if isinstance(location, list | tuple) else [location]


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address of a host. `localhost` counts as an address of this machine, any other name as a public one."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return ipaddress.ip_address("127.0.0.1" if host == "localhost" else "8.8.8.8")


def _is_private(host: str) -> bool:
    """Whether the name or address shows that the host is in a private network."""
    return (
        ("." not in host.rstrip(".") and ":" not in host) or host.endswith(PRIVATE_ENDINGS) or _address(host).is_private
    )


WARNINGS = (
    *(remote_control, private_addresses, commands, restricted_jobs, servers, executable_messages, pickling_caches),
    *(single_sign_on, logins, sessions, page_policy, open_files, destinations, host_names),
)
INFOS = (unsigned_messages, secrets_here, proxy, embedded_servers, trusted_header)


def connect() -> None:
    for number, function in enumerate(WARNINGS, 101):
        checks.register(_check(function, checks.Warning, f"jobs.W{number}"), checks.Tags.security, deploy=True)
    for number, function in enumerate(INFOS, 101):
        checks.register(_check(function, checks.Info, f"jobs.I{number}"), checks.Tags.security, deploy=True)


def _check(
    find: Callable[[], Found], kind: Callable[..., checks.CheckMessage], name: str
) -> Callable[..., list[checks.CheckMessage]]:
    def check(**_: Any) -> list[checks.CheckMessage]:
        return [kind(sentence, hint=hint, id=name) for sentence, hint in find()]

    return check
