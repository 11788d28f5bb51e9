"""What does a schedule ask Celery to run? Parses a `PeriodicTask`'s text columns into a message, or refuses them.

Its one rule: every database can store a message, JSON can encode it, and it names exactly the job that the schedule
names. Forms parse it before saving, the claim before every run.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any, Protocol

from celery import current_app
from celery.app.task import Context
from kombu.utils import json as json_of_kombu

from jobs.messages import form, queues
from jobs.messages.arguments import check_fits, find_task
from jobs.rules.errors import Invalid

LONGEST_ARGUMENTS = 16_384  # characters of JSON
DEEPEST_ARGUMENTS = 20
NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")  # in JSON: an odd number of backslashes escapes
# Celery makes each header an attribute of the task's request, which replaces any other, methods included: a schedule
# with such a header could run another task than the one it names. Celery reads the further names from the message.
FURTHER = ("clock", "group_id", "groups", "priority", "task_id", "MessageGroupId", "MessageDeduplicationId")
OF_CELERY = frozenset({*dir(Context), *form.FIELDS, *FURTHER} - {"periodic_task_name"})  # which Punctual sets itself
# Prefixes of Punctual's headers and of private attributes, and headers that RabbitMQ reads: CC sends a copy elsewhere.
OF_OTHERS = re.compile(r"punctual_|_|(?:b?cc|x-(?:match|delay|death))$|x-(?:first|last)-death-", re.IGNORECASE)
# The options of a message that a policy stores.
STORED_OPTIONS = frozenset(
    [
        *("soft_time_limit", "serializer", "compression", "shadow"),
        *("delivery_mode", "mandatory", "timeout", "confirm_timeout", "MessageGroupId", "message_attributes"),
    ]
)


@dataclass(frozen=True, slots=True)
class Message:
    """The parts of a Celery message, as a `Run` stores them."""

    task: str
    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)
    queue: str = ""
    priority: int | None = None
    options: dict[str, Any] = field(default_factory=dict)


class ScheduleColumns(Protocol):
    """The columns of a `PeriodicTask` that its messages are made of."""

    @property
    def task(self) -> str: ...
    @property
    def args(self) -> str: ...
    @property
    def kwargs(self) -> str: ...
    @property
    def headers(self) -> str: ...
    @property
    def queue(self) -> str | None: ...
    @property
    def exchange(self) -> str | None: ...
    @property
    def routing_key(self) -> str | None: ...
    @property
    def priority(self) -> int | None: ...


class PolicyColumns(Protocol):
    """The columns of a `Policy` that go into messages."""

    @property
    def soft_time_limit(self) -> int | None: ...
    @property
    def time_limit(self) -> int | None: ...
    @property
    def keep_result(self) -> bool | None: ...
    @property
    def options(self) -> dict[str, Any] | None: ...


def message_of(schedule: ScheduleColumns, policy: PolicyColumns) -> Message:
    """The message of a schedule's next run. Raises `Invalid` with a sentence that says what to change."""
    args = read(schedule.args, "Positional arguments", list)
    kwargs = read(schedule.kwargs, "Keyword arguments", dict)
    check_fits(schedule.task, args, kwargs)
    if queue := schedule.queue or queues.of_task(find_task(schedule.task)):
        queues.check(queue, current_app)
    queues.check_exchange(schedule.exchange, current_app)
    return Message(
        task=schedule.task,
        args=args,
        kwargs=kwargs,
        queue=schedule.queue or "",
        priority=schedule.priority,
        options=_options(schedule, policy),
    )


def read(text: str | None, what: str, kind: type[Any]) -> Any:
    """A JSON list or object that every database and every JSON reader accepts. Raises `Invalid`."""
    if not text:
        return kind()
    if len(text) > LONGEST_ARGUMENTS:
        raise Invalid(f"{what} are longer than {LONGEST_ARGUMENTS} characters: pass an id and let the job look it up.")
    try:
        value = Decoder().decode(text)
    except json.JSONDecodeError as error:
        raise Invalid(f"{what} are not valid JSON: {error}") from error
    if not isinstance(value, kind):
        raise Invalid(f"{what} must be a JSON {'list' if kind is list else 'object'}.")
    _check_storable(value, what, DEEPEST_ARGUMENTS)
    return value


def as_json(value: Any) -> Any:
    """The value as a message carries it, in plain JSON; a worker reads dates, decimals and UUIDs from it again.

    Raises `Invalid` if it cannot be a message, or if PostgreSQL cannot store it.
    """
    try:
        text = json_of_kombu.dumps(value)
        if NUL.search(text):
            raise Invalid("The arguments contain the character NUL, which no database row can hold.")
        return Decoder().decode(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise Invalid(f"The arguments cannot be a message: {error}.") from error


def _options(schedule: ScheduleColumns, policy: PolicyColumns) -> dict[str, Any]:
    headers = read(schedule.headers, "Message headers", dict)
    if taken := sorted(name for name in headers if name in OF_CELERY or OF_OTHERS.match(name)):
        raise Invalid(f"Message headers must not set {', '.join(taken)}: these belong to Celery or the broker.")
    stored = policy.options or {}
    if not isinstance(stored, dict) or not stored.keys() <= STORED_OPTIONS:
        raise Invalid(f"The options in its policy must be a JSON object of {', '.join(sorted(STORED_OPTIONS))}.")
    options = {
        "exchange": schedule.exchange,
        "routing_key": schedule.routing_key,
        "headers": headers,
        "time_limit": policy.time_limit,
        "soft_time_limit": policy.soft_time_limit,
        "ignore_result": None if policy.keep_result is None else not policy.keep_result,
    }
    return {**stored, **{name: value for name, value in options.items() if value not in (None, "", {})}}


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is too large for a number")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


class Decoder(json.JSONDecoder):
    """Reads only JSON that every reader accepts. Raises JSONDecodeError for any other text."""

    def __init__(self, **_: Any) -> None:
        super().__init__(parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_unique)

    def decode(self, text: str, *_: Any) -> Any:
        try:
            value = super().decode(text)
            if "\\u" in text:
                json.dumps(value, ensure_ascii=False).encode()  # refuses lone surrogates
        except json.JSONDecodeError:
            raise
        except (ValueError, RecursionError) as error:  # too many digits, deep nesting, and the errors above
            raise json.JSONDecodeError(str(error), text, 0) from error
        return value


def _check_storable(value: Any, what: str, depth: int) -> None:
    if depth == 0:
        raise Invalid(f"{what} are nested deeper than {DEEPEST_ARGUMENTS} levels.")
    if isinstance(value, str) and not _is_clean(value):
        raise Invalid(f"{what} contain control characters or broken Unicode: remove them.")
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    for item in value if isinstance(value, list) else ():
        _check_storable(item, what, depth - 1)


def _is_clean(text: str) -> bool:
    """No control characters except tab and line ends, and no lone surrogates; PostgreSQL refuses NUL and surrogates."""
    return not any((c < " " and c not in "\t\n\r") or c == "\x7f" or "\ud800" <= c <= "\udfff" for c in text)
