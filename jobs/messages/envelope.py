"""Which message does Celery publish for a run? Celery makes one for each kind. Later runs get a copy with their ids.

Its one rule: a copy is exactly the message that `apply_async` would have published: same route, headers and options.
Where a receiver listens to publishing, a router reads more than the task's name, or a task overrides how it publishes,
nothing is copied: each run calls `apply_async`.
"""

from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from celery import current_app, signals
from celery.app.routes import MapRoute
from celery.utils.saferepr import saferepr

from jobs.messages.arguments import find_task

# The header that says which attempt of its run a message starts.
ATTEMPT_HEADER = "punctual_attempt"
# The header with the id and the name of the schedule, in messages of runs and of steps.
SCHEDULE_HEADER = "punctual_schedule"
DESTINATION = ("queue", "exchange", "routing_key")  # options that say where a message goes
MAKERS = ("apply_async", "shadow_name")  # methods that see the arguments of a message; a task may override them
ORDINARY = {"celery.app.task", "jobs.worker.task"}  # the modules whose versions of these methods allow copies


class Sendable(Protocol):
    """The columns of a run that its message needs."""

    id: UUID
    schedule_id: int | None
    schedule_name: str
    task: str
    args: Any
    kwargs: Any
    queue: str
    priority: int | None
    options: Any
    attempt: int
    sends: int


@dataclass(frozen=True, slots=True)
class _Envelope:
    """A published message without the parts that differ from run to run."""

    headers: dict[str, Any]
    embedded: dict[str, Any]
    options: dict[str, Any]


class Envelopes:
    """The envelopes of one batch, each made for the first run of its kind."""

    def __init__(self, producer: Any) -> None:
        self._producer = producer
        self._known: dict[tuple[Any, ...], _Envelope | None] = {}
        self._longest = current_app.amqp.argsrepr_maxsize, current_app.amqp.kwargsrepr_maxsize

    def publish(self, run: Sendable) -> None:
        """Publish the message of this run.

        Raises LookupError, TypeError, ValueError or EncodeError when no message can be made.
        """
        kind = (run.task, run.queue, run.priority, repr(run.options))
        if kind not in self._known:
            self._known[kind] = self._learn(run)
        envelope = self._known[kind]
        if envelope is None:
            _apply(run, self._producer)
        else:
            self._send_copy(envelope, run)

    def _learn(self, run: Sendable) -> _Envelope | None:
        if not _can_be_copied(find_task(run.task)):
            return None
        recorder = _Recorder(self._producer)
        _apply(run, recorder)
        options = recorder.options
        for entity in options.pop("declare") or ():
            self._producer.maybe_declare(entity)
        return _Envelope(options.pop("headers"), recorder.body[2], options)

    def _send_copy(self, envelope: _Envelope, run: Sendable) -> None:
        run_id = str(run.id)
        headers = {
            **envelope.headers,
            "id": run_id,
            "root_id": run_id,
            "parent_id": None,
            "argsrepr": saferepr(run.args, self._longest[0]) if run.args else "()",
            "kwargsrepr": saferepr(run.kwargs, self._longest[1]) if run.kwargs else "{}",
            **_own_headers(run),
        }
        body = (run.args, run.kwargs, envelope.embedded)
        self._producer.publish(body, headers=headers, **{**envelope.options, "correlation_id": run_id})


class _Recorder:
    """A producer that records the message instead of publishing it."""

    def __init__(self, producer: Any) -> None:
        self.connection = producer.connection
        self.body: tuple[Any, Any, dict[str, Any]] = ((), {}, {})
        self.options: dict[str, Any] = {}

    def publish(self, body: tuple[Any, Any, dict[str, Any]], **options: Any) -> None:
        self.body, self.options = body, options


def _apply(run: Sendable, producer: Any) -> None:
    task = find_task(run.task)
    if task is None:
        raise LookupError(f"no job is named {run.task!r}")
    options = dict(run.options)
    options["headers"] = {**options.get("headers", {}), **_own_headers(run)}
    if run.queue:
        options["queue"] = run.queue
    if run.priority is not None:
        options["priority"] = run.priority
    options |= {"task_id": str(run.id), "retry": False}
    task.apply_async(args=run.args, kwargs=run.kwargs, producer=producer, **options)


def _own_headers(run: Sendable) -> dict[str, Any]:
    """The attempt and the schedule, whose name django-celery-results looks for in a header of its own."""
    attempt = {ATTEMPT_HEADER: run.attempt}
    if not run.schedule_id:
        return attempt
    return {**attempt, SCHEDULE_HEADER: [run.schedule_id, run.schedule_name], "periodic_task_name": run.schedule_name}


def queue_of(run: Sendable) -> str:
    """The queue that the run's message goes to; empty if it names an exchange. A router of the project may raise."""
    task = find_task(run.task)
    own = {name: getattr(task, name, None) for name in DESTINATION}
    options = {**own, **run.options, **({"queue": run.queue} if run.queue else {})}
    options = {name: options[name] for name in DESTINATION if options[name]}
    if options.keys() - {"queue"}:
        return ""
    return str(current_app.amqp.router.route(options, run.task, run.args, run.kwargs, task)["queue"].name)


def keeps_arguments(task: Any) -> bool:
    """Whether the messages of a run have the arguments of its row, because no other code may change them."""
    is_json = (task.serializer or current_app.conf.task_serializer) == "json"
    return is_json and _is_ordinary(task) and not signals.before_task_publish.receivers


def _is_ordinary(task: Any) -> bool:
    return {base.__module__ for base in type(task).__mro__ if vars(base).keys() & MAKERS} <= ORDINARY


def _can_be_copied(task: Any) -> bool:
    watched = any(
        signal.receivers for signal in (signals.before_task_publish, signals.after_task_publish, signals.task_sent)
    )
    router: Any = current_app.amqp.router
    by_name = all(isinstance(route, MapRoute) for route in router.routes)
    conf = current_app.conf
    return by_name and _is_ordinary(task) and not (watched or conf.task_send_sent_event or conf.task_always_eager)
