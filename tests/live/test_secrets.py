"""After a job leaks a secret, no table, log, reply or broker holds it."""

import base64
import json
import subprocess
from collections.abc import Iterator
from contextlib import closing

import pytest
from django.apps import apps
from django.db import connection
from redis.client import PubSub

from jobs.models import ACTIVE, Run, RunLog, State
from tests.app.slips import forms
from tests.live.conftest import CELERY, Processes
from tests.making import send
from tests.servers import ROOT
from tests.waiting import DEADLINE

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("standing")]

# As long as a token that a cut could leak, with characters that programs quote in different ways.
CANARY = f"Canary-{'a1b2' * 370}-é\"'<&>\\/+ end"
PIECES = "hunter2-piece"
RAISED = ("text", "long", "longer", "bytes", "dict", "words", "exit")
WAYS = (*RAISED, "printed", "printed in pieces", "printed in one long line", "logged", "reported")


@pytest.fixture(scope="module", autouse=True)
def _worker_and_beat(standing: Processes) -> None:
    standing.start_worker("--task-events", env={"JOB_SECRET_CANARY": CANARY})
    standing.start_beat()


def traces() -> Iterator[str]:
    """Parts of each form of the secret, in lower case, long enough to be no coincidence."""
    yield from ("a1b2a1b2", PIECES, base64.b64encode(PIECES.encode()).decode().lower())
    for form in forms(CANARY):
        middle = len(form) // 2
        yield form[middle : middle + 24].lower()


def tables() -> Iterator[tuple[str, str]]:
    """Each table, with all of its rows as text."""
    for model in apps.get_models(include_auto_created=True):
        with connection.cursor() as cursor:
            cursor.execute(f'SELECT * FROM "{model._meta.db_table}"')
            yield model._meta.db_table, "\n".join(str(row) for row in cursor.fetchall())


def events_of(subscribed: PubSub) -> str:
    """All events until now, decoded."""
    found = []
    with closing(subscribed):
        while event := subscribed.get_message(timeout=0.1):
            if event["type"] == "pmessage":
                found.append(base64.b64decode(json.loads(event["data"])["body"]).decode())
    return "\n".join(found)


def test_it_keeps_and_shows_a_secret_nowhere_whatever_a_job_does_with_it(standing, redis):
    subscribed = redis.pubsub()
    subscribed.psubscribe("*celeryev*")
    runs = [send("tests.slip", way) for way in WAYS]
    ids = [run.id for run in runs]
    standing.eventually(lambda: not Run.objects.filter(id__in=ids, state__in=ACTIVE).exists())
    worker = standing._started[0]
    command = [*CELERY, "inspect", "--json", "query_task", *map(str, ids)]
    asked = subprocess.run(
        command, cwd=ROOT, env=standing.environment, capture_output=True, text=True, timeout=DEADLINE, check=True
    )
    kept = {"the worker's log": worker.log, "a reply": asked.stdout, **dict(tables())}
    events = events_of(subscribed)
    assert "task-failed" in events
    kept |= {"an event": events}
    kept |= {f"the key {key!r}": str(redis.dump(key)) for key in redis.scan_iter()}
    found = [(where, trace[:30]) for where, text in kept.items() for trace in traces() if trace in text.lower()]
    assert sorted({where for where, _ in found}) == [], found
    ended = Run.objects.in_bulk(ids)
    states = {way: ended[key] for way, key in zip(WAYS, ids, strict=True)}
    assert {way for way, run in states.items() if run.state == State.SUCCEEDED} == {*WAYS} - {*RAISED}
    logs = {way: "".join(RunLog.objects.filter(run=run).values_list("text", flat=True)) for way, run in states.items()}
    assert logs["printed in pieces"] == "password: ***\napi_key=***"
    assert logs["printed"].splitlines()[:2] == ["***", "***"]
    assert logs["printed"].endswith("it is ***\n")
    assert logs["logged"].count("It is ") == len(forms(CANARY))
    assert states["longer"].reason.startswith("tests.app.slips.SlipError: xxx")
