"""What makes a Celery task a job? It starts each attempt of a run only once.

Its one rule: a process claims the attempt in the ledger before the body runs. If another process has the attempt, the
message is dropped, and the run goes on. Tasks outside runs (plain `delay()`) are not touched and cost nothing.

The application in jobs/worker/app.py makes it the base of every task, so a task needs to import nothing to be a job.
"""

import logging
import os
from functools import partial
from typing import Any
from uuid import UUID

from celery import current_app
from celery.contrib.django.task import DjangoTask
from celery.exceptions import Ignore
from django.db import Error as DatabaseError

from jobs.ledger import outcomes, steps
from jobs.ledger.steps import STEP_HEADER
from jobs.messages.envelope import ATTEMPT_HEADER
from jobs.models import installation
from jobs.models.runs import Sent
from jobs.worker import canvas, context, finish, forgery, pulse, refusals, results, traces
from jobs.worker.connection import on_good_connection, patiently
from jobs.worker.context import Execution, node_of
from jobs.worker.loops import drop_left_loop, is_pool_child
from jobs.worker.refusals import Named

log = logging.getLogger(__name__)

# Attributes of a task that Celery 6 will ignore.
WARNED_ABOUT = {"queue", "exchange", "exchange_type", "routing_key", "delivery_mode", "priority"}


class Job(DjangoTask):  # type: ignore[type-arg] # generic for the type checker only
    abstract = True
    Request = "jobs.worker.consumer:Request"

    @classmethod
    def bind(cls, app: Any) -> Any:
        """Like Celery's, without its warning about `queue=`: as an error, it would leave the task half bound.

        `catch_warnings` is not safe with threads, so the attributes are away while Celery looks for them.
        """
        hidden = {} if cls.__bound__ else {name: vars(cls)[name] for name in WARNED_ABOUT & vars(cls).keys()}
        for name in hidden:
            delattr(cls, name)
        try:
            return super().bind(app)
        finally:
            for name in hidden.keys() - vars(cls).keys():  # a task annotation may have set it
                setattr(cls, name, hidden[name])

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """The start guard. Raises `Ignore` if this attempt was already started, expired, cancelled or rescued."""
        drop_left_loop(self)
        if context.header(self.request, ATTEMPT_HEADER) is not None or self.request.get(STEP_HEADER) is not None:
            _start(self, task_id, forgery.sent(self, args, kwargs))
        elif (schedule := self.request.get("periodic_task_name")) is not None:
            refusals.notice_rival(schedule, self.request.origin)
        super().before_start(task_id, args, kwargs)

    def apply_async(  # type: ignore[override] # options are passed through as they come
        self, args: Any = None, kwargs: Any = None, task_id: str | None = None, **options: Any
    ) -> Any:
        """Like Celery's, but `self.retry()` of a run waits in the ledger: brokers may repeat messages with an ETA.

        The retry of a step is sent when its body is over, and so after any transaction that it was called in.
        """
        if self.name in results.MAPS:
            results.of_map(options, kwargs)
        publish = partial(super().apply_async, args, kwargs, task_id=task_id, **options)
        execution = context.of(self.request) if options.get("retries") else None
        if execution is None or execution.task_id != task_id:
            return publish()
        delay = canvas.delay_of(options)  # raises here, in the task, if the options hold no valid delay
        if execution.is_step:
            execution.retry = partial(finish.send_again, execution, publish)
        else:
            execution.retry = partial(finish.retry, execution, list(args or ()), kwargs or {}, delay, options)
        return self.AsyncResult(execution.task_id)

    def apply(self, *args: Any, throw: bool | None = None, **options: Any) -> Any:
        """Like Celery's, but a task that CELERY_TASK_ALWAYS_EAGER executes inside a run fails that run with it."""
        in_run = throw is None and current_app.conf.task_always_eager and context.current()
        result = super().apply(*args, throw=False if in_run else throw, **options)  # type: ignore[misc] # by name only
        if in_run and result.failed():
            raise result.result
        return result

    def replace(self, sig: Any) -> Any:
        """Like Celery's. A rolled-back replacement fails the run; other tasks that are rolled back do not."""
        if execution := context.of(self.request):
            execution.replaces_itself = True
        return super().replace(sig)


