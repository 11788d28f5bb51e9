"""Keeps what a run logs: lines of Python's `logging`, written while it executes, with secrets masked.

Its one rule: it costs a process that executes no run one look into an empty dict. Celery's own lines are left out.
Limits: what a task prints, or logs from a thread of its own, is not a line of its run; a secret that stands alone,
without a word such as `password` beside it, cannot be told from other text.
"""

import json
import logging
import re
from functools import cache
from urllib.parse import quote

from django.conf import settings

FOREIGN = {"celery", "kombu", "amqp"}  # top-level names of loggers
LONGEST_LINE = 10_000  # characters, of the message with its traceback; the end is kept
SHORTEST = 8  # characters of a line of a secret that is masked by itself

_WORDS = r"passw(?:or)?d|passphrase|secret|token|api[_-]?key|session[_-]?id|access[_-]?key|private[_-]?key|credentials?"
_SECRETS = [
    # password=..., "api_key": "...", X-Auth-Token: ...
    re.compile(
        rf"""(?i)((?<![\w-])[\w-]{{0,60}}(?:{_WORDS})[\w-]{{0,60}}["']?\s{{0,9}}[:=]\s{{0,9}})(?:"[^"]*"|'[^']*'|[^\s,;&)\]}}]+)"""
    ),
    re.compile(r"(?i)(\bauthorization[\"']?\s*[:=]\s*[\"']?(?:\w+\s+)?)[^\s\"',;]+"),
    re.compile(r"(?i)(\b(?:bearer|basic)\s+)[\w.~+/=-]{8,}"),
    re.compile(r"(://[^\s:/@]{0,100}:)[^\s/]{1,300}(?=@)"),
]


def mask(text: str) -> str:
    """The text with `***` for each secret of jobs, what stands beside a word for one, and passwords in addresses."""
    if known := _any_of(tuple(settings.JOB_SECRETS.values())):
        text = known.sub("***", text)
    for secret in _SECRETS:
        text = secret.sub(r"\1***", text)
    return text


def head(text: str, longest: int) -> str:
    """The beginning of a text, masked and as every database can store it."""
    # Masked before it is cut: a half of a secret would not be known. The margin is what masking may take away.
    return mask(storable(text[: 2 * longest]))[:longest]


def tail(text: str, longest: int) -> str:
    """The same of its end."""
    return mask(storable(text[-2 * longest :]))[-longest:]


def storable(text: str) -> str:
    """What every database can store of a text that a task brought forth."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


class Formatter(logging.Formatter):
    """For every handler: what a log shows, it shows masked, tracebacks too."""

    def format(self, record: logging.LogRecord) -> str:
        return mask(super().format(record))


class RunHandler(logging.Handler):
    """A handler of the root logger: appends to the run that the logging task belongs to."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] in FOREIGN or record.name in {"jobs.worker.pulse", "jobs.worker.task"}:
            return
        from jobs.worker import pulse  # late: logging is set up before Django's models can be

        if held := pulse.current():
            try:
                held.lines.append(tail(self.format(record), LONGEST_LINE) + "\n")
            except Exception:  # noqa: BLE001 - logging's own way: a slip in a line of log is no failure of the job
                self.handleError(record)
            pulse.tell()


@cache
def _any_of(values: tuple[str, ...]) -> re.Pattern[str] | None:
    """What finds these secrets: as they are, as Python, JSON and addresses quote them, and each long line of them."""
    forms = set()
    for value in values:
        forms |= {value, repr(value)[1:-1], json.dumps(value)[1:-1], quote(value, safe="")}
        forms |= {line for line in value.splitlines() if len(line) >= SHORTEST}
    longest_first = sorted(forms, key=len, reverse=True)  # one may be the beginning of another
    return re.compile("|".join(map(re.escape, longest_first))) if forms else None
