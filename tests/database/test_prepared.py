"""A prepared statement does the same as Django's own, with new values in each execution."""

from datetime import timedelta
from uuid import uuid4

import pytest
from django.db.models import CharField, DurationField, F, IntegerField, UUIDField
from django.db.models.functions import Now

from jobs.models import Run, database_now
from jobs.models.prepared import Exist, Update, UpdateReturning
from tests.making import make_run, make_schedule

pytestmark = pytest.mark.django_db


FIELDS = {"run_id": UUIDField(), "attempt": IntegerField()}


def _marking(run_id, attempt, node):
    runs = Run.objects.filter(id=run_id, attempt=attempt)
    return runs, {"node": node, "started_at": Now(), "sends": F("sends") + 1}


def test_it_changes_other_rows_with_each_execution(django_assert_num_queries):
    update, runs = Update(_marking, FIELDS | {"node": CharField()}), [make_run() for _ in range(3)]
    with django_assert_num_queries(4):
        assert [update(run_id=run.id, attempt=1, node=f"w{number}") for number, run in enumerate(runs[:2])] == [1, 1]
        assert update(run_id=uuid4(), attempt=1, node="w") == 0
        assert update(run_id=runs[0].id, attempt=1, node="") == 1
    rows = Run.objects.in_bulk([run.id for run in runs])
    assert [(rows[run.id].node, rows[run.id].sends) for run in runs] == [("", 2), ("w1", 1), ("", 0)]
    assert rows[runs[0].id].started_at is not None


def test_it_refuses_to_execute_without_one_of_its_values():
    update, run = Update(_marking, FIELDS | {"node": CharField()}), make_run()
    with pytest.raises(KeyError, match="node"):
        update(run_id=run.id, attempt=1)


def _lending(run_id, lease):
    return Run.objects.filter(id=run_id), {"lease_until": Now() + lease}


def test_it_converts_durations_for_each_database():
    lend, run = Update(_lending, {"run_id": UUIDField(), "lease": DurationField()}), make_run()
    for seconds in (60, 3600):
        lend(run_id=run.id, lease=timedelta(seconds=seconds))
        run.refresh_from_db()
        assert abs(run.lease_until - database_now() - timedelta(seconds=seconds)) < timedelta(seconds=30)


def test_it_returns_a_column_of_each_changed_row():
    schedule = make_schedule()
    update = UpdateReturning(_marking, FIELDS | {"node": CharField()}, "schedule_id")
    assert update.rows(run_id=make_run(schedule).id, attempt=1, node="w") == [schedule.pk]
    assert update.rows(run_id=make_run().id, attempt=1, node="w") == [None]
    assert update.rows(run_id=uuid4(), attempt=1, node="w") == []


def _waiting(run_id, attempt):
    return Run.objects.filter(id=run_id, attempt=attempt)


def test_it_finds_other_rows_with_each_execution(django_assert_num_queries):
    exist, run = Exist(_waiting, FIELDS), make_run()
    with django_assert_num_queries(3):
        assert [exist(run_id=key, attempt=n) for key, n in ((run.id, 1), (run.id, 2), (uuid4(), 1))] == [
            True,
            False,
            False,
        ]
