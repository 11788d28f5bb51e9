"""What does a worker do when its broker goes away under it? It connects again, and takes messages again.

Celery's consumer does so, too, but for three cases (Celery and kombu 5.7 with Redis). A message was in hand that no
process had begun: it gives the connection up, wants to give the message back over it, and an AttributeError ends the
worker. A message is acknowledged when its connection has been replaced: another AttributeError ends the worker. An
acknowledgement takes too long: it is given up, and its message counts as in hand for ever; with as many of them as it
may hold, the worker lives on and takes no other.

Here what cannot be closed is left behind, for the ledger knows what was in hand; and so is a message of a former
connection. What the broker did not take in time is acknowledged again, until it does.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.request import Request as CeleryRequest

log = logging.getLogger(__name__)

AGAIN = 1.0  # seconds


class Consumer(CeleryConsumer):
    """The setting `worker_consumer` names it."""

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        try:
            super().on_connection_error_after_connected(exc)
        except Exception:
            log.debug("A lost connection could not be closed.", exc_info=True)

    def cancel_active_requests(self) -> None:
        """A pool without processes cannot end what it executes. Celery's own raises that in the middle of the task."""
        with suppress(NotImplementedError):
            super().cancel_active_requests()

    def call_soon_ack(self, p: Callable[..., None], *args: Any, **kwargs: Any) -> Any:
        """Celery gives this a message's `ack_log_error` or `reject_log_error`, to be called where its connection is."""
        return super().call_soon_ack(self._settle, p, *args, **kwargs)  # type: ignore[misc] # new in Celery 5.7

    def _settle(self, p: Any, logger: logging.Logger, errors: tuple[type[Exception], ...], *rest: Any) -> None:
        try:
            p(logger, (), *rest)  # it is to raise all errors, and to log none away
        except Exception as error:
            present = self.task_consumer  # type: ignore[attr-defined] # set by a step of Celery's
            if present is None or p.__self__.channel is not present.channel:
                log.debug("A message of a former connection could not be acknowledged.", exc_info=True)
            elif isinstance(error, BrokenPipeError) or not isinstance(error, errors):
                raise
            else:
                log.warning("The broker did not take an acknowledgement, it is asked again: %s", error)
                self.timer.call_after(AGAIN, self.call_soon_ack, (p, logger, errors, *rest))


class Request(CeleryRequest):
    """A message in the worker. `jobs.base.Job` names it."""

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        """Celery's own raises the `MemoryError` of a task once more, here, and so ends the worker with all it does."""
        exception = getattr(exc_info.exception, "exc", exc_info.exception)  # billiard wraps what it brings from a child
        if isinstance(exception, MemoryError):
            exc_info.exception = RuntimeError(f"{type(exception).__name__}: {exception}")
        return super().on_failure(exc_info, *args, **kwargs)
