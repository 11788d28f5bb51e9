"""Which errors end Celery's worker, or stop it from taking messages? Mends them in its consumer and request.

Its one rule: everything but the mended lines is Celery's own. In Celery and kombu 5.7, with Redis, an AttributeError
ends a worker whose broker fails while it holds a message that no process has begun, or that acknowledges a message over
a connection that was replaced. The MemoryError of a task ends it, too. And it takes no more messages after as many as
it may hold could not be acknowledged in time. It stores a failed result for a run whose task it does not know, though
another worker may take the run, and says nothing about a message that it cannot decode. `limits` mends rate limits.

Limit: a connection that cannot be closed, or a message that cannot be acknowledged, is left behind. The ledger knows
which runs it was; the message of a plain task comes again or is lost, as with Celery.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from billiard.exceptions import Terminated
from celery import signals
from celery.exceptions import TimeLimitExceeded, WorkerLostError
from celery.worker.request import Request as CeleryRequest
from django.db import connections

from jobs.monitoring import nodes
from jobs.rules.errors import logged
from jobs.worker import refusals, resources
from jobs.worker.limits import LimitedConsumer
from jobs.worker.signals import on_child_gone

log = logging.getLogger(__name__)

CHILD_GONE = (WorkerLostError, TimeLimitExceeded, Terminated, SystemExit, KeyboardInterrupt)
AGAIN = 1.0  # seconds until the next try to acknowledge a message


class Consumer(LimitedConsumer):
    """The setting `worker_consumer` names it."""

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        # Celery makes a new connection next, whether the lost one can be closed or not.
        with logged(log, "A lost connection could not be closed.", level=logging.DEBUG):
            super().on_connection_error_after_connected(exc)

    def shutdown(self) -> None:
        """A worker in a thread of a test ends before its process does. Celery sends no `worker_shutdown` then."""
        super().shutdown()
        nodes.stop_beating()
        resources.stop()
        connections.close_all()

    def cancel_active_requests(self) -> None:
        """A pool without processes cannot end its tasks; Celery's own would raise that in the middle of one."""
        with suppress(NotImplementedError):
            super().cancel_active_requests()

    def call_soon_ack(self, p: Callable[..., None], *args: Any, **kwargs: Any) -> Any:
        """Celery passes a message's `ack_log_error` or `reject_log_error`, to be called where its connection lives."""
        return super().call_soon_ack(self._settle, p, *args, **kwargs)  # type: ignore[misc] # new in Celery 5.7

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        if refusals.named_by(message.headers) is None:
            super().on_unknown_task(body, message, exc)
            return
        message.reject_log_error(log, self.connection_errors)  # type: ignore[attr-defined] # set in Celery's `__init__`
        task, task_id = message.headers["task"], message.headers["id"]
        signals.task_unknown.send(sender=self, message=message, exc=exc, name=task, id=task_id)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        super().on_decode_error(message, exc)
        refusals.refuse(message, refusals.sentence(self.hostname, exc))

    def _settle(self, p: Any, logger: logging.Logger, errors: tuple[type[Exception], ...], *rest: Any) -> None:
        try:
            p(logger, (), *rest)  # without errors to log, it raises all of them
        except Exception as error:
            present = self.task_consumer  # type: ignore[attr-defined] # set by a step of Celery's
            if present is None or p.__self__.channel is not present.channel:
                log.debug("A message of a former connection could not be acknowledged.", exc_info=True)
            elif isinstance(error, BrokenPipeError) or not isinstance(error, errors):
                raise
            else:
                log.warning("The broker did not take an acknowledgement; it is sent again: %s", error)
                self.timer.call_after(AGAIN, self.call_soon_ack, (p, logger, errors, *rest))


class Request(CeleryRequest):
    """A message in the worker. `jobs.worker.task.Job` names it."""

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        """Tell the ledger that a child has died: where Celery sends the message again, it reports no failure.

        Also replaces the `MemoryError` of a task: Celery would raise it again here, which ends the whole worker.
        """
        exception = getattr(exc_info.exception, "exc", exc_info.exception)  # billiard wraps exceptions from a child
        if isinstance(exception, CHILD_GONE) and (named := refusals.named_by(self.request_dict)):
            on_child_gone(named, self.id, exception, revoked=self._already_revoked)  # type: ignore[attr-defined]
        if isinstance(exception, MemoryError):
            exc_info.exception = RuntimeError(f"{type(exception).__name__}: {exception}")
        return super().on_failure(exc_info, *args, **kwargs)
