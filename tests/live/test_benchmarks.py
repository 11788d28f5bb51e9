"""Do the benchmarks still run? What they measure is for people and quiet machines to judge."""

import re
import subprocess
import sys

from tests.servers import ROOT


def test_it_measures_both_schedulers_side_by_side(servers, redis):
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", "queries", "--only", "idle"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    figures = dict(re.findall(r"^  (\S.+?)  +(Punctual \S+ .*; django-celery-beat \S+ .*)$", done.stdout, re.MULTILINE))
    assert set(figures) == {"for each run", "CPU %", "CPU % in PostgreSQL", "MB"}
    assert float(re.search(r"= (\S+) x$", figures["for each run"])[1]) > 5


def test_it_measures_each_way_to_have_a_large_table(servers, redis):
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", "resources"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    ways = r"Redis \S+ .*; Resource, preloaded \S+ .*; MappedResource \S+ .*"
    figures = re.findall(rf"^  (\S.+?)  +{ways}$", done.stdout, re.MULTILINE)
    assert figures == ["first look-up, s", "later look-ups, us", "MB"]


def test_it_measures_chunks_beside_single_tasks(servers, redis):
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", "fan_out"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    messages = re.search(r"^  messages +(.*)$", done.stdout, re.MULTILINE)[1]
    taken = dict(re.findall(r"([^;]+?) ([\d,.]+) \[", messages))
    assert {who.strip(): float(number.replace(",", "")) for who, number in taken.items()} == {
        "Punctual": 12,
        "chunks of 1,000": 3,
        "one step for each": 52,
        "one delay() for each": 1_000,
    }


def test_it_refuses_a_measurement_that_does_not_exist():
    command = [sys.executable, "-m", "benchmarks", "--only", "everything"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "invalid choice: 'everything'" in done.stderr
