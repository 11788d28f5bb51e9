"""The tasks of the tests: they work, wait, fail, retry themselves, or kill their own process."""

import json
import logging
import math
import os
import signal
import time
from asyncio import CancelledError
from contextlib import suppress
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from celery import Signature, Task, chain, chord, current_app, group, shared_task
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from celery.utils.log import get_task_logger
from django.db import connection, transaction
from pydantic import BaseModel

from jobs.cache.resources import Resource
from jobs.models import FeedEntry
from jobs.toolkit import reveal, webhooks
from jobs.toolkit.current import current_run, once, progress
from jobs.toolkit.queries import Table, query
from jobs.worker.resources import ResourceTask
from tests.app import enqueued, loops, sessions, slips, workflows  # noqa: F401 - their tasks are found through this module
from tests.app.stamp import leave as leave_time
from tests.waiting import DEADLINE, eventually


@shared_task(name="tests.nothing")
def nothing(*args: Any, **kwargs: Any) -> None:
    """Do nothing, with any arguments."""


@shared_task(name="tests.note", bind=True)
def note(self: Task, path: str) -> None:
    """Write a line with the id of the run."""
    _append(path, self.request.id)


@shared_task(name="tests.note_webhook")
def note_webhook(webhook: str, path: str) -> None:
    """Write a line with what a webhook has sent."""
    sent = webhooks.read(webhook)
    _append(path, f"{sent.source}:{sent.event}:{sent.json()['number']}")


@shared_task(name="tests.hold", bind=True)
def hold(self: Task, path: str) -> None:
    """Report the start, wait until PATH.go exists, write a line with the id of the run."""
    _hold(path, self.request.id)


@shared_task(name="tests.report_and_hold", bind=True, ignore_result=False)
def report_and_hold(self: Task, path: str) -> dict[str, int]:
    """Like `hold`, with a line of log and a progress before, and a result."""
    logging.getLogger("tests").info("half way")
    progress(1, total=2, message="holding")
    _hold(path, self.request.id)
    return {"rows": 7}


@shared_task(name="tests.hold_late", bind=True, acks_late=True)
def hold_late(self: Task, path: str) -> None:
    """Like `hold`, but the message is acknowledged when the task is over."""
    _hold(path, self.request.id)


@shared_task(name="tests.say")
def say() -> None:
    """Log at three levels, with a password and a secret, also as Celery's documentation shows it."""
    logger = logging.getLogger("tests.say")
    logger.debug("in detail")
    logger.info("with password=hunter2")
    get_task_logger("tests.say.celery").info("to Celery's logger %s", reveal("secret:KEY"))


@shared_task(name="tests.recite")
def recite(what: str = "all") -> None:
    """Log with keys and with a traceback, print, and have the tasks of a chord do the same."""
    logger = logging.getLogger("tests.recite")
    logger.info("Recites %s", what, extra={"dish": "hot soup", "api_key": "hunter2"})
    try:
        int(reveal("secret:KEY"))
    except ValueError:
        logger.exception("Cannot count")
    print("says", what)  # noqa: T201 - a job may
    if what == "all":
        chord([recite.si("one"), recite.si("two")], recite.si("end")).delay()


@shared_task(name="tests.fail")
def fail(message: str) -> None:
    """Fail with that message, in which NUL stands for the character that PostgreSQL cannot store."""
    raise ValueError(message.replace("NUL", "\0"))


@shared_task(name="tests.raise")
def raise_one(name: str) -> None:
    """Raise an error that is no `Exception`, or that Celery treats differently."""
    kinds = {kind.__name__: kind for kind in (MemoryError, SystemExit, KeyboardInterrupt, CancelledError)}
    raise kinds[name]("bad")


class OddError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@shared_task(name="tests.fail_oddly")
def fail_oddly() -> None:
    """Raise an error that can neither be printed nor stored."""
    raise OddError("\ud800\0")


@shared_task(name="tests.break_connection", bind=True)
def break_connection(self: Task, path: str) -> None:
    """Write a line, and leave a closed database connection, as after a restart of the server."""
    _append(path, self.request.id)
    connection.ensure_connection()
    connection.connection.close()


