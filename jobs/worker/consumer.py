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
from functools import partial
from typing import Any

from billiard.exceptions import Terminated
from celery import signals
from celery.exceptions import TimeLimitExceeded, WorkerLostError
from celery.worker.request import Request as CeleryRequest
from django.db import connections
from kombu.exceptions import ContentDisallowed, DecodeError

from jobs.messages import form, signing
from jobs.messages.dispatch import OTHER_TYPE
from jobs.monitoring import nodes
from jobs.rules.errors import error_of, logged, of_broker
from jobs.worker import control, refusals, resources, set_aside
from jobs.worker.limits import LimitedConsumer
from jobs.worker.signals import on_child_gone

log = logging.getLogger(__name__)

CHILD_GONE = (WorkerLostError, TimeLimitExceeded, Terminated, SystemExit, KeyboardInterrupt)
AGAIN = 1.0  # seconds until the next try to acknowledge a message


class Consumer(LimitedConsumer):
    """The setting `worker_consumer` names it."""

    def __init__(self, *args: Any, worker_options: Any = None, **kwargs: Any) -> None:
        # The replies to mingle end a worker or revoke tasks: they obey no limit of remote control.
        options = worker_options if control.is_full() else {**(worker_options or {}), "without_mingle": True}
        super().__init__(*args, worker_options=options, **kwargs)
        set_aside.node = self.hostname

    def create_task_handler(self, *args: Any, **options: Any) -> Callable[[Any], None]:
        """Celery's function for each message. It sets aside a message that Celery cannot take."""
        take = partial(self._take, super().create_task_handler(*args, **options))
        passing = of_broker((*self.connection_errors, *self.channel_errors))  # type: ignore[attr-defined] # set in `__init__`

        def receive(message: Any) -> None:
            error = error_of(partial(take, message), passing)
            if error is not None:
                known = isinstance(error, form.Unreadable)
                self._set_aside(message, str(error) if known else refusals.sentence(self.hostname, error))

        return receive

    def _take(self, handle: Callable[[Any], object], message: Any) -> None:
        why = signing.fault(message)
        if not why:
            with suppress(DecodeError, ContentDisallowed):  # `handle` refuses it
                why = form.fault_of_task(message.headers, message.payload)
        if why:
            raise form.Unreadable(why)
        handle(message)

    def _set_aside(self, message: Any, why: str) -> None:
        set_aside.note_message(message, why)
        refusals.refuse_run(refusals.named_by(message.headers), f"{self.hostname} set its message aside: {why}")
        if not message.acknowledged:
            message.reject_log_error(log, self.connection_errors)  # type: ignore[attr-defined] # set in `__init__`

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        super().on_connection_error_before_connected(exc)
        self._mend_keys(exc)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        # Celery makes a new connection next, whether the lost one can be closed or not.
        with logged(log, "A lost connection could not be closed.", level=logging.DEBUG):
            super().on_connection_error_after_connected(exc)
        self._mend_keys(exc)

    def _mend_keys(self, exc: Exception) -> None:
        """Rename keys of Redis with a wrong type, which would fail on a new connection, too."""
        if OTHER_TYPE not in str(exc):
            return
        with logged(log, "The keys of Redis could not be checked."), self.app.connection_for_write() as connection:
            control: Any = self.app.control
            queues, mailbox = self.app.amqp.queues.consume_from, control.mailbox
            exchanges = {queue.exchange.name for queue in queues.values() if queue.exchange}
            exchanges |= {mailbox.exchange.name, mailbox.reply_exchange.name, self.app.conf.event_exchange}
            channel: Any = connection.default_channel
            channel.mend_keys(list(queues), exchanges)

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
        why = refusals.sentence(self.hostname, exc)
        set_aside.note_message(message, why)
        if not (signing.keys() and message.errors):  # the signature of such a message was not checked
            refusals.refuse(message, why)

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        super().on_invalid_task(body, message, exc)
        set_aside.note_message(message, refusals.sentence(self.hostname, exc))

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
