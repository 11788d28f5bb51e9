"""Mail from real workers: killed while they send, cancelled while they wait; and a report mailed as a link."""

import re
from collections.abc import Iterator
from urllib.parse import urlsplit
from uuid import uuid4

import psutil
import pytest
from django_celery_beat.models import PeriodicTask

from jobs.beat.rescue import rescue
from jobs.ledger import outbox, outcomes
from jobs.models import Attempt, Delivery, Run, State
from jobs.toolkit import mail
from tests.live.conftest import SHORT_LEASE
from tests.making import ends, make_run, make_schedule
from tests.post import Post

pytestmark = pytest.mark.django_db(transaction=True)

ALL = [f"{number}@example.org" for number in range(12)]


@pytest.fixture
def post() -> Iterator[Post]:
    with Post() as post:
        yield post


def make_sent(task: str, schedule: PeriodicTask | None = None, **kwargs: object) -> Run:
    """A run with these arguments, handed to the broker."""
    run = make_run(schedule, task=task, kwargs=kwargs)
    outbox.send([run])
    return run


def over(run: Run) -> bool:
    """Whether the run has ended, after a rescue and a send as beat does them."""
    rescue()
    outbox.send_waiting()
    return ends(run)


def in_state(state: str) -> set[str]:
    return set(Delivery.objects.filter(state=state).values_list("address", flat=True))


def test_it_sends_to_no_address_twice_when_its_process_is_killed_repeatedly(processes, eventually, post):
    worker = processes.start_worker("--concurrency=1", env={"EMAIL_URL": post.url})

    def kill() -> None:
        for child in psutil.Process(worker.pid).children():
            child.kill()

    before, after = {ALL[2]}, {ALL[5], ALL[11]}  # before the server has the message; after, but before it replies
    post.answers |= dict.fromkeys((("RCPT", address) for address in before), kill)
    post.answers |= dict.fromkeys((("DATA", address) for address in after), kill)
    post.answers["RCPT", ALL[8]] = "550 no such user"
    patient = make_schedule(policy={"max_attempts": 4})
    arguments = {"subject": "Hello", "text": "Text", "recipients": ALL, "per_minute": 6000}
    run = make_sent("jobs.send_bulk_email", patient, **arguments)
    eventually(lambda: over(run))
    assert (run.state, run.attempt) == (State.SUCCEEDED, 4)
    assert [attempt.outcome for attempt in run.attempts.all()] == [Attempt.Outcome.LOST] * 3
    assert post.given == [address for address in ALL if address not in {*before, ALL[8]}]
    assert in_state("sending") == before | after
    assert in_state("refused") == {ALL[8]}
    assert in_state("sent") == {*ALL} - before - after - {ALL[8]}
    assert "8 sent, 1 refused, 3 in doubt." in run.logs.get(attempt=4).text


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_it_ends_at_once_when_it_is_cancelled_while_it_waits(processes, eventually, post, pool):
    worker = processes.start_worker(f"--pool={pool}", env={**SHORT_LEASE, "EMAIL_URL": post.url})
    arguments = {"subject": "Hello", "text": "Text", "recipients": ALL, "per_minute": 1}
    run = make_run(task="jobs.send_bulk_email", kwargs=arguments)
    digest = mail.Message("Hello", "Text").digest  # an earlier attempt has just sent it to this address
    Delivery.objects.create(id=uuid4(), run=run, message=digest, address="earlier@example.org", state="sent")
    outbox.send([run])
    eventually(lambda: Run.objects.filter(id=run.id, progress_message="sending").exists())
    outcomes.cancel(Run.objects.filter(id=run.id), "by ada")
    eventually(lambda: ends(run))
    assert (run.state, run.reason) == (State.CANCELLED, "cancelled: by ada")
    assert "did not end when asked to" not in worker.log
    assert post.given == []


def test_it_mails_a_link_that_opens_the_report(processes, eventually, post, client):
    make_run(make_schedule("nightly"), State.SUCCEEDED)
    processes.start_worker("--concurrency=1", env={"EMAIL_URL": post.url})
    run = make_sent("jobs.report", query="runs by outcome", formats="both", mail_to=["ada@example.org"])
    eventually(lambda: ends(run))
    assert run.state == State.SUCCEEDED, run.error_text
    (letter,) = (letter for _, letter in post.letters)
    csv, pdf = (client.get(urlsplit(link).path) for link in re.findall(r"http\S+", letter.get_content()))
    assert csv["Content-Disposition"] == f'attachment; filename="runs by outcome {run.due_at:%Y-%m-%d %H%M}.csv"'
    assert '"nightly","succeeded",1' in csv.getvalue().decode("utf-8-sig")
    assert pdf.getvalue().startswith(b"%PDF")
