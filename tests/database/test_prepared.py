"""A prepared statement does what Django's own would do, for other values than it was made with, too."""

from uuid import uuid4

import pytest
from django.db.models import F
from django.db.models.functions import Now

from jobs.models import Run
from jobs.models.prepared import Exist, Update
from tests.making import make_run

pytestmark = pytest.mark.django_db


def _marking(run_id, attempt, worker):
    runs = Run.objects.filter(id=run_id, attempt=attempt)
    return runs, {"worker": worker, "started_at": Now(), "sends": F("sends") + 1}


def test_it_changes_the_rows_that_it_is_told_each_time_anew(django_assert_num_queries):
    update, runs = Update(_marking), [make_run() for _ in range(3)]
    with django_assert_num_queries(4):
        assert [update(run.id, 1, f"w{number}") for number, run in enumerate(runs[:2])] == [1, 1]
        assert update(uuid4(), 1, "nobody") == 0
        assert update(runs[0].id, 1, "") == 1
    rows = Run.objects.in_bulk([run.id for run in runs])
    assert [(rows[run.id].worker, rows[run.id].sends) for run in runs] == [("", 2), ("w1", 1), ("", 0)]
    assert rows[runs[0].id].started_at is not None


def test_it_refuses_other_values_than_it_was_made_for():
    update, run = Update(_marking), make_run()
    update(run.id, 1, "w")
    with pytest.raises(ValueError, match="zip"):
        update(run.id, 1)


def _waiting(run_id, attempt):
    return Run.objects.filter(id=run_id, attempt=attempt)


def test_it_looks_for_the_rows_that_it_is_told_each_time_anew(django_assert_num_queries):
    exist, run = Exist(_waiting), make_run()
    with django_assert_num_queries(3):
        assert [exist(run.id, 1), exist(run.id, 2), exist(uuid4(), 1)] == [True, False, False]