@shared_task(name="tests.leave_transaction", bind=True)
def leave_transaction(self: Task, path: str) -> None:
    """Write a line, and leave an open transaction."""
    _append(path, self.request.id)
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("UPDATE jobs_run SET reason = 'never committed'")


@shared_task(name="tests.stubborn")
def stubborn(path: str) -> None:
    """Ignore all requests to end, until it is killed or PATH.go exists."""
    _append(f"{path}.started", str(os.getpid()))
    until = time.monotonic() + DEADLINE
    while not Path(f"{path}.go").exists() and time.monotonic() < until:
        with suppress(SoftTimeLimitExceeded):
            time.sleep(0.02)
    _append(path, "came to its end")


RETRIED = {"autoretry_for": (ConnectionError,), "max_retries": 2, "retry_backoff": False, "default_retry_delay": 0}


@shared_task(name="tests.flaky", bind=True, **RETRIED)
def flaky(self: Task, path: str, failures: int) -> None:
    """Fail this many times; Celery's `autoretry_for` retries it each time."""
    _append(path, str(self.request.retries))
    if self.request.retries < failures:
        raise ConnectionError("not yet")


class Order(BaseModel):
    path: str
    count: int


@shared_task(name="tests.modelled", pydantic=True)
def modelled(order: Order) -> None:
    _append(order.path, str(order.count))


