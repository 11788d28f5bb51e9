"""Jobs with coroutines, event loops, generators and threads. `tests.app.tasks` imports them."""

import asyncio
import contextvars
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps
from importlib import import_module
from pathlib import Path
from typing import Any

from asgiref.sync import sync_to_async
from celery import Task, chain, chord, current_app, shared_task
from celery.exceptions import Retry, SoftTimeLimitExceeded
from django.db import connection, transaction

from jobs.models import FeedEntry, Run
from jobs.toolkit.current import current_run, once, progress
from tests.waiting import DEADLINE, eventually

loops: list[Any] = []  # of this process, and tasks: left on purpose


def write(path: str, **facts: Any) -> None:
    with Path(path).open("a") as file:
        file.write(json.dumps(facts) + "\n")


@shared_task(name="tests.coroutine")
async def coroutine(path: str) -> None:
    """Use everything that a run offers, in coroutines, their tasks and threads."""
    run = current_run()
    assert run is not None
    await asyncio.sleep(0)
    progress(1, 2, "half")
    in_task = await asyncio.create_task(_once("task"))
    in_thread = await sync_to_async(_once_in_transaction)("thread")
    entry = await FeedEntry.objects.acreate(feed=str(run.id), guid="async", title="async")
    write(path, run=str(run.id), once=[once("task"), in_task, in_thread, once("thread")], row=entry.pk is not None)
    note_step.delay(path)


async def _once(key: str) -> bool:
    await asyncio.sleep(0)
    return once(key)


def _once_in_transaction(key: str) -> bool:
    with transaction.atomic():
        return once(key)


@shared_task(name="tests.note_step")
def note_step(path: str) -> None:
    write(path, step=str(current_run().id))


@shared_task(name="tests.wait_in_coroutine")
async def wait_in_coroutine(path: str, how: str = "await") -> None:
    """Wait until the run is asked to end, in a coroutine; clean up, and say so."""
    write(f"{path}.started", how=how)
    try:
        if how == "block":
            time.sleep(DEADLINE)
        elif how == "gather":
            await asyncio.gather(asyncio.sleep(DEADLINE), asyncio.create_task(asyncio.sleep(DEADLINE)))
        else:
            await asyncio.sleep(DEADLINE)
    except SoftTimeLimitExceeded:
        await asyncio.sleep(0.01)
        write(path, cleaned=how)
        raise


@shared_task(
    name="tests.fail_in_coroutine", bind=True, autoretry_for=(ConnectionError,), max_retries=1, default_retry_delay=0
)
async def fail_in_coroutine(self: Task, path: str) -> None:
    await asyncio.sleep(0)
    write(path, retries=self.request.retries)
    raise ConnectionError("no answer")


@shared_task(name="tests.answer_in_coroutine", ignore_result=False)
async def answer_in_coroutine() -> int:
    await asyncio.sleep(0)
    return 42


@shared_task(name="tests.generator")
def generator(path: str) -> Iterator[int]:
    write(path, never=True)
    yield 1


@shared_task(name="tests.async_generator")
async def async_generator(path: str) -> AsyncIterator[int]:
    write(path, never=True)
    yield 1


@shared_task(name="tests.forget_await")
def forget_await(path: str) -> Coroutine[Any, Any, bool]:
    return _once(path)


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that knows nothing of coroutines."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call


@shared_task(name="tests.decorated_coroutine")
@logged
async def decorated_coroutine(path: str) -> None:
    await asyncio.sleep(0)
    write(path, decorated=True)


class AsyncCall(Task):
    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return await super().__call__(*args, **kwargs)


@shared_task(name="tests.called_in_coroutine", base=AsyncCall)
async def called_in_coroutine(path: str) -> None:
    await asyncio.sleep(0)
    write(path, called=True)


class GeneratorCall(Task):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        yield self.run(*args, **kwargs)


@shared_task(name="tests.called_in_generator", base=GeneratorCall)
def called_in_generator(path: str) -> None:
    write(path, never=True)


@shared_task(name="tests.retry_by_hand")
def retry_by_hand(path: str) -> None:
    write(path, tried=True)
    raise Retry("again")


@shared_task(name="tests.nest")
async def nest(path: str) -> None:
    """Execute a coroutine in place of a call: in this thread, in another one, and with a chord."""
    inner = current_app.tasks["tests.decorated_coroutine"]
    inner.apply((path,), throw=True)
    await sync_to_async(partial(inner.apply, (path,), throw=True))()
    chord([note_step.si(path)], note_step.si(path)).delay()


