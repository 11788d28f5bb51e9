"""Which queues exist, and which ones does Punctual refuse? Celery's tables of queues, with the rules of `rules.queues`.

Its one rule: no message goes to a refused queue, and no worker consumes one. The name may come from a row, the
settings, an option of a task, a router or `--queues`: Celery looks up all of them in these tables.

Limit: messages of other programs do not pass here.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from celery.app import amqp
from celery.app.routes import MapRoute
from celery.exceptions import SecurityError
from kombu import Queue

from jobs.rules.errors import Invalid
from jobs.rules.queues import refusal, reserved

KEYS = ("unacked_key", "unacked_index_key", "unacked_mutex_key")  # options of kombu's transport for Redis


class QueueRefusedError(Invalid, SecurityError):
    """No queue may have this name. `celery worker` prints the sentence of a SecurityError, and ends."""


class Queues(amqp.Queues):
    """Celery's table of queues. Celery adds an undefined name when a message or a worker first uses it."""

    app: Any = None  # unknown until the table holds the queues of the settings

    def _add(self, queue: Any) -> Any:
        _refuse_if(reserved(queue.name, _taken(self.app)))
        return super()._add(queue)  # type: ignore[misc] # unknown to celery-types

    def new_missing(self, name: str) -> Any:
        check(name, self.app)
        return super().new_missing(name)


class AMQP(amqp.AMQP):
    """Celery's `app.amqp`."""

    queues_cls = Queues

    def Queues(self, *args: Any, **options: Any) -> Any:  # noqa: N802 - Celery's name
        queues: Any = super().Queues(*args, **options)
        queues.app = self.app
        for name in queues:
            _refuse_if(reserved(name, _taken(self.app)))
        return queues

    def _create_task_sender(self) -> Callable[..., Any]:
        send = super()._create_task_sender()  # type: ignore[misc] # unknown to celery-types

        def send_task_message(*args: Any, exchange: Any = None, queue: Any = None, **options: Any) -> Any:
            check_exchange(getattr(exchange, "name", exchange), self.app)
            _refuse_if(reserved(_name(queue), _taken(self.app)))  # code may pass a queue that is in no table
            return send(*args, exchange=exchange, queue=queue, **options)

        return send_task_message


def check(name: str, app: Any) -> None:
    """Refuse a queue that no message may go to. Raises `Invalid` with a sentence that says what to change."""
    taken = _taken(app)
    if refusal(name, (), taken):  # most names are plain: collect the defined ones only for the others
        _refuse_if(refusal(name, set(defined(app)), taken))


def check_exchange(name: Any, app: Any) -> None:
    """Refuse an exchange through which Celery reaches its workers by remote control or events. Raises `Invalid`."""
    if isinstance(name, str) and not name.startswith("amq."):  # every client may use RabbitMQ's own exchanges
        _refuse_if(reserved(name, _taken(app), "exchange"))


def of_task(task: Any) -> str:
    """The queue of the task's own `queue` option; empty if it has none."""
    return _name(getattr(task, "queue", None))


def defined(app: Any) -> Iterator[str]:
    """The queues of the settings and of the tasks that this process knows, with repetitions."""
    conf = app.conf
    yield conf.task_default_queue
    yield from (getattr(queue, "name", queue) for queue in conf.task_queues or ())
    maps: list[Any] = [router for router in app.amqp.routes if isinstance(router, MapRoute)]
    routes = [route for each in maps for route in (*each.map.values(), *each.patterns.values())]
    yield from filter(None, map(_queue_of_route, routes))
    yield from filter(None, map(of_task, list(app.tasks.values())))


def faults(app: Any) -> list[str]:
    """A sentence for each refused queue that the settings or a task name."""
    taken = _taken(app)
    return [why for name in dict.fromkeys(defined(app)) if (why := reserved(name, taken))]


def _queue_of_route(route: Any) -> str:
    return _name(route.get("queue") if isinstance(route, Mapping) else route)


def _name(queue: Any) -> str:
    return queue if isinstance(queue, str) else queue.name if isinstance(queue, Queue) else ""


def _taken(app: Any) -> frozenset[str]:
    if app is None:
        return frozenset()
    options = app.conf.broker_transport_options or {}
    own = {str(options[key]) for key in KEYS if key in options}
    return frozenset({app.conf.event_exchange, app.conf.event_queue_prefix, *own} - {None, ""})


def _refuse_if(why: str | None) -> None:
    if why:
        raise QueueRefusedError(why)