class Hooked(Task):
    """A base with every hook that Celery's documentation names."""

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        _append(args[0], f"success:{retval}")

    def on_failure(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        _append(args[0], f"failure:{exc}")

    def on_retry(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        _append(args[0], f"retry:{exc}")

    def after_return(self, status: str, *_: Any) -> None:
        _append(_[2][0], f"after:{status}")


@shared_task(name="tests.hooked", base=Hooked, bind=True, max_retries=1)
def hooked(self: Task, path: str, how: str) -> str:
    if how == "fail":
        raise ValueError("bad")
    if how == "retry" and not self.request.retries:
        raise self.retry(exc=ValueError("again"), countdown=0)
    return "fine"


@shared_task(name="tests.retry", bind=True, max_retries=2)
def retry(self: Task, path: str) -> None:
    """Retry twice, then succeed."""
    _append(path, str(self.request.retries))
    if self.request.retries < 2:
        raise self.retry(countdown=0)


@shared_task(name="tests.retry_for_ever", bind=True, max_retries=1)
def retry_for_ever(self: Task, path: str) -> None:
    _append(path, str(self.request.retries))
    raise self.retry(countdown=0, exc=ValueError("still not"))


@shared_task(name="tests.retry_in", bind=True)
def retry_in(self: Task, seconds: float) -> None:
    raise self.retry(countdown=seconds)


KEPT = [datetime(2026, 11, 30, tzinfo=UTC), date(2026, 11, 30), Decimal("9.90"), UUID(int=7)]
UNKEPT: dict[str, Any] = {"nan": math.nan, "nul": "a\0b", "object": object(), "surrogate": "\ud800", "deep": []}
for _ in range(2000):
    UNKEPT["deep"] = [UNKEPT["deep"]]


@shared_task(name="tests.retry_with", bind=True, max_retries=1)
def retry_with(self: Task, path: str, kind: str, value: Any = None) -> None:
    """Retry with a value that JSON knows only by kombu's help, or not at all."""
    _append(path, f"{value!r}".replace(" ", ""))
    if not self.request.retries:
        value = KEPT if kind == "kept" else UNKEPT[kind]
        try:
            {}["the task's own"]
        except KeyError as error:
            raise self.retry(args=(path, kind, value), exc=error, countdown=0) from None


@shared_task(name="tests.autoretry_mutated", autoretry_for=(KeyError,), max_retries=1, default_retry_delay=0)
def autoretry_mutated(path: str, given: dict[str, Any]) -> None:
    """Put a value into its arguments that no message can hold, and fail."""
    _append(path, "tried")
    given["now"] = object()
    raise KeyError("the task's own")


class TwoArgumentsError(Exception):
    """Cannot be pickled, like many exceptions with their own __init__."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")


@shared_task(name="tests.fail_unpickleably")
def fail_unpickleably() -> None:
    class LocalError(TwoArgumentsError):
        pass

    raise LocalError(7, "no pickle")


@shared_task(name="tests.die_late", bind=True, acks_late=True, reject_on_worker_lost=True)
def die_late(self: Task, path: str) -> None:
    """Kill the executing process in the first attempt, whose message the broker then repeats."""
    _append(path, self.request.id)
    if len(Path(path).read_text().split()) == 1:
        os.kill(os.getpid(), signal.SIGKILL)


@shared_task(name="tests.ignore")
def ignore() -> None:
    raise Ignore


@shared_task(name="tests.reject")
def reject() -> None:
    raise Reject("no", requeue=False)


@shared_task(name="tests.die")
def die(path: str) -> None:
    """Kill the executing process, in each attempt."""
    _append(path, str(os.getpid()))
    os.kill(os.getpid(), signal.SIGKILL)


@shared_task(name="tests.sleep")
def sleep(seconds: float) -> None:
    time.sleep(seconds)


class Careless(Task):
    """A base that knows nothing of Punctual, and whose hook forgets its parent."""

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        pass


@shared_task(name="tests.careless", base=Careless, bind=True)
def careless(self: Task, path: str) -> None:
    _append(path, self.request.id)


class Signed(Task):
    """A base with its own way to publish."""

    def apply_async(self, args: Any = None, kwargs: Any = None, task_id: str | None = None, **options: Any) -> Any:
        options["headers"] = {**(options.get("headers") or {}), "x-signed": task_id}
        return super().apply_async(args, kwargs, task_id=task_id, **options)


@shared_task(name="tests.signed", base=Signed)
def signed() -> None:
    """Do nothing, after a message with an extra header from the base."""


class Shadowed(Task):
    """A base that names each message by its arguments."""

    def shadow_name(self, args: Any, kwargs: Any, options: Any) -> str:
        return f"shadowed for {args[0]}"


@shared_task(name="tests.shadowed", base=Shadowed)
def shadowed(customer: int) -> None:
    """Do nothing, after a message with its own name."""


@shared_task(name="tests.answer", ignore_result=False)
def answer() -> int:
    return 42


def _hold(path: str, line: str) -> None:
    _append(f"{path}.started", str(os.getpid()))
    eventually(Path(f"{path}.go").exists)
    _append(path, line)


def _append(path: str, line: str) -> None:
    with Path(path).open("a") as file:
        file.write(line + "\n")


@shared_task(name="tests.add")
def add(*numbers: int) -> int:
    return sum(numbers)


@shared_task(name="tests.add_up")
def add_up(numbers: list[int]) -> int:
    """The body of a chord: the sum of its members' results."""
    return sum(numbers)


@shared_task(name="tests.total")
def total(numbers: list[int], path: str) -> None:
    """The body of a chord: write the sum of its members' results."""
    _append(path, str(sum(numbers)))


@shared_task(name="tests.leave")
def leave(value: Any, path: str) -> Any:
    """Write a line with the result of the previous step, and return it."""
    _append(path, str(value))
    return value


@shared_task(name="tests.record")
def record(value: Any, path: str) -> None:
    """Write a line with the result of the previous step, as JSON."""
    _append(path, json.dumps(value, separators=(",", ":")))


@shared_task(name="tests.join_chord", bind=True)
def join_chord(self: Task, number: int) -> int:
    """A member of a chord that adds two more members: a task, and a chain that ends in a group."""
    self.add_to_chord(add.si(number, 1))
    self.add_to_chord(chain(add.si(number, 2), group(add.s(3), add.s(4))))
    return number


@shared_task(name="tests.workflow")
def workflow(kind: str, path: str) -> None:
    """Send steps of one kind."""
    kinds[kind](path).apply_async()


def _chain(path: str) -> Signature:
    return chain(add.s(1, 2), add.s(3), leave.s(path))


def _group(path: str) -> Signature:
    return group(leave.si(number, path) for number in range(5))


def _chord(path: str) -> Signature:
    return chord([add.s(number, number) for number in range(5)], total.s(path))


def _held_chord(path: str) -> Signature:
    return chord([hold.si(f"{path}.0"), add.s(1, 1)], total.s(path))


def _held_chord_chain(path: str) -> Signature:
    return chain(group(hold.si(f"{path}.0"), add.s(2)), total.s(path), leave.si("end", path))


def _nested(path: str) -> Signature:
    return chain(add.s(1), group(add.s(1), chain(add.s(2), add.s(3))), total.s(path))


def _failing(path: str) -> Signature:
    return chain(fail.si("step two is bad"), leave.si("never", path))


def _linked(path: str) -> Signature:
    return fail.si("bad").on_error(leave.s(path))


def _held(path: str) -> Signature:
    return group(hold.si(f"{path}.{number}") for number in range(3))


def _retried(path: str) -> Signature:
    return retry.si(path)


def _chord_chain(path: str) -> Signature:
    return chain(group(add.s(1), add.s(2)), total.s(path), leave.si("end", path))


def _static(path: str) -> Signature:
    return leave.si("static", path).set(task_id="daily-report")


def _later(path: str) -> Signature:
    return leave.si("later", path).set(countdown=0.2)


def _poison(path: str) -> Signature:
    return die.si(path)


def _unfit(path: str) -> Signature:
    return chain(add.s(1, 2), leave.s(path, "one argument too many"))


def _unfit_body(path: str) -> Signature:
    return chord([add.s(1), add.s(2)], leave.s(path, "one argument too many"))


def _unsendable(path: str) -> Signature:
    return leave.si(object(), path)


def _unfit_after_groups(path: str) -> Signature:
    return chain(group(add.s(1), add.s(2)), group(leave.s(path, "too many"), add.s(1)), total.s(path))


def _unfit_in_group_body(path: str) -> Signature:
    return chord([add.s(1), add.s(2)], group(leave.si("fine", path), leave.s(path, "too many")))


def _linked_chain(path: str) -> Signature:
    flow = chain(add.s(1), add.s(1))
    flow.link(leave.s(path))
    flow.link(leave.si("linked", path))
    return flow


def _branching(path: str) -> Signature:
    """A chord whose members end in a group, in groups of groups, and in a chord whose body is a group."""
    fork = chain(add.s(1), group(add.s(2), add.s(3)))
    forks = chain(add.s(1), group(add.s(2), chain(add.s(3), group(add.s(4), add.s(5)))))
    spread = chord([add.s(1), add.s(2)], group(add_up.s(), add_up.s()))
    return chord([add.s(1), fork, forks, spread], record.s(path))


def _nested_chords(path: str) -> Signature:
    """Chords in chains in chords."""
    inner = chain(add.s(1), group(add.s(2), add.s(3)), add_up.s(), group(add.s(4), add.s(5)), add_up.s())
    return chain(
        add.s(1), group(inner.clone(), chain(add.s(1), group(inner.clone(), add.s(6)), add_up.s())), record.s(path)
    )


def _joined(path: str) -> Signature:
    return chord([join_chord.s(10), add.s(1)], record.s(path))


def _ignoring(path: str) -> Signature:
    return chord([ignore.si(), add.s(1)], total.s(path))


def _ignoring_chain(path: str) -> Signature:
    return chord([chain(ignore.si(), add.si(1)), add.s(1)], total.s(path))


kinds = {
    "branching": _branching,
    "nested_chords": _nested_chords,
    "joined": _joined,
    "ignoring": _ignoring,
    "ignoring_chain": _ignoring_chain,
    "linked_chain": _linked_chain,
    "chain": _chain,
    "group": _group,
    "chord": _chord,
    "held_chord": _held_chord,
    "held_chord_chain": _held_chord_chain,
    "nested": _nested,
    "failing": _failing,
    "linked": _linked,
    "held": _held,
    "retried": _retried,
    "poison": _poison,
    "chord_chain": _chord_chain,
    "static": _static,
    "later": _later,
    "unfit": _unfit,
    "unsendable": _unsendable,
    "unfit_body": _unfit_body,
    "unfit_after_groups": _unfit_after_groups,
    "unfit_in_group_body": _unfit_in_group_body,
}


@shared_task(name="tests.apply_again")
def apply_again(kind: str, path: str, times: int) -> None:
    """Send the same workflow object several times."""
    flow = kinds[kind](path)
    for _ in range(times):
        flow.delay()


@shared_task(name="tests.first_of_shared")
def first_of_shared(path: str) -> str:
    _append(path, "first")
    return path


@shared_task(name="tests.second_of_shared")
def second_of_shared(path: str) -> None:
    _append(path, "second")


SHARED = chain(first_of_shared.s(), second_of_shared.s())


@shared_task(name="tests.apply_shared")
def apply_shared(path: str) -> None:
    """Send the workflow that all runs of a process share."""
    SHARED.delay(path)


@shared_task(name="tests.set_off")
def set_off(name: str, *args: Any) -> None:
    """Send a single step."""
    current_app.tasks[name].delay(*args)


@shared_task(name="tests.in_transaction")
def in_transaction(path: str, undo: bool) -> None:
    """Send a step in a transaction that is then committed or rolled back."""
    with transaction.atomic():
        result = leave.delay("step", path)
        _append(path, f"not before {bool(result.id)}")
        time.sleep(0.3)
        transaction.set_rollback(undo)


@shared_task(name="tests.retry_in_transaction", bind=True, max_retries=1)
def retry_in_transaction(self: Task, path: str) -> None:
    logging.getLogger("tests").info("attempt %s", self.request.retries)
    with transaction.atomic():
        _append(path, str(self.request.retries))
        if not self.request.retries:
            raise self.retry(countdown=0, queue="celery")


@shared_task(name="tests.replaced_in_transaction", bind=True)
def replaced_in_transaction(self: Task, path: str) -> None:
    with transaction.atomic():
        raise self.replace(leave.si("never", path))


@shared_task(name="tests.retry_unsendable", bind=True)
def retry_unsendable(self: Task, path: str) -> None:
    """Retry with one argument too many."""
    raise self.retry(args=[path, path], countdown=0)


@shared_task(name="tests.replaced_early", bind=True)
def replaced_early(self: Task, path: str) -> None:
    """End only after the replacement of this task has started."""
    try:
        self.replace(hold.si(path))
    finally:
        eventually(Path(f"{path}.started").exists)


@shared_task(name="tests.no_autocommit")
def no_autocommit() -> None:
    """Leave the connection without autocommit, with an open transaction."""
    transaction.set_autocommit(False)
    FeedEntry.objects.create(feed="lost", guid="lost", title="lost")


@shared_task(name="tests.odd_text", bind=True)
def odd_text(self: Task, path: str) -> None:
    logging.getLogger("tests").info("odd \udcff \0 text")
    progress(1, 2, "odd \udcff")
    _append(path, self.request.id)


@shared_task(name="tests.foreign")
def foreign(path: str) -> None:
    """Call a task of another project."""
    current_app.send_task("another.project.task", queue="elsewhere")
    _append(path, "called")


@shared_task(name="tests.replaced", bind=True)
def replaced(self: Task, kind: str, path: str) -> Any:
    """Replace this task by steps of one kind."""
    return self.replace(kinds[kind](path))


@shared_task(name="tests.tell")
def tell(path: str) -> None:
    """Log, report progress and read the current run, and then wait."""
    run = current_run()
    logging.getLogger("tests.tell").info("password=hunter2 at %s", run and run.window_start)
    progress(7, 10, "almost")
    _append(path, f"{run and run.id} {once('effect')} {once('effect')}")
    eventually(Path(f"{path}.go").exists)


@shared_task(name="tests.execute", bind=True)
def execute(self: Task, path: str, seconds: float) -> None:
    """Write a line for this execution, work a while, and have an effect only once in all attempts."""
    run = current_run()
    _append(path, f"{run.id}/{run.attempt}")
    time.sleep(seconds / 2)
    with transaction.atomic():
        if once("effect"):
            FeedEntry.objects.create(feed="effects", guid=str(uuid4()), title=str(run.id))
    time.sleep(seconds / 2)


@shared_task(name="tests.stamp")
def stamp(path: str) -> None:
    """Write the time."""
    leave_time(path)


@shared_task(name="tests.fail_after_sending")
def fail_after_sending(path: str) -> None:
    """Fail with one running step and one that is not due yet."""
    hold.delay(path)
    leave.apply_async(["never", path], countdown=600)
    eventually(Path(f"{path}.started").exists)
    raise ValueError("after all")


@shared_task(name="tests.send_in_vain")
def send_in_vain(path: str) -> None:
    """Send two steps in a transaction, with an on-commit callback between them that fails."""
    with suppress(ZeroDivisionError), transaction.atomic():
        leave.delay("one", path)
        transaction.on_commit(lambda: 1 / 0)
        leave.delay("two", path)


@shared_task(name="tests.ignore_after_undone")
def ignore_after_undone(path: str) -> None:
    """Raise Ignore after a transaction with a step was rolled back."""
    with transaction.atomic():
        leave.delay("never", path)
        transaction.set_rollback(True)
    raise Ignore


@shared_task(name="tests.call_in_place")
def call_in_place(path: str) -> None:
    """Call a task that sends a step, in place."""
    workflow.apply(["retried", path])


# --- resources ------------------------------------------------------------------------------------------------------


def _load_noted(path: str) -> int:
    """Load the id of this process, and write a line with it."""
    _append(f"{path}.loads", str(os.getpid()))
    return os.getpid()


loaded = Resource("tests.loaded", _load_noted, limit=100)
inherited = Resource("tests.inherited", os.getpid, preload=True)


lent = Resource("tests.lent", lambda path: path, close=lambda path: _append(path, "closed"))


@shared_task(name="tests.look_up")
def look_up(path: str) -> None:
    """Write a line with this process and the process that loaded the value."""
    _append(path, f"{os.getpid()}:{loaded.get(path)}")


@shared_task(name="tests.inherit", base=ResourceTask, bind=True, resource=inherited)
def inherit(self: ResourceTask, path: str) -> None:
    """Like `look_up`, with a value that was loaded before this process began."""
    _append(path, f"{os.getpid()}:{self.shared}")


@shared_task(name="tests.borrow", base=ResourceTask, bind=True)
def borrow(self: ResourceTask, path: str, how: str) -> None:
    """Take a value twice that must be closed, drop it in between, and end as `how` says."""
    self.take(lent, path)
    lent.drop()
    _append(self.take(lent, path), how)
    if how == "fail":
        raise ValueError("bad")
    if how == "ignore":
        raise Ignore


# --- queries ---------------------------------------------------------------------------------------------------------


@query("test entries")
def entries(start: datetime | None, end: datetime) -> Table:
    """The imported entries, each with its link as an address."""
    return Table(["title", "email"], FeedEntry.objects.order_by("id").values_list("title", "link").iterator())


@query("test numbers")
def numbers(start: datetime | None, end: datetime) -> Table:
    """More rows than fit into a PDF."""
    return Table(["number"], ([number] for number in range(5_001)))


@shared_task(name="tests.to_old")
def to_old() -> None:
    """Send a step to the queue of the old worker."""
    nothing.apply_async(queue="old")


@shared_task(name="tests.limited", rate_limit="20/m")
def limited() -> None:
    """Start at most every three seconds in each worker."""


@shared_task(name="tests.slow", rate_limit="15/h")
def slow() -> None:
    """Start at most every four minutes in each worker."""


@shared_task(name="tests.send_hourly")
def send_hourly() -> None:
    """Send more steps than their rate limit lets start."""
    for _ in range(6):
        hourly.delay()


@shared_task(name="tests.hourly", rate_limit="1/h")
def hourly() -> None:
    """Start at most once an hour in each worker."""


@shared_task(name="tests.send_limited")
def send_limited() -> None:
    """Send three steps that start one after the other."""
    group(limited.si() for _ in range(3)).apply_async()


@shared_task(name="tests.narrate")
def narrate(path: str) -> None:
    """Log, report progress, wait for PATH.1 or PATH.2, and fail in the first attempt."""
    attempt = current_run().attempt
    logging.getLogger("tests.narrate").info("attempt %d begins with \033[2J[red]", attempt)
    progress(attempt, 4, f"in attempt {attempt}")
    eventually(Path(f"{path}.{attempt}").exists)
    logging.getLogger("tests.narrate").info("attempt %d ends", attempt)
    if attempt == 1:
        raise ValueError("not yet")