async def in_group(child: Coroutine[Any, Any, None]) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(child)


waits: dict[str, Callable[..., Any]] = {"group": in_group, "wait_for": partial(asyncio.wait_for, timeout=DEADLINE)}


@shared_task(name="tests.interrupt_group")
async def interrupt_group(path: str, how: str) -> None:
    """Wait in a task group, in `wait_for`, for a child that swallows its cancellation, or for one that computes."""

    async def child() -> None:
        try:
            until = time.monotonic() + DEADLINE
            while how == "computes" and time.monotonic() < until:
                pass
            await asyncio.sleep(DEADLINE)
        except asyncio.CancelledError:
            write(path, ended="child")
            if how != "swallows":
                raise

    write(f"{path}.started", how=how)
    try:
        await waits.get(how, asyncio.create_task)(child())
    except SoftTimeLimitExceeded:
        write(path, ended="job")
        raise


@shared_task(name="tests.leave_tasks")
async def leave_tasks() -> None:
    """Forget to await a task."""
    loops.append(asyncio.create_task(asyncio.sleep(DEADLINE), name="forgotten"))
    await asyncio.sleep(0)


@shared_task(name="tests.send_in_own_transaction")
def send_in_own_transaction(path: str, how: str) -> None:
    """Send a step in a transaction that Django does not manage."""
    if how == "cursor":
        with connection.cursor() as cursor:
            cursor.execute("BEGIN")
    else:
        transaction.set_autocommit(False)
        FeedEntry.objects.create(feed="lost", guid="lost", title="lost")
    note_step.delay(path)


@shared_task(name="tests.fail_beside_chain")
def fail_beside_chain(path: str) -> None:
    """Send a chain and a chord, wait until their first steps have started, and fail."""
    tasks = current_app.tasks
    held = [tasks["tests.hold"].si(f"{path}.{name}") for name in ("chain", "chord")]
    chain(held[0], note_step.si(path)).delay()
    chord([held[1]], note_step.si(path)).delay()
    for name in ("chain", "chord"):
        eventually(Path(f"{path}.{name}.started").exists)
    raise ValueError("the body is bad")


@shared_task(name="tests.loop_in_job")
def loop_in_job(path: str) -> None:
    """Send a step and report progress while an event loop runs in the thread of the job."""

    async def inside() -> bool:
        note_step.delay(path)
        progress(1)
        return once("inside")

    write(path, once=asyncio.run(inside()))


@shared_task(name="tests.leave_loop")
def leave_loop() -> None:
    """Leave an event loop running in this thread, as Playwright's sync API does without stop()."""
    loops.append(asyncio.new_event_loop())
    asyncio._set_running_loop(loops[-1])


@shared_task(name="tests.break_process")
def break_process() -> None:
    """Spoil this process: it cannot start another run."""

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("spoilt")

    Run.objects.start = refuse


@shared_task(name="tests.query")
def query_feeds(path: str) -> None:
    write(path, entries=FeedEntry.objects.count())


@shared_task(name="tests.print")
def print_lines() -> None:
    """Print lines, and log one between them."""
    print("printed", 1, 2)  # noqa: T201
    logging.getLogger("tests").info("logged")
    print("token=hunter2hunter2", end="")  # noqa: T201


@shared_task(name="tests.in_processes")
def in_processes(path: str, module: str) -> None:
    """Compute in child processes of this one, as docs/runs.md says."""
    with import_module(module).Pool(2) as pool:
        write(path, squares=pool.map(square, range(3)))


def square(number: int) -> int:
    return number * number


@shared_task(name="tests.in_threads")
def in_threads(path: str) -> None:
    """Ask for the run in threads, with the job's context and without it."""
    with ThreadPoolExecutor(1) as pool:
        known = pool.submit(contextvars.copy_context().run, current_run).result()
        told = [pool.submit(partial(contextvars.copy_context().run, once, "key")).result() for _ in range(2)]
        for call in (current_run, partial(once, "key"), partial(progress, 1)):
            error = pool.submit(call).exception()
            write(path, refused=str(error))
    outside = threading.Thread(target=lambda: None)
    outside.start()
    outside.join()
    write(path, run=str(known.id), once=told)