def _start(task: Any, task_id: str, sent: Sent) -> None:
    request, execution = task.request, _execution_of(task.request, task_id)
    try:
        # Celery repeats a task that it executes in place at once: that is the same attempt.
        started = bool(request.is_eager and request.retries) or _claim(execution, node_of(request.hostname), sent)
        forged = "" if started else on_good_connection(partial(forgery.difference, execution, sent))
    except DatabaseError as error:
        sentence = "Run %s is not started: the database is unavailable. Beat sends it again later."
        log.warning(sentence, task_id, extra=execution.keys)
        raise Ignore("The database is unavailable.") from error
    except Exception:
        if is_pool_child():  # a job has spoilt this process for all runs; the pool replaces it
            sentence = "This process ends, because it cannot start run %s. Beat sends it again later."
            log.exception(sentence, task_id, extra=execution.keys)
            raise SystemExit(1) from None
        raise
    if forged:
        log.warning("A message of run %s is refused: %s.", execution.run_id, forged, extra=execution.keys)
        named = Named(execution.run_id, execution.attempt, execution.step or "", task.name)
        refusals.refuse_run(named, f"{node_of(request.hostname)} refused its message: {forged}")
        raise Ignore(f"This message does not belong to the run: {forged}.")
    if not started:
        _refuse(execution)
        raise Ignore("This attempt was started before, or is no longer wanted.")
    context.enter(request, execution)
    traces.begin(execution)
    if not request.is_eager:  # in a test, which no other thread may disturb
        pulse.watch(execution)


def _execution_of(request: Any, task_id: str) -> Execution:
    """The execution that a message names. Raises `Ignore` if it names no attempt of a run."""
    attempt, step = context.header(request, ATTEMPT_HEADER), request.get(STEP_HEADER)
    task_id = str(task_id)
    try:
        task_id.encode()  # raises UnicodeEncodeError, a ValueError, for text that no database stores
        if attempt is not None:
            return Execution(task_id, UUID(task_id), int(attempt), request=request)
        key = steps.key_of(step, task_id)
        key.encode()
        return Execution(task_id, UUID(step[0]), int(step[1]), key, request=request)
    except (IndexError, TypeError, ValueError) as error:
        raise Ignore(f"This message names no attempt of a run: {task_id!r}, {attempt!r}, {step!r}") from error


def _refuse(execution: Execution) -> None:
    """Note that this message starts nothing. A step that is still queued then fails: no other message will start it."""
    what, extra = (execution.attempt, execution.run_id), execution.keys
    why = "its message was refused, although it had not started"
    if execution.step is None:
        log.info("Attempt %s of run %s is not started.", *what, extra=extra)
    elif steps.refuse(execution.step, execution.run_id, execution.attempt, why, "Refused"):
        log.error("A step of attempt %s of run %s failed: %s.", *what, why, extra=extra)
        outcomes.settle(execution.run_id, execution.attempt)
    elif steps.dismiss(execution.step, execution.run_id, execution.attempt):
        log.info("A step of attempt %s of run %s is no longer wanted.", *what, extra=extra)
        outcomes.settle(execution.run_id, execution.attempt)


def _claim(execution: Execution, node: str, sent: Sent) -> bool:
    """Claim the attempt for this process. Beat sends unstarted runs again, so only steps wait for the database."""
    run_id, attempt, pid = execution.run_id, execution.attempt, os.getpid()
    if why := installation.own_name() and on_good_connection(installation.refusal):
        refusals.give_back(Named(run_id, attempt, execution.step or ""), f"{node} starts nothing here: {why}")
        return False
    if execution.step is not None:
        return patiently(partial(forgery.start_step, execution, execution.step, node, pid, sent))
    return on_good_connection(partial(forgery.start, execution, node, pid, sent))
