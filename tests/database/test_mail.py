"""Does each address get a message once, whatever the mail server replies, and does a run know who did not get it?

The server is a real one on loopback. An attempt of a run is a call in this process, as a worker makes it.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from queue import SimpleQueue
from typing import Any, TypeVar
from uuid import uuid5

import pytest
from billiard.pool import soft_timeout_sighandler
from celery.exceptions import SoftTimeLimitExceeded
from django.core import mail as django_mail
from django.db import connection, transaction
from django.urls import reverse

from jobs.mail import smtp
from jobs.models import Delivery, Run, State, database_now
from jobs.tasks.cleanup import cleanup
from jobs.tasks.send_bulk_email import send_bulk_email
from jobs.tasks.send_email import send_email
from jobs.toolkit import mail
from tests.making import inside, make_run
from tests.post import BREAK_OFF, LEAVE, Post
from tests.waiting import DEADLINE

T = TypeVar("T")

pytestmark = pytest.mark.django_db(transaction=True)

ADA, BOB, CAT, DAN = (f"{name}@example.org" for name in ("ada", "bob", "cat", "dan"))
MESSAGE = mail.Message("Hello", "How are you?")


@pytest.fixture
def post(settings: Any) -> Iterator[Post]:
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.DEFAULT_FROM_EMAIL = "Punctual <punctual@example.org>"
    with Post() as post:
        settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", post.port
        yield post


@pytest.fixture
def run() -> Run:
    return make_run(None, State.RUNNING)


def attempt(run: Run, *addresses: str, message: mail.Message = MESSAGE) -> dict[str, int]:
    """Send as an attempt of the run does."""
    with inside(run):
        return mail.send(message, addresses)


def in_thread(call: Callable[[], T]) -> T:
    """The result of the call in a separate thread, and so on a separate database connection."""

    def on_own_connection() -> T:
        with closing(connection):
            return call()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(on_own_connection).result(DEADLINE)


def interrupt() -> None:
    """Ask the attempt in the main thread to end, as a worker does."""
    signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)


@contextmanager
def interruptible() -> Iterator[None]:
    before = signal.signal(signal.SIGUSR1, soft_timeout_sighandler)
    yield
    signal.signal(signal.SIGUSR1, before)


def counts(sent: int = 0, refused: int = 0, in_doubt: int = 0) -> dict[str, int]:
    return {"sent": sent, "refused": refused, "in_doubt": in_doubt}


def states() -> dict[str, str]:
    return dict(Delivery.objects.values_list("address", "state"))


# --- Messages -------------------------------------------------------------------------------------------------------


def test_it_sends_each_address_a_separate_message(post, run):
    with inside(run):
        assert send_email([ADA, BOB], "Grüße", "How are you?", "<p>How are you?</p>") == counts(sent=2)
    assert post.given == [ADA, BOB]
    for address, letter in post.letters:
        assert (letter["To"], letter["Subject"]) == (address, "Grüße")
        assert letter["From"] == "Punctual <punctual@example.org>"
        assert letter["Message-ID"] == f"<{Delivery.objects.get(address=address).id}@example.org>"
        assert letter["Auto-Submitted"] == "auto-generated"
        assert [part.get_content().strip() for part in letter.iter_parts()] == ["How are you?", "<p>How are you?</p>"]


def test_it_sends_only_text_when_there_is_no_html(post):
    send_email([ADA], "Hello", "How are you?\n.\nFine.")
    letter = post.letters[0][1]
    assert letter.get_content_type() == "text/plain"
    assert letter.get_content().splitlines() == ["How are you?", ".", "Fine."]


def test_it_sends_to_an_address_once_when_it_is_listed_in_several_spellings(post, run):
    assert attempt(run, ADA, BOB, "ada@EXAMPLE.org", f" {ADA} ", "ADA@example.org") == counts(sent=3)
    assert post.given == [ADA, BOB, "ADA@example.org"]


def test_it_sends_through_the_backend_that_is_set(settings, run):
    settings.EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
    django_mail.outbox = []
    assert attempt(run, ADA, "invalid") == counts(sent=1, refused=1)
    assert [letter.to for letter in django_mail.outbox] == [[ADA]]


def test_it_sends_to_no_address_outside_of_the_allowed_domains(post, run, settings):
    settings.MAIL_DOMAINS = ["example.org"]
    assert attempt(run, ADA, "eve@evil.example") == counts(sent=1, refused=1)
    assert post.given == [ADA]
    assert "MAIL_DOMAINS allows example.org" in Delivery.objects.get(state="refused").reason


def test_it_keeps_no_row_outside_a_run(post):
    for _ in range(2):
        assert mail.send(MESSAGE, [ADA, "invalid"]) == counts(sent=1, refused=1)
    assert post.given == [ADA, ADA]
    assert post.letters[0][1]["Message-ID"] != post.letters[1][1]["Message-ID"]
    assert not Delivery.objects.exists()


# --- Refused addresses ----------------------------------------------------------------------------------------------


def test_it_goes_on_when_an_address_is_bad(post, run, caplog):
    post.answers["RCPT", BOB] = f"550 5.1.1 <{BOB}>: no such user"
    post.answers["DATA", CAT] = "554 looks like spam"
    bad = ["invalid", f"{ADA}\nBcc: {DAN}", "", "ü@example.org", "x" * 5000, "nul\0@example.org", "\ud800@example.org"]
    with inside(run):
        assert send_bulk_email("Hello", "Text", [*bad, ADA, BOB, CAT, DAN], per_minute=6000) == counts(2, len(bad) + 1)
    assert post.given == [ADA, DAN]
    reasons = dict(Delivery.objects.filter(state="refused").values_list("address", "reason"))
    assert (reasons[BOB], reasons[CAT]) == (f"550 5.1.1 <{BOB}>: no such user", "554 looks like spam")
    assert "not a mail address" in reasons["invalid"]
    assert f"b…@example.org is refused: message {Delivery.objects.get(address=BOB).id}." in caplog.messages
    logged = " ".join(record.getMessage() for record in caplog.records if record.name.startswith("jobs"))
    assert not any(address in logged for address in (ADA, BOB, CAT, DAN))


def test_it_fails_when_no_address_is_reached(post, run):
    post.answers["RCPT", ""] = "550 no"
    for _ in range(2):
        with pytest.raises(mail.NobodyReachedError, match="No address was reached: 2 refused, 0 in doubt"):
            attempt(run, ADA, BOB)
    assert states() == {ADA: "refused", BOB: "refused"}


def test_it_succeeds_when_there_are_no_addresses(run):
    assert attempt(run) == counts()


def test_it_says_so_when_it_gets_neither_recipients_nor_a_query():
    with pytest.raises(ValueError, match="no addresses to send to"):
        send_bulk_email("Hello", "Text")


@pytest.mark.parametrize(
    "arguments",
    [{"to": []}, {"to": [ADA, "invalid"]}, {"to": [ADA] * 101}, {"subject": ""}, {"subject": "a\nb"}, {"text": ""}],
)
def test_it_sends_nothing_when_an_argument_is_bad(post, arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        send_email(**{"to": [ADA], "subject": "Hello", "text": "Text", **arguments})
    assert post.given == []


def test_it_refuses_more_addresses_than_it_may_hold_in_memory(post):
    with pytest.raises(mail.MailError, match="more than 100,000 addresses"):
        mail.send(MESSAGE, (f"{number}@example.org" for number in range(mail.MOST_ADDRESSES + 1)))
    assert post.given == []


# --- Never twice ----------------------------------------------------------------------------------------------------


def test_it_sends_a_message_once_in_all_attempts_of_a_run(post, run):
    attempt(run, ADA)
    assert attempt(run, ADA, BOB) == counts(sent=2)
    assert post.given == [ADA, BOB]


def test_it_does_not_connect_when_everything_is_sent(post, run, settings):
    attempt(run, ADA)
    settings.EMAIL_PORT = 1
    assert attempt(run, ADA) == counts(sent=1)


def test_it_sends_again_when_the_message_or_the_run_is_another(post, run):
    attempt(run, ADA)
    attempt(run, ADA, message=mail.Message("Hello", "And now?"))
    attempt(make_run(None, State.RUNNING), ADA)
    assert post.given == [ADA, ADA, ADA]


def test_it_sends_once_when_two_messages_have_the_same_name(post, run):
    attempt(run, ADA, message=mail.Message("1", "a link", name="report"))
    assert attempt(run, ADA, message=mail.Message("2", "another link", name="report")) == counts(sent=1)
    assert post.given == [ADA]


@pytest.mark.parametrize("command", ["RCPT", "DATA"])
def test_it_leaves_an_address_in_doubt_when_the_attempt_ends_at_it(post, run, caplog, command):
    post.answers[command, BOB] = interrupt
    with interruptible(), pytest.raises(SoftTimeLimitExceeded):
        attempt(run, ADA, BOB, CAT)
    assert states() == {ADA: "sent", BOB: "sending"}
    post.answers.clear()
    assert attempt(run, ADA, BOB, CAT) == counts(sent=2, in_doubt=1)
    assert post.given == ([ADA, CAT] if command == "RCPT" else [ADA, BOB, CAT])
    assert f"b…@example.org is in doubt: message {Delivery.objects.get(address=BOB).id}." in caplog.messages


def test_it_sends_quit_when_the_attempt_is_over(post, run):
    attempt(run, ADA)
    assert post.quits == 1


def test_it_does_not_wait_for_the_server_when_an_exception_ends_the_attempt(post, run, settings):
    settings.EMAIL_TIMEOUT = 2 * DEADLINE  # so that only the exception can end the wait
    is_over, in_time = threading.Event(), SimpleQueue()
    post.answers["RCPT", ADA] = lambda: interrupt() or in_time.put(is_over.wait(DEADLINE))
    with interruptible(), pytest.raises(SoftTimeLimitExceeded):
        attempt(run, ADA)
    is_over.set()
    assert in_time.get(timeout=DEADLINE)


def test_it_commits_the_delivery_before_the_server_sees_the_message(post, run):
    seen: list[dict[str, str]] = []
    post.answers["MAIL", ""] = lambda: seen.append(in_thread(states))
    attempt(run, ADA, BOB)
    assert seen == [{ADA: "sending"}, {ADA: "sent", BOB: "sending"}]


def test_it_skips_an_address_that_another_process_took_first(post, run):
    def take_bob() -> None:
        key = uuid5(run.id, f"{MESSAGE.digest} {BOB}")
        in_thread(lambda: Delivery.objects.create(id=key, run=run, message=MESSAGE.digest, address=BOB, state="sent"))

    post.answers["DATA", ADA] = take_bob
    assert attempt(run, ADA, BOB, CAT) == counts(sent=3)
    assert post.given == [ADA, CAT]


def test_it_sends_nothing_within_a_transaction(post, run):
    with pytest.raises(RuntimeError, match="durable"), transaction.atomic():
        attempt(run, ADA)
    assert post.given == []


# --- Trouble with the server ----------------------------------------------------------------------------------------


def test_it_continues_in_the_next_attempt_when_the_server_was_down(post, run, settings):
    attempt(run, ADA)
    settings.EMAIL_PORT = 1
    with pytest.raises(smtp.ServerError, match="EMAIL_URL"):
        attempt(run, ADA, BOB)
    assert states() == {ADA: "sent"}
    settings.EMAIL_PORT = post.port
    assert attempt(run, ADA, BOB) == counts(sent=2)
    assert post.given == [ADA, BOB]


@pytest.mark.parametrize("command", ["MAIL", "RCPT", "DATA"])
def test_it_leaves_an_address_in_doubt_when_the_server_breaks_off(post, run, command):
    answers = iter(["250 OK", BREAK_OFF])
    post.answers[command, ""] = lambda: next(answers, None)
    assert attempt(run, ADA, BOB, CAT) == counts(sent=2, in_doubt=1)
    assert states() == {ADA: "sent", BOB: "sending", CAT: "sent"}
    assert "closed" in Delivery.objects.get(address=BOB).reason


def test_it_gives_up_when_the_server_breaks_off_again_and_again(post, run):
    post.answers["RCPT", ""] = BREAK_OFF
    with pytest.raises(smtp.ServerError, match="broke off 3 times"):
        attempt(run, ADA, BOB, CAT, DAN)
    assert states() == {ADA: "sending", BOB: "sending", CAT: "sending"}


def test_it_goes_on_when_the_server_closes_the_connection_between_messages(post, run):
    post.answers["DATA", ADA] = LEAVE
    assert attempt(run, ADA, BOB) == counts(sent=2)
    assert post.given == [ADA, BOB]


@pytest.mark.parametrize(("command", "answer"), [("RCPT", "450 busy"), ("DATA", "451 later"), ("RCPT", "421 going")])
def test_it_tries_again_in_the_next_attempt_when_the_server_defers_an_address(post, run, command, answer):
    post.answers[command, BOB] = answer
    with pytest.raises(mail.DeferredError, match=f"deferred 1 of the messages \\({answer[:3]}\\)"):
        attempt(run, ADA, BOB, CAT)
    assert states() == {ADA: "sent", CAT: "sent"}
    post.answers.clear()
    assert attempt(run, ADA, BOB, CAT) == counts(sent=3)
    assert post.given == [ADA, CAT, BOB]


def test_it_tries_again_in_the_next_attempt_when_another_process_gives_an_address_back(post, run):
    key = uuid5(run.id, f"{MESSAGE.digest} {BOB}")

    def take_bob() -> None:
        in_thread(lambda: Delivery.objects.create(id=key, run=run, message=MESSAGE.digest, address=BOB))

    def give_bob_back() -> None:
        in_thread(lambda: Delivery.objects.filter(id=key).delete())

    post.answers |= {("DATA", ADA): take_bob, ("DATA", CAT): give_bob_back}
    with pytest.raises(mail.DeferredError, match=r"deferred 1 of the messages \(another process gave it back\)"):
        attempt(run, ADA, BOB, CAT)
    assert states() == {ADA: "sent", CAT: "sent"}


def test_it_leaves_no_address_in_doubt_when_the_server_refuses_the_sender(post, run):
    post.answers["MAIL", ""] = "553 who are you"
    with pytest.raises(smtp.ServerError, match=r"sender: 553 who are you\. Check DEFAULT_FROM_EMAIL"):
        attempt(run, ADA)
    assert states() == {}


def test_it_leaves_no_address_in_doubt_when_the_message_cannot_be_encoded(post, run):
    with pytest.raises(mail.NobodyReachedError, match="1 refused, 0 in doubt"):
        attempt(run, ADA, message=mail.Message("Hello", "\ud800"))
    assert "surrogates" in Delivery.objects.get().reason


def test_it_gives_up_when_the_server_does_not_answer(post, run, settings):
    settings.EMAIL_TIMEOUT = 1
    silence = threading.Event()
    post.answers["RCPT", ADA] = lambda: silence.wait(DEADLINE) and None
    with pytest.raises(smtp.ServerError, match="timed out"):
        attempt(run, ADA, BOB)
    silence.set()
    assert states() == {ADA: "sending"}


@pytest.mark.parametrize(("reply", "state"), [("554 no valid recipients", "refused"), ("451 later", None)])
def test_it_goes_on_when_the_server_rejects_the_data_command(post, run, reply, state):
    post.answers["DATA command", BOB] = reply
    with suppress(mail.DeferredError):
        attempt(run, ADA, BOB, CAT)
    assert post.given == [ADA, CAT]
    assert states().get(BOB) == state


# --- Deliveries -----------------------------------------------------------------------------------------------------


def test_it_deletes_deliveries_with_their_run(post):
    over = database_now() - timedelta(days=400)
    old = make_run(None, State.SUCCEEDED, finished_at=over)
    attempt(old, ADA)
    cleanup()
    assert states() == {}


def test_it_shows_refused_addresses_in_the_admin(post, run, admin_client):
    post.answers["RCPT", BOB] = "550 no such user"
    attempt(run, ADA, BOB)
    page = admin_client.get(reverse("admin:jobs_delivery_changelist"), {"state__exact": "refused"}).content.decode()
    assert BOB in page
    assert ADA not in page
    assert "550 no such user" in page
    assert reverse("admin:jobs_run_change", args=[run.id]) in page
