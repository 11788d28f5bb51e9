"""How do event loops and the ledger get on? `async def` jobs get a loop, and the ledger works beside any loop.

Its one rule: each execution of an `async def` job has its own event loop, in the thread of its task. A soft time limit
or a cancellation is raised at the job's `await`, as an `Interruption`, so the job can catch it and clean up. Database
calls that the job makes with `sync_to_async` or Django's async ORM share one thread and one connection, which end with
the job.

Limits: a soft time limit does not interrupt a function that waits in another thread. A greenlet pool (gevent,
eventlet), where tasks share a thread, executes no `async def` jobs.
"""

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from contextvars import copy_context
from functools import partial, wraps
from inspect import CORO_CLOSED, getcoroutinestate, iscoroutinefunction, unwrap
from threading import current_thread, main_thread
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType, coroutine
from typing import Any

from asgiref.sync import ThreadSensitiveContext
from billiard.exceptions import SoftTimeLimitExceeded
from billiard.pool import soft_timeout_sighandler
from django.db import connections
from kombu.utils.compat import detect_environment

from jobs.worker import context

log = logging.getLogger(__name__)

UNEXECUTED: dict[type[Any], str] = {
    CoroutineType: "a coroutine that nothing awaits: declare the job itself with `async def`, and await in it",
    GeneratorType: "a generator, whose body nothing executes: do the work without `yield`, or loop over it in the job",
    AsyncGeneratorType: "an async generator, whose body nothing executes: use `async for` in the job",
}
KINDS = tuple(UNEXECUTED)


class Interruption(asyncio.CancelledError, SoftTimeLimitExceeded):
    """A soft time limit or a cancellation, for jobs that catch either error, and for asyncio's task groups."""


def executing(task: Any, body: Callable[..., Any]) -> Callable[..., Any]:
    """The body of a task, extended to await what an `async def` returns. A direct call still returns the coroutine."""
    if hasattr(body, "executes"):
        return body
    is_async = iscoroutinefunction(unwrap(body))

    @wraps(body)
    def run(*args: Any, **kwargs: Any) -> Any:
        return _executed(task, body(*args, **kwargs), is_async=is_async)

    run.executes = True  # type: ignore[attr-defined] # a function has attributes
    return run


def executing_call(call: Callable[..., Any]) -> Callable[..., Any]:
    """Like `executing`, for the `__call__` of a task's class."""
    if hasattr(call, "executes"):
        return call

    @wraps(call)
    def execute(task: Any, *args: Any, **kwargs: Any) -> Any:
        is_async = iscoroutinefunction(unwrap(call)) or iscoroutinefunction(unwrap(task.run))
        return _executed(task, call(task, *args, **kwargs), is_async=is_async)

    execute.executes = True  # type: ignore[attr-defined] # a function has attributes
    return execute


def _executed(task: Any, outcome: Any, *, is_async: bool) -> Any:
    """What the task returns. Raises TypeError if a run would succeed without executing its body."""
    if not isinstance(outcome, KINDS) or task.request.called_directly:
        return outcome
    execution = context.of(task.request)
    if is_async and isinstance(outcome, CoroutineType):
        outcome = _execute(outcome, execution)
        if getattr(task, "_dump_pydantic_arguments", None) and hasattr(outcome, "model_dump"):
            return outcome.model_dump()  # as Celery does with `pydantic=True`, but after awaiting
    if execution and isinstance(outcome, KINDS):
        if not isinstance(outcome, AsyncGeneratorType):
            outcome.close()
        raise TypeError(f"{task.name} returned {UNEXECUTED[type(outcome)]}.")
    return outcome


def _execute(job: Coroutine[Any, Any, Any], execution: context.Execution | None) -> Any:
    """Execute the coroutine. Where a loop is running, as in eager mode in an async view, it needs another thread."""
    if detect_environment() != "default":
        job.close()
        raise RuntimeError("A greenlet pool executes no `async def` jobs: use the prefork or threads pool for them.")
    if asyncio._get_running_loop() is None:
        return _run(job, execution)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(copy_context().run, _run, job, execution).result()


