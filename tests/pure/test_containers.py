"""Do docker-compose.yml and the Dockerfile still match the settings and the code?

The tests only read both files. They do not show that the image builds or that the network isolates: that needs an
engine. tests/live/test_servers.py runs the commands of the health checks.
"""

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import gunicorn.config
import pytest
import yaml
from django.core.management import get_commands, load_command_class

from tests.servers import ROOT, settings_variables

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
LASTING = {name: service for name, service in SERVICES.items() if service["restart"] != "no"}
NEEDED = {"SECRET_KEY", "ALLOWED_HOSTS", "DATABASE_URL", "REDIS_URL"}
SECRET = re.compile(r"SECRET|PASSWORD|TOKEN|_KEY$")


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, with continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(word, rest) for word, _, rest in (line.strip().partition(" ") for line in text.splitlines()) if word]


def arguments_of(word: str) -> list[str]:
    return [rest for name, rest in instructions() if name == word]


def command_of(service: dict[str, Any]) -> list[str]:
    """The command of one of our services: its own, otherwise the image's."""
    (default,) = arguments_of("CMD")
    return service.get("command") or yaml.safe_load(default)


def assigned(text: str) -> dict[str, str]:
    return dict(re.findall(r"\b([A-Z][A-Z0-9_]*)=(\S+)", text))


def test_it_has_all_services_of_the_production_shape():
    kinds = [command_of(service)[:4] for service in OURS.values()]
    assert sum(command[0] == "gunicorn" for command in kinds) == 1
    assert sum(command[:3] == ["python", "manage.py", "worker"] for command in kinds) == 1
    assert kinds.count(["python", "manage.py", "migrate", "--noinput"]) == 1
    beats = [service for service in OURS.values() if command_of(service)[:3] == ["python", "manage.py", "beat"]]
    assert sum(service.get("deploy", {}).get("replicas", 1) for service in beats) == 2
    assert {service["image"].partition(":")[0] for service in SERVICES.values()} == {
        "punctual",
        "postgres",
        "redis",
        "caddy",
    }
    assert "version" not in COMPOSE


@pytest.mark.parametrize("name", OURS)
def test_it_sets_all_required_variables_and_no_unknown_ones(name):
    environment = OURS[name]["environment"]
    assert set(environment) <= settings_variables()
    assert set(environment) >= NEEDED
    assert "DEBUG" not in environment
    assert "EMBEDDED" not in environment


def test_it_has_no_default_for_a_secret():
    interpolated = re.findall(r"\$\{(\w+)(:[-?][^}]*)?\}", (ROOT / "docker-compose.yml").read_text())
    names = {name for name, _ in interpolated if SECRET.search(name)}
    assert names == {"SECRET_KEY", "POSTGRES_PASSWORD", "POSTGRES_SUPERUSER_PASSWORD", "REDIS_PASSWORD"}
    for name, rest in interpolated:
        if name in names:
            assert re.fullmatch(rf":\?Set {name} to .{{10,}}", rest), (name, rest)
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            assert not SECRET.search(name) or re.match(r"\$\{[A-Z_]+:\?", value), (name, value)


def test_it_gives_secrets_of_jobs_to_the_worker_only_and_keys_of_webhooks_to_the_site_only():
    files = {name: [each["path"] for each in service.get("env_file", [])] for name, service in OURS.items()}
    assert {name for name, paths in files.items() if "worker.env" in paths} == {"worker"}
    assert {name for name, paths in files.items() if "web.env" in paths} == {"web"}
    assert {name for name, paths in files.items() if "alerts.env" in paths} == {"web", "beat"}
    assert all("punctual.env" in paths for paths in files.values())


def test_it_puts_no_secret_into_the_image():
    for line in arguments_of("ENV") + arguments_of("ARG"):
        assert not any(SECRET.search(name) for name in assigned(line)), line
    (collect,) = [line for line in arguments_of("RUN") if "collectstatic" in line]
    assert "DEBUG" not in collect  # DEBUG would generate a key and leave it in the image
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line.strip("!/") for line in ignored if line.startswith("!")}
    assert "*" in ignored
    assert not any(name.startswith((".", "var")) for name in allowed)


def test_it_gives_the_image_no_unknown_settings():
    known = settings_variables() | {"PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"}
    for line in arguments_of("ENV"):
        assert set(assigned(line)) <= known, line
    (collect,) = [line for line in arguments_of("RUN") if "collectstatic" in line]
    assert NEEDED <= set(assigned(collect)) <= known


