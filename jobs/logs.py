"""Keeps what a run logs: lines of Python's `logging`, written while it executes, with secrets masked.

Its one rule: it costs a process that executes no run one look into an empty dict. Celery's own lines are left out.
Limits: what a task prints, or logs from a thread of its own, is not a line of its run; a secret that stands alone,
without a word such as `password` beside it, cannot be told from other text.
"""

import logging
import re

FOREIGN = ("celery", "kombu", "amqp", "jobs.pulse", "jobs.base")

_WORDS = r"passw(?:or)?d|passphrase|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|credentials?"
_SECRETS = [
    # password=..., "api_key": "...", X-Auth-Token: ...
    re.compile(rf"""(?i)([\w-]*(?:{_WORDS})[\w-]*["']?\s*[:=]\s*)(?:"[^"]*"|'[^']*'|[^\s,;&)\]}}]+)"""),
    re.compile(r"(?i)(\bauthorization[\"']?\s*[:=]\s*[\"']?(?:\w+\s+)?)[^\s\"',;]+"),
    re.compile(r"(?i)(\b(?:bearer|basic)\s+)[\w.~+/=-]{8,}"),
    re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s:/@]*:)[^\s/@]+(?=@)"),
]


def mask(text: str) -> str:
    """The text with `***` in place of what stands beside a word for a secret, or as the password of an address."""
    for secret in _SECRETS:
        text = secret.sub(r"\1***", text)
    return text


class RunHandler(logging.Handler):
    """A handler of the root logger: appends to the run that the logging task belongs to."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith(FOREIGN):
            return
        from jobs import pulse  # late: logging is set up before Django's models can be

        if held := pulse.current():
            held.lines.append(mask(self.format(record)).replace("\0", "\\0") + "\n")
            pulse.tell()
