"""The newest rules of time zones win: the machine's or those of the package, which the tests copy and change."""

import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import tzdata

from jobs import checks, zones
from tests.servers import ROOT

PACKAGE = Path(tzdata.__file__).parent / "zoneinfo"
SHOW = """
import multiprocessing, django
django.setup()
from zoneinfo import ZoneInfo
from datetime import datetime
from django.utils import timezone
from jobs import zones
def show():
    paris = [ZoneInfo("Europe/Paris"), timezone.get_default_timezone()]
    print(zones.version(), *(datetime(2026, 1, 1, tzinfo=zone).utcoffset().seconds // 3600 for zone in paris))
show()
child = multiprocessing.get_context("fork").Process(target=show)
child.start()
child.join()
from django_celery_beat.models import CrontabSchedule
CrontabSchedule(timezone="Europe/Paris").full_clean()  # models and forms have the same zones
"""


def folder(path: Path, version: str, name: str = "tzdata.zi") -> Path:
    """Rules of that version, in which Paris has the clocks of Tokyo."""
    (path / "Europe").mkdir(parents=True)
    shutil.copy(PACKAGE / "Asia" / "Tokyo", path / "Europe" / "Paris")
    (path / name).write_text(version)
    return path


def shown(*folders: Path) -> list[str]:
    environment = {**os.environ, "PYTHONTZPATH": os.pathsep.join(map(str, folders)), "TIME_ZONE": "Europe/Paris"}
    environment |= {"DJANGO_SETTINGS_MODULE": "project.settings", "DEBUG": "true"}
    line = [sys.executable, "-c", SHOW]
    return subprocess.run(line, env=environment, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )


@pytest.mark.parametrize(
    ("text", "name", "newest"),
    [
        ("# version 2001b\n", "tzdata.zi", tzdata.IANA_VERSION),
        ("# version 2999b\n", "tzdata.zi", "2999b"),
        ("2999c\n", "+VERSION", "2999c"),
        ("no version\n", "tzdata.zi", tzdata.IANA_VERSION),
    ],
)
def test_it_uses_the_newest_rules_in_every_process(tmp_path, text, name, newest):
    hours = 1 if newest == tzdata.IANA_VERSION else 9
    assert shown(folder(tmp_path / "machine", text, name))[:2] == [f"{newest} {hours} {hours}"] * 2


def test_it_uses_the_newest_of_several_folders(tmp_path):
    older = folder(tmp_path / "older", "# version 2001b\n")
    newer = folder(tmp_path / "newer", "# version 2999b\n")
    assert shown(older, tmp_path / "missing", newer)[0] == "2999b 9 9"
    assert shown(tmp_path / "missing")[0] == f"{tzdata.IANA_VERSION} 1 1"


def test_it_calls_rules_old_after_a_year(monkeypatch):
    now = datetime(2026, 11, 30, tzinfo=UTC)
    assert [zones.is_old(version, now) for version in ("2024b", "2025a", "2026f", "")] == [True, False, False, False]
    assert checks.zone_rules() == []
    monkeypatch.setattr(zones, "_versions", dict.fromkeys(zones._versions, "2001a"))
    (warning,) = checks.zone_rules()
    assert (warning.id, "version 2001a" in warning.msg) == ("jobs.W002", True)