def test_it_copies_existing_files_of_the_build_context():
    allowed = {line.strip("!/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {Path(source).name for line in arguments_of("COPY") for source in shlex.split(line)[:-1]}
    assert copied == allowed
    for name in copied:
        assert (ROOT / name).exists(), name
    (install,) = [line for line in arguments_of("RUN") if "pip install" in line]
    assert "--require-hashes -r requirements.txt" in install


def test_it_does_not_run_as_root():
    (user,) = arguments_of("USER")
    assert user not in {"root", "0"}
    words = [word for word, _ in instructions()]
    assert words.index("USER") > max(index for index, word in enumerate(words) if word in {"COPY", "RUN"})
    assert all("user" not in service for service in OURS.values())


@pytest.mark.parametrize("name", SERVICES)
def test_it_gives_every_service_few_rights_and_bounded_memory(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.search(r"\d[mg]\b", service["mem_limit"])
    assert 0 < service["pids_limit"] <= 300
    assert all("size=" in each for each in service.get("tmpfs", []))
    if name in {"postgres", "redis"}:
        assert service["user"] == name


@pytest.mark.parametrize("name", SERVICES)
def test_it_gives_a_read_only_service_configs_and_secrets_from_files(name):
    """Compose copies other ones into the container, and so refuses to start it."""
    for kind in ("configs", "secrets"):
        for each in SERVICES[name].get(kind, []):
            source = each if isinstance(each, str) else each["source"]
            assert (ROOT / COMPOSE[kind][source]["file"]).is_file()


def test_it_pins_every_image_to_a_minor_version():
    images = [service["image"] for service in SERVICES.values() if "build" not in service] + arguments_of("FROM")
    assert all(re.search(r":\d+\.\d+", image) for image in images), images


def test_it_shows_no_password_among_the_options_of_a_process():
    for service in SERVICES.values():
        for command in (service.get("command", []), service.get("healthcheck", {}).get("test", [])):
            assert not SECRET.search(re.sub(r"--\S+", "", " ".join(command))), command


@pytest.mark.parametrize("name", OURS)
def test_it_runs_existing_commands_with_existing_options(name):
    command = command_of(OURS[name])
    options = {word.partition("=")[0] for word in command if word.startswith("--")}
    if command[0] == "python":
        assert (ROOT / command[1]).exists()
        assert options <= options_of_command(command[2])
        return
    assert importlib.util.find_spec(command[1])
    assert options <= options_of_gunicorn()


def options_of_command(name: str) -> set[str]:
    command = load_command_class(get_commands()[name], name)
    parser = command.create_parser("manage.py", name)
    theirs = getattr(command, "celery_command", None)
    passed = {option for each in (theirs.params if theirs else ()) for option in (*each.opts, *each.secondary_opts)}
    return {option for action in parser._actions for option in action.option_strings} | passed


def options_of_gunicorn() -> set[str]:
    return {option for setting in gunicorn.config.KNOWN_SETTINGS for option in setting.cli or ()}


@pytest.mark.parametrize("name", LASTING)
def test_it_gives_every_lasting_service_a_health_check_restarts_and_a_log_limit(name):
    service = LASTING[name]
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}
    assert {"interval", "timeout", "start_period", "retries"} <= set(service["healthcheck"])
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}


@pytest.mark.parametrize("name", sorted(set(OURS) - {"migrate"}))
def test_it_starts_after_the_migrations(name):
    depends = {other: rule["condition"] for other, rule in OURS[name]["depends_on"].items()}
    assert depends == {
        "migrate": "service_completed_successfully",
        "postgres": "service_healthy",
        "redis": "service_healthy",
    }
    assert OURS["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}


def test_it_stores_the_data_of_broker_and_database_on_volumes_in_a_private_network():
    words = " ".join(SERVICES["redis"]["command"])
    for option in ("--appendonly yes", "--appendfsync everysec", "--maxmemory-policy noeviction"):
        assert option in words
    for name in ("postgres", "redis"):
        (volume,) = SERVICES[name]["volumes"]
        assert volume.partition(":")[0] in COMPOSE["volumes"]
        assert "ports" not in SERVICES[name]
        assert SERVICES[name]["networks"] == ["data"]
    assert COMPOSE["networks"]["data"] == {"internal": True}


def test_it_checks_the_health_of_web_where_gunicorn_listens():
    web = next(service for service in OURS.values() if command_of(service)[0] == "gunicorn")
    assert "http://127.0.0.1:8000/livez" in web["healthcheck"]["test"][-1]
    assert "--bind=0.0.0.0:8000" in command_of(web)


def test_it_lets_jobs_finish_before_docker_kills_a_worker():
    (worker,) = [service for service in OURS.values() if "worker" in command_of(service)]
    assert worker["stop_signal"] == "SIGTERM"
    assert worker["stop_grace_period"] == "2m"
