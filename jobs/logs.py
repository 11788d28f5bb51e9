"""What does a log line look like? A sentence with keys: the same in every process, as text or as JSON (LOG_FORMAT).

    2026-11-30 09:15:00,123 WARNING jobs.ledger.outbox: Run 0193... cannot be sent: ... run=0193... action=dispatch

Its one rule: code logs with Python's `logging`. What it passes as `extra=` becomes keys, beside those that `register`ed
functions know, such as the run that the code belongs to. Secrets are masked in all of it: in the sentence, in the
values of keys and in tracebacks. As JSON each record is one line, also with a traceback, and its time is UTC.

Limits: a value that JSON does not know is written as text. A key with a name of `OWN` gets a `_` behind it.
"""

import json
import logging
import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from structlog.processors import JSONRenderer, format_exc_info
from structlog.stdlib import ExtraAdder, ProcessorFormatter

from jobs.secrets import mask, masked

LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
OWN = frozenset({"timestamp", "level", "logger", "event", "exception", "stack"})
# What formatters and libraries attach to a record for themselves.
DROPPED = frozenset({"message", "asctime", "request", "server_time", "data", "task_name"})
ERRORS = {"exc_info": "exc_info", "stack_info": "stack"}  # names of structlog, and ours
DEEPEST = 5  # levels of lists and mappings in a value
WORD = re.compile(r"[^\s\"=\\]+")  # needs no quotes
Keys = Mapping[str, Any]

_knowing: list[Callable[[], Keys]] = []
_add_extra, _render_json = ExtraAdder(), JSONRenderer()


def register(keys: Callable[[], Keys]) -> None:
    """Ask this function in each line for the keys of the code that is logging; empty if it knows none."""
    if keys not in _knowing:
        _knowing.append(keys)


def are_json() -> bool:
    """Whether the log lines of this process are JSON."""
    return getattr(settings, "LOG_FORMAT", "text") == "json"


class Plain(logging.Formatter):
    """A line without keys, as `LINE` or in an operator's own format, with secrets masked."""

    def __init__(self, fmt: str = LINE, *args: Any, **options: Any) -> None:
        super().__init__(fmt, *args, **options)

    def format(self, record: logging.LogRecord) -> str:
        before, name, text = super().format(record).partition(f"{record.name}: ")
        return mask(before) + name + mask(text)  # the logger "app.tokens" is not followed by a token


class Formatter(ProcessorFormatter):
    """The formatter of every handler: lines with keys. `as_json` decides in place of LOG_FORMAT."""

    def __init__(self, *, as_json: bool | None = None) -> None:
        self._is_json = are_json() if as_json is None else as_json
        render = _render_json if self._is_json else _render_text
        super().__init__(processors=[self._collect, format_exc_info, _clean, render])

    def _collect(self, _logger: Any, _method: str, event: Any) -> Any:
        """Put together what the record and the registered functions know."""
        record = event.pop("_record")
        utc = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        parts = {
            "timestamp": utc if self._is_json else self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": event.pop("event"),
        }
        errors = {new: event.pop(name) for name, new in ERRORS.items() if name in event}
        extra = _add_extra(logging.root, "", {"_record": record})
        known = {name: value for keys in _knowing for name, value in keys().items()}
        known |= {**_of_task(extra.get("data")), **_of_request(extra.get("request")), **extra, **event}
        return parts | {_free(name): value for name, value in known.items() if not _is_dropped(name)} | errors


def printed(line: str, stream: str, keys: Keys) -> str:
    """A line that a job printed, as a line of JSON."""
    record = {"name": stream, "levelname": "INFO", "levelno": logging.INFO, "msg": line}
    return Formatter(as_json=True).format(logging.makeLogRecord({**keys, **record}))


def sentence_of(line: str) -> str:
    """The sentence of a line, which may be JSON."""
    try:
        return str(json.loads(line)["event"])
    except (ValueError, LookupError, TypeError):
        return line


def _of_task(data: Any) -> Keys:
    """The keys of a line in which Celery reports a task."""
    if isinstance(data, Mapping) and {"id", "name"} <= data.keys():
        return {"task": data["name"], "task_id": data["id"]}
    return {}


def _of_request(request: Any) -> Keys:
    """The keys of a line in which Django reports a request, when its middleware is over."""
    request_id = getattr(request, "request_id", None)
    return {"request_id": request_id} if request_id else {}


def _is_dropped(name: str) -> bool:
    return name in DROPPED or name.startswith("_")


def _free(name: str) -> str:
    return f"{name}_" if name in OWN else name


def _clean(_logger: Any, _method: str, event: Any) -> Any:
    """Mask each value; as a rule there is nothing to mask, which one search of all of them shows."""
    plain = {name: _plain(value, DEEPEST) for name, value in event.items()}
    text = "\n".join(f"{name}={value}" for name, value in plain.items())
    has_parts = any(isinstance(value, (dict, list)) for value in plain.values())
    return masked(plain) if has_parts or mask(text) != text else plain


def _plain(value: Any, depth: int) -> Any:
    """The value as JSON knows it."""
    match value:
        case None | bool() | int():
            return value
        case float() if math.isfinite(value):
            return value
        case Mapping() if depth:
            return {str(name): _plain(part, depth - 1) for name, part in value.items()}
        case list() | tuple() | set() | frozenset() if depth:
            return [_plain(part, depth - 1) for part in value]
    return str(value)


def _render_text(_logger: Any, _method: str, event: Any) -> str:
    line = f"{event.pop('timestamp')} {event.pop('level').upper()} {event.pop('logger')}: {event.pop('event')}"
    below = [event.pop(name) for name in ("stack", "exception") if name in event]
    keys = [f"{_word(name)}={_word(value)}" for name, value in event.items()]
    return "\n".join([" ".join([line, *keys]), *below])


def _word(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return (
        text if WORD.fullmatch(text) and text.isprintable() else json.dumps(text, ensure_ascii=not text.isprintable())
    )
