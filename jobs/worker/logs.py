"""Which log lines belong to a run? The lines of Python's `logging` during its execution, with secrets masked.

Its one rule: outside a run, a log line only costs reading Celery's empty stack of tasks. Celery's own lines are left
out.
Limits: the output of `print`, and lines from threads that a task starts, are not in the log of its run.
"""

import logging

from django.apps import apps

from jobs.secrets import mask, tail

# Loggers that write about runs, for operators.
OWN = {f"jobs.worker.{name}" for name in ("connection", "pulse", "task")}
FOREIGN = {"celery", "kombu", "amqp"}  # top-level names of loggers
LONGEST_LINE = 10_000  # characters, of the message with its traceback; the end is kept


class Formatter(logging.Formatter):
    """The formatter of every handler: masks secrets in log lines, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        return mask(super().format(record))


class RunHandler(logging.Handler):
    """A handler of the root logger: appends each line to the run of the task that logs it."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] in FOREIGN or record.name in OWN or not apps.models_ready:
            return
        from jobs.worker import context  # late: logging is set up before Django's models can be imported

        if execution := context.current():
            try:
                execution.log(tail(self.format(record), LONGEST_LINE) + "\n")
            except Exception:  # noqa: BLE001 - logging's own rule: a faulty log call does not fail the job
                self.handleError(record)
