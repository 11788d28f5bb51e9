"""Do the benchmarks still run? Their figures need a quiet machine and a reader."""

import re
import subprocess
import sys

from tests.servers import ROOT
from tests.waiting import DEADLINE


def _measure(*names: str) -> str:
    """The output of `--quick` for these benchmarks."""
    chosen = [argument for name in names for argument in ("--only", name)]
    command = [sys.executable, "-m", "benchmarks", "--quick", *chosen]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3 * DEADLINE, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_measures_both_schedulers_side_by_side(servers, redis):
    printed = _measure("queries", "idle")
    figures = dict(re.findall(r"^  (\S.+?)  +(Punctual \S+ .*; django-celery-beat \S+ .*)$", printed, re.MULTILINE))
    assert set(figures) == {"for each run", "CPU %", "CPU % in PostgreSQL", "MB"}
    assert float(re.search(r"= (\S+) x$", figures["for each run"])[1]) > 5


def test_it_measures_workers_with_and_without_the_ledger(servers, redis):
    printed = _measure("drain", "latency")
    figures = dict(re.findall(r"^  (\S.+?)  +(Punctual \S+ .*; Celery without history \S+ .*)$", printed, re.MULTILINE))
    assert set(figures) == {"per second", "p50, ms", "p99, ms"}
    assert {"delay() beside Punctual", "django-celery-results"} < set(re.findall(r"; (\D+?) \d", figures["per second"]))


def test_it_measures_a_statement_that_is_compiled_once(servers, redis):
    assert re.search(r"^  us of CPU +Punctual \S+ .*; compiled each time \S+ ", _measure("statements"), re.MULTILINE)


def test_it_measures_each_way_to_hold_a_large_table(servers, redis):
    ways = r"Redis \S+ .*; Resource, preloaded \S+ .*; MappedResource \S+ .*"
    figures = re.findall(rf"^  (\S.+?)  +{ways}$", _measure("resources"), re.MULTILINE)
    assert figures == ["first look-up, s", "later look-ups, us", "MB"]


def test_it_measures_chunks_beside_single_tasks(servers, redis):
    messages = re.search(r"^  messages +(.*)$", _measure("fan_out"), re.MULTILINE)[1]
    taken = dict(re.findall(r"([^;]+?) ([\d,.]+) \[", messages))
    assert {who.strip(): float(number.replace(",", "")) for who, number in taken.items()} == {
        "Punctual": 12,
        "chunks of 1,000": 3,
        "one step for each": 52,
        "one delay() for each": 1_000,
    }


def test_it_measures_the_deletion_of_old_runs(servers, redis):
    printed = _measure("retention")
    figures = re.findall(r"^  (\S.+?)  +Punctual \S+ .*; one DELETE in SQL \S+ .*$", printed, re.MULTILINE)
    assert figures == ["seconds", "MB of WAL"]


def test_it_measures_changes_of_many_schedules_in_portions_and_all_at_once(servers, redis):
    printed = _measure("shared", "outage")
    figures = re.findall(r"^  (\S.+?)  +Punctual \S+ .*; all at once \S+ .*$", printed, re.MULTILINE)
    wanted = ["save, s", "longest step of beat, s", "all recorded, s", "longest transaction, s"]
    assert sorted(figures) == sorted(wanted)


def test_it_measures_requests_that_start_jobs_beside_delay_and_loses_none(servers, redis):
    printed = _measure("requests", "clients", "cut_off")
    figures = re.findall(r"^  (\S.+?)  +Punctual (\S+) .*; delay\(\) in a view (\S+) .*$", printed, re.MULTILINE)
    times, counts = ["p50, ms", "p95, ms", "p99, ms"], ["accepted", "ran", "ran twice"]
    assert [name for name, *_ in figures] == [*times, "per second", *times, *counts, *times, *counts]
    number, cut_off = ({name: float(ours) for name, ours, _ in figures[start : start + 3]} for start in (7, 13))
    assert number == {"accepted": 40, "ran": 40, "ran twice": 0}
    assert cut_off == {"accepted": 8, "ran": 8, "ran twice": 0}
    assert float(figures[13][2]) == 0  # without its broker, the plain view answers with an error


def test_it_measures_signed_webhooks(servers, redis):
    figures = re.findall(r"^  (\S.+?)  +Punctual [\d.,]+ \[", _measure("hooks"), re.MULTILINE)
    assert figures == ["p50, ms", "p95, ms", "p99, ms"]


def test_it_measures_scrapes_beside_a_long_history(servers, redis):
    printed = _measure("metrics")
    figures = re.findall(r"^  (\S+) +Punctual [\d.,]+ \[", printed, re.MULTILINE)
    assert figures == ["ms", "samples", "ms"]


def test_it_refuses_an_unknown_benchmark():
    command = [sys.executable, "-m", "benchmarks", "--only", "everything"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 2
    assert "invalid choice: 'everything'" in done.stderr
