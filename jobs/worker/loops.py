"""How do event loops and the ledger get on? `async def` jobs get a loop, and the ledger works beside any loop.

Its one rule: each execution of an `async def` job has its own event loop, in the thread of its task. A soft time limit
or a cancellation is raised at the job's `await`, so the job can catch it and clean up. Database calls that the job
makes with `sync_to_async` or Django's async ORM share one thread and one connection, which are closed at the end.

Limits: a soft time limit does not interrupt a function that waits in another thread. A greenlet pool (gevent,
eventlet) executes one `async def` job at a time.
"""

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from contextvars import copy_context
from functools import partial, wraps
from inspect import CORO_CLOSED, getcoroutinestate, iscoroutinefunction, unwrap
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType, coroutine
from typing import Any

from asgiref.sync import ThreadSensitiveContext, sync_to_async
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


def executing(task: Any, body: Callable[..., Any]) -> Callable[..., Any]:
    """The body of a task, extended to await what an `async def` returns. A direct call still returns the coroutine."""
    if hasattr(body, "executes"):
        return body
    is_async = iscoroutinefunction(unwrap(body))

    @wraps(body)
    def run(*args: Any, **kwargs: Any) -> Any:
        outcome = body(*args, **kwargs)
        if isinstance(outcome, KINDS) and not task.request.called_directly:
            return _executed(task, outcome, is_async=is_async)
        return outcome

    run.executes = True  # type: ignore[attr-defined] # a function has attributes
    return run


def _executed(task: Any, outcome: Any, *, is_async: bool) -> Any:
    """Raises TypeError if a run would succeed without executing its body."""
    execution = context.of(task.request)
    if is_async and isinstance(outcome, CoroutineType):
        outcome = _execute(outcome, execution)
    if execution and isinstance(outcome, KINDS):
        if not isinstance(outcome, AsyncGeneratorType):
            outcome.close()
        raise TypeError(f"{task.name} returned {UNEXECUTED[type(outcome)]}.")
    return outcome


def _execute(job: Coroutine[Any, Any, Any], execution: context.Execution | None) -> Any:
    """Execute the coroutine. Where a loop is running, as in eager mode in an async view, it needs another thread."""
    if asyncio._get_running_loop() is None:
        return _run(job, execution)
    if detect_environment() != "default":
        job.close()
        raise RuntimeError("A greenlet pool executes one `async def` job at a time: use the prefork or threads pool.")
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(copy_context().run, _run, job, execution).result()


def _run(job: Coroutine[Any, Any, Any], execution: context.Execution | None) -> Any:
    with closing(job), asyncio.Runner() as runner:
        body = _Body(job, runner.get_loop())
        if execution:
            execution.interrupt = body.interrupt
        with body.soft_limits():
            return runner.get_loop().run_until_complete(body.task)


class _Body:
    """The body of an `async def` job in its event loop."""

    def __init__(self, job: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> None:
        self._job, self._loop = job, loop
        self._interrupted = False
        self.task = loop.create_task(self._main())

    async def _main(self) -> Any:
        async with ThreadSensitiveContext():
            try:
                return await self._drive()
            finally:
                await sync_to_async(connections.close_all)()

    @coroutine
    def _drive(self) -> Generator[Any, Any, Any]:
        """Like `await self._job`, but an interruption arrives as `SoftTimeLimitExceeded`."""
        go_on: Callable[[], Any] = partial(self._job.send, None)
        while True:
            try:
                awaited = go_on()
            except StopIteration as end:
                return end.value
            try:
                yield awaited
                go_on = partial(self._job.send, None)
            except BaseException as error:  # noqa: BLE001 - whatever the job awaits may raise it
                go_on = partial(self._job.throw, self._translated(error))

    def _translated(self, error: BaseException) -> BaseException:
        if not (self._interrupted and isinstance(error, asyncio.CancelledError)):
            return error
        self._interrupted = False
        self.task.uncancel()
        return SoftTimeLimitExceeded()

    def interrupt(self) -> None:
        """Raise `SoftTimeLimitExceeded` where the job waits. Any thread may call it."""
        self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if getcoroutinestate(self._job) != CORO_CLOSED:
            self._interrupted = True
            self.task.cancel()

    @contextmanager
    def soft_limits(self) -> Iterator[None]:
        """Receive the soft time limits of a prefork child, which otherwise end the loop instead of the job."""
        if not is_pool_child():
            yield
            return
        signal.signal(signal.SIGUSR1, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGUSR1, soft_timeout_sighandler)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if asyncio.current_task(self._loop) is self.task:  # it computes, or blocks the loop
            raise SoftTimeLimitExceeded
        self.interrupt()


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