def _run(job: Coroutine[Any, Any, Any], execution: context.Execution | None) -> Any:
    with closing(job), asyncio.Runner() as runner, ThreadPoolExecutor(1, "database") as database:
        body = _Body(job, runner.get_loop(), database)
        if execution:
            execution.interrupt = body.interrupt
        try:
            with body.soft_limits():
                return runner.get_loop().run_until_complete(body.task)
        except asyncio.CancelledError:
            if body.was_interrupted:
                raise SoftTimeLimitExceeded from None
            raise


class _Body:
    """The body of an `async def` job in its event loop."""

    def __init__(
        self, job: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop, database: ThreadPoolExecutor
    ) -> None:
        self._job, self._loop, self._database = job, loop, database
        self._is_pending = False  # an interruption
        self.was_interrupted = False
        self.task = loop.create_task(self._main())

    async def _main(self) -> Any:
        async with ThreadSensitiveContext(executor=self._database):
            try:
                return await self._drive()
            finally:
                self._report_left_tasks()
                await self._loop.run_in_executor(self._database, connections.close_all)

    def _report_left_tasks(self) -> None:
        if left := [task.get_name() for task in asyncio.all_tasks(self._loop) if task is not self.task]:
            log.warning("The job ends and cancels tasks that it did not await: %s", ", ".join(sorted(left)))

    @coroutine
    def _drive(self) -> Generator[Any, Any, Any]:
        """Like `await self._job`, but a cancellation by `interrupt` arrives as an `Interruption`."""
        go_on: Callable[[], Any] = partial(self._job.send, None)
        while True:
            try:
                awaited = go_on()
            except StopIteration as end:
                return end.value
            except Interruption as error:
                raise SoftTimeLimitExceeded().with_traceback(error.__traceback__) from None
            go_on = partial(self._job.send, None)
            try:
                yield awaited
            except BaseException as error:  # noqa: BLE001 - whatever the job awaits may raise it
                go_on = partial(self._job.throw, error)
            if self._is_pending:  # even if the job awaited a task that swallowed the cancellation
                self._is_pending = False
                self.task.uncancel()
                go_on = partial(self._job.throw, Interruption())

    def interrupt(self) -> None:
        """Raise an `Interruption` where the job waits. Any thread may call it."""
        with suppress(RuntimeError):  # the loop is closed: the job is over
            self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if getcoroutinestate(self._job) != CORO_CLOSED:
            self._is_pending = self.was_interrupted = True
            self.task.cancel()

    @contextmanager
    def soft_limits(self) -> Iterator[None]:
        """Receive the soft time limits of a prefork child, which otherwise end the loop instead of the job."""
        if not is_pool_child() or current_thread() is not main_thread():
            yield
            return
        former = signal.signal(signal.SIGUSR1, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGUSR1, former)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        computing = asyncio.current_task(self._loop)
        if computing is not self.task:
            self.interrupt()
        if computing is not None:  # or it blocks the loop
            self.was_interrupted = True
            raise Interruption


def is_pool_child() -> bool:
    """Whether this process is a child of the prefork pool, whose soft time limits are signals."""
    handler = signal.getsignal(signal.SIGUSR1)
    return handler is soft_timeout_sighandler or getattr(handler, "__func__", None) is _Body._on_signal


@contextmanager
def outside_loop() -> Iterator[None]:
    """Let Django query in a thread whose event loop is running.

    Django refuses that, because other coroutines could use the connection in between. A block that awaits nothing lets
    none of them run.
    """
    loop = asyncio._get_running_loop()
    if loop is None:
        yield
        return
    asyncio._set_running_loop(None)
    try:
        yield
    finally:
        asyncio._set_running_loop(loop)


def drop_left_loop(task: Any) -> None:
    """Forget an event loop that a former job left running in this thread: Django would refuse all queries beside it."""
    if asyncio._get_running_loop() is None or task.request.is_eager or detect_environment() != "default":
        return
    log.warning(
        "An event loop was left running, such as Playwright's without stop(). %s goes on without it.", task.name
    )
    asyncio._set_running_loop(None)
