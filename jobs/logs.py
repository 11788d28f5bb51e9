"""Keeps what a run logs: lines of Python's `logging`, written while it executes, with secrets masked.

Its one rule: it costs a process that executes no run one look into an empty dict. Celery's own lines are left out.
Limits: what a task prints, or logs from a thread of its own, is not a line of its run; a secret that stands alone,
without a word such as `password` beside it, cannot be told from other text.
"""

import logging
import re

from django.conf import settings

FOREIGN = {"celery", "kombu", "amqp"}  # top-level names of loggers
LONGEST_LINE = 10_000  # characters, of the message with its traceback; the end is kept

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
    for value in settings.JOB_SECRETS.values():
        text = text.replace(value, "***")
    for secret in _SECRETS:
        text = secret.sub(r"\1***", text)
    return text


def storable(text: str) -> str:
    """What every database can store of a text that a task brought forth."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


class RunHandler(logging.Handler):
    """A handler of the root logger: appends to the run that the logging task belongs to."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] in FOREIGN or record.name in {"jobs.pulse", "jobs.base"}:
            return
        from jobs import pulse  # late: logging is set up before Django's models can be

        if held := pulse.current():
            line = mask(storable(self.format(record))[-LONGEST_LINE:]) + "\n"
            held.lines.append(line)
            pulse.tell()
