"""No queue of a schedule stops other jobs, even if kombu uses its name or Redis has another key of this name."""

import subprocess

import pytest
from django_celery_beat.models import PeriodicTask

from jobs.models import Policy, Run, State
from tests.live.conftest import CELERY
from tests.making import make_due, make_schedule
from tests.servers import ROOT
from tests.waiting import DEADLINE

pytestmark = pytest.mark.django_db(transaction=True)

REFUSED = [
    *("unacked", "unacked_index", "unacked_mutex", "_kombu.binding.celery", "_kombu.binding_deadlines", "ae.undeliver"),
    *("celeryev", "celery.pidbox", "worker0@localhost.celery.pidbox", "punctual:1:value", "celery\x06\x163"),
]


def test_it_runs_all_other_schedules(processes, eventually, redis):
    redis.set("other", "text")
    bad = [make_schedule(name, task="jobs.heartbeat") for name in (*REFUSED, "other")]
    good = [make_schedule(f"good {number}", task="jobs.heartbeat") for number in range(3)]
    for schedule in bad:
        PeriodicTask.objects.filter(pk=schedule.pk).update(queue=schedule.name)  # as SQL may
    worker = processes.start_worker("--pool=solo")
    beat = processes.start_beat()

    def succeeded() -> int:
        return Run.objects.filter(schedule__in=good, state=State.SUCCEEDED).count()

    for times in (1, 2):
        for schedule in (*bad, *good):
            make_due(schedule)
        eventually(lambda times=times: succeeded() == times * len(good))
    failed = Run.objects.filter(state=State.FAILED)
    assert {run.schedule_name for run in failed} == {"other"}
    assert all("WRONGTYPE" in run.reason for run in failed)
    assert Policy.objects.exclude(invalid_reason="").count() == len(REFUSED)
    assert redis.type("other") == b"string"
    assert not Run.objects.filter(state__in=[State.WAITING, State.QUEUED]).exists()

    PeriodicTask.objects.filter(pk__in=[schedule.pk for schedule in bad]).delete()
    worker.stop()
    processes.start_worker("--pool=solo", env={"QUEUES": "slow,mail"})
    PeriodicTask.objects.filter(pk=good[1].pk).update(queue="slow")
    for schedule in good:
        make_due(schedule)
    eventually(lambda: succeeded() == 3 * len(good))
    assert beat.running


def test_it_starts_no_worker_for_a_refused_queue(processes):
    command = [*CELERY, "worker", "--pool=solo", "--queues", "celery,unacked"]
    ended = subprocess.run(
        command, cwd=ROOT, env=processes.environment, capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert ended.returncode == 1
    assert "Choose another queue than 'unacked'" in ended.stderr + ended.stdout
    assert "Traceback" not in ended.stderr + ended.stdout
