"""With MESSAGE_KEYS, a worker executes only messages that this installation sent."""

import json
from typing import Any

import pytest
from celery import current_app

from jobs.ledger import outbox
from jobs.models import SetAside, State
from tests.making import ends, lines, make_run, send

pytestmark = pytest.mark.django_db(transaction=True)

KEY, OTHER = "k" * 40, "o" * 40
KINDS = ("chain", "chord", "nested", "chord_chain", "retried", "later")
ADDED: dict[str, Any] = {"punctual_attempt": 1, "punctual_step": ["x", 1], "chain": [], "is_eager": True, "retries": 3}


@pytest.fixture
def signed(settings, processes):
    """A worker that wants signatures, and senders that make them."""
    settings.MESSAGE_KEYS = [KEY]
    return processes.start_worker("--pool=solo", env={"MESSAGE_KEYS": KEY})


def published(redis, *args: Any, task: str = "tests.note", **options: Any) -> dict[str, Any]:
    """The message in a queue that no worker consumes."""
    current_app.send_task(task, list(args), queue="elsewhere", **options)
    return json.loads(redis.rpop("elsewhere"))


def push(redis, message: dict[str, Any]) -> None:
    redis.lpush("celery", json.dumps(message))


def test_it_executes_signed_messages_and_no_forgery(signed, settings, redis, eventually, tmp_path):
    path, never = tmp_path / "lines", str(tmp_path / "never")
    for part in ("headers", "properties"):
        for name in published(redis, never)[part]:
            if name not in {"delivery_info", "delivery_tag", "delivery_mode", "priority", "body_encoding"}:
                message = published(redis, never, task_id=f"{part}-{name}")
                message[part][name] = "changed" if message[part][name] != "changed" else "again"
                push(redis, message)
    for name, value in ADDED.items():
        message = published(redis, never)
        message["headers"][name] = value
        push(redis, message)
    message = published(redis, never)
    push(redis, {**message, "body": published(redis, never, "more")["body"]})
    push(redis, {**message, "content-encoding": "utf-16"})
    settings.MESSAGE_KEYS = [OTHER]
    push(redis, published(redis, never))
    settings.MESSAGE_KEYS = []
    push(redis, published(redis, never))
    run = make_run(task="tests.note", args=[never])
    outbox.send([run])
    settings.MESSAGE_KEYS = [KEY]
    current_app.send_task("tests.note", [str(path)], task_id="genuine", compression="gzip", priority=3)
    current_app.send_task("tests.note", [str(path)], task_id="plain")
    eventually(lambda: set(lines(path)) == {"genuine", "plain"})
    assert lines(tmp_path / "never") == []
    run.refresh_from_db()
    assert run.state == State.WAITING
    assert "set its message aside: it is not signed: give its sender this installation's MESSAGE_KEYS" in run.reason
    eventually(lambda: SetAside.objects.filter(why__startswith="it is not signed").exists())
    assert SetAside.objects.filter(why__startswith="its signature is wrong").count() > 20


def test_it_signs_runs_workflows_retries_and_replays_start_nothing(signed, redis, eventually, tmp_path):
    runs = {kind: send("tests.workflow", kind, str(tmp_path / kind)) for kind in KINDS}
    retried = send("tests.retry", str(tmp_path / "run"))
    replayed = make_run(task="tests.note", args=[str(tmp_path / "once")], queue="elsewhere")
    outbox.send([replayed])
    item = redis.rpop("elsewhere")
    for _ in range(3):
        redis.lpush("celery", item)
    for kind, run in {**runs, "once": replayed}.items():
        eventually(lambda run=run: ends(run))
        assert run.state == State.SUCCEEDED, (kind, run.reason)
    eventually(lambda: retried.refresh_from_db() or retried.attempt == 2)
    current_app.send_task("tests.note", [str(tmp_path / "after")], task_id="after")
    eventually(lambda: lines(tmp_path / "after"))
    assert lines(tmp_path / "once") == [str(replayed.id)]
    assert not SetAside.objects.exists()
