"""The metrics after a real beat and a real worker ran jobs: every figure compared with the rows of the ledger."""

import sys
from collections import Counter
from datetime import datetime, timedelta
from http.client import HTTPConnection

import pytest
from django_celery_beat.models import PeriodicTask
from prometheus_client.parser import text_string_to_metric_families

from jobs.models import TERMINAL, Node, Run, State, Trigger, Watch, database_now
from jobs.monitoring import tallies
from tests.making import make_due, make_schedule, run_now
from tests.waiting import DEADLINE

TOKEN = "canary-of-metrics"
COUNTED_AFTER = timedelta(seconds=30)  # after their end, the watch counts runs
AGES = {"punctual_watch_age_seconds", "punctual_queue_oldest_seconds"}  # they grow from scrape to scrape

pytestmark = pytest.mark.django_db(transaction=True)


def scrape(port: int, token: str = TOKEN) -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    try:
        connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {token}", "Host": "10.0.0.7"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def samples(text: str) -> dict[tuple[str, ...], float]:
    families = text_string_to_metric_families(text)
    return {(each.name, *values(each.labels)): each.value for family in families for each in family.samples}


def values(labels: dict[str, str]) -> list[str]:
    """The values of labels: that of the job first."""
    return [labels[name] for name in sorted(labels, key=lambda name: (name != "task", name))]


def start_site(processes) -> list[int]:
    """Two web processes, each with one worker; returns their ports."""
    env = {"METRICS_TOKEN": TOKEN, "ALLOWED_HOSTS": "punctual.example", "HTTPS": "true"}
    command = [sys.executable, "-m", "gunicorn", "project.wsgi", "--bind=127.0.0.1:0", "--workers=1", "--threads=2"]
    sites = [processes._start("web", command, env, ready="Booting worker") for _ in range(2)]
    return [int(site.log.partition("Listening at: http://127.0.0.1:")[2].split()[0]) for site in sites]


def lengths_of(runs: list[Run]) -> dict[tuple[str, str], list[float]]:
    """For each histogram and job: what its runs measure, by their rows."""
    found: dict[tuple[str, str], list[float]] = {}

    def note(metric: str, run: Run, length: timedelta) -> None:
        found.setdefault((f"punctual_{metric}_seconds", run.task), []).append(max(length.total_seconds(), 0))

    for run in runs:
        if run.started_at is None or run.finished_at is None:
            continue
        note(tallies.DURATION, run, run.finished_at - run.started_at)
        if run.attempt == 1:
            note(tallies.QUEUE_WAIT, run, run.started_at - (run.queued_at or run.started_at))
            if run.trigger == Trigger.SCHEDULE:
                note(tallies.LATENESS, run, run.started_at - run.due_at)
    return found


def run_jobs(processes, file: str) -> None:
    """Let a real beat and a real worker run jobs of each kind; returns when all that can end has ended."""
    beat, worker = processes.start_beat(), processes.start_worker()
    schedules = [make_schedule(f"it {number}") for number in range(4)]
    schedules.append(make_schedule("fails", task="tests.fail", args=["no"]))
    schedules.append(make_schedule("again", task="tests.flaky", args=[file, 1], policy={"max_attempts": 2}))
    schedules.append(make_schedule("unknown", task="tests.does_not_exist"))
    for schedule in schedules:
        make_due(schedule, ago=timedelta(minutes=2))
    for schedule in schedules[:2]:
        run_now(schedule)
    waiting = run_now(make_schedule("slow", queue="unattended"))
    scheduled = Run.objects.filter(trigger=Trigger.SCHEDULE)
    processes.eventually(lambda: scheduled.values("schedule").distinct().count() == len(schedules))
    processes.eventually(lambda: not Run.objects.active().exclude(pk=waiting.pk).exists())
    processes.eventually(lambda: Run.objects.get(pk=waiting.pk).state == State.QUEUED)
    worker.stop()
    beat.stop()


def count_ended(since: datetime) -> None:
    """Count what the watch of beat has not counted yet."""
    seen_until = Watch.objects.values_list("seen_until", flat=True).first()
    counted = seen_until - COUNTED_AFTER if seen_until else since
    tallies.add_ended(max(since, counted), database_now() + timedelta(seconds=1))


def check_counts(found: dict[tuple[str, ...], float], runs: list[Run]) -> None:
    ended = Counter((run.task, run.state) for run in runs if run.state in TERMINAL - {State.SKIPPED})
    skipped: Counter[str] = Counter()
    for run in runs:
        skipped[run.task] += run.count if run.state == State.SKIPPED else 0
    assert {state for _, state in ended} == {State.SUCCEEDED, State.FAILED}
    assert skipped["tests.does_not_exist"] > 0
    assert {key[1:]: value for key, value in found.items() if key[0] == "punctual_runs_ended_total"} == dict(ended)
    of_skipped = {key[1]: value for key, value in found.items() if key[0] == "punctual_moments_skipped_total"}
    assert of_skipped == {task: number for task, number in skipped.items() if number}
    assert found["punctual_publish_failures_total",] == 0


def check_histograms(found: dict[tuple[str, ...], float], runs: list[Run]) -> None:
    histograms = lengths_of(runs)
    counts = {key for key in found if key[0].endswith("_seconds_count")}
    assert counts == {(f"{name}_count", task) for name, task in histograms}
    for (name, task), lengths in histograms.items():
        assert found[f"{name}_sum", task] == pytest.approx(sum(lengths))
        for bound in tallies.BOUNDS:
            assert found[f"{name}_bucket", task, str(bound)] == sum(length <= bound for length in lengths)
        assert found[f"{name}_bucket", task, "+Inf"] == found[f"{name}_count", task] == len(lengths)


def check_gauges(found: dict[tuple[str, ...], float]) -> None:
    assert found["punctual_schedules",] == PeriodicTask.objects.count() == found["punctual_schedules_enabled",]
    assert found["punctual_runs_active", "queued"] == found["punctual_queue_runs", "unattended"] == 1
    assert found["punctual_queue_consumers", "unattended"] == found["punctual_queue_runs", "celery"] == 0
    assert Node.objects.exclude(stopped_at=None).count() == 2
    assert not [key for key, value in found.items() if key[0] == "punctual_nodes" and value]


def test_it_agrees_with_the_rows_after_real_jobs_in_every_web_process(processes, tmp_path):
    begun = database_now()
    run_jobs(processes, str(tmp_path / "it"))
    count_ended(begun)
    runs = list(Run.objects.all())
    steady = []
    for port in start_site(processes):
        status, text = scrape(port)
        assert status == 200
        assert "canary" not in text
        found = samples(text)
        check_counts(found, runs)
        check_histograms(found, runs)
        check_gauges(found)
        steady.append({key: value for key, value in found.items() if key[0] not in AGES})
    assert steady[0] == steady[1]


def test_it_refuses_a_wrong_token_and_writes_none_to_the_log(processes):
    port, _ = start_site(processes)
    assert scrape(port, "wrong-canary")[0] == 401
    assert scrape(port)[0] == 200
    assert "canary" not in "".join(process.log for process in processes._started)
