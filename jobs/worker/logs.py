"""Keeps what a run logs: lines of Python's `logging`, written while it executes, with secrets masked.

Its one rule: it costs a process that executes no run one look at Celery's empty stack of tasks. Celery's own lines are
left out.
Limits: what a task prints, or logs from a thread of its own, is not a line of its run.
"""

import logging

from jobs.secrets import mask, tail

# Loggers that write about runs, not for them.
OWN = {f"jobs.worker.{name}" for name in ("connection", "pulse", "task")}
FOREIGN = {"celery", "kombu", "amqp"}  # top-level names of loggers
LONGEST_LINE = 10_000  # characters, of the message with its traceback; the end is kept


class Formatter(logging.Formatter):
    """For every handler: what a log shows, it shows masked, tracebacks too."""

    def format(self, record: logging.LogRecord) -> str:
        return mask(super().format(record))


class RunHandler(logging.Handler):
    """A handler of the root logger: appends to the run that the logging task belongs to."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] in FOREIGN or record.name in OWN:
            return
        from jobs.worker import context  # late: logging is set up before Django's models can be

        if execution := context.current():
            try:
                execution.log(tail(self.format(record), LONGEST_LINE) + "\n")
            except Exception:  # noqa: BLE001 - logging's own way: a slip in a line of log is no failure of the job
                self.handleError(record)
