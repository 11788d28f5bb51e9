"""What do beat and workers log, where to, and which lines belong to a run?

Its one rule: the operator's choice holds. `--loglevel`, `--logfile` and `worker_log_format` replace what LOGGING says;
where LOGGING does not configure the root logger, as with Django's default, Celery sets up its own handlers. They write
JSON with LOG_FORMAT=json, unless `worker_log_format` is set. In either case each line that a task logs or prints is
kept in its run, as text without keys, and secrets are masked in it. As JSON a printed line is a record, too.
Outside a run, a log line only costs reading a context variable. Celery's own lines are left out.

Limits: lines from threads that a task starts are in the log of its run only with the context of the task. Text that a
library writes to a file descriptor is neither kept nor masked. Formatters in your own LOGGING mask nothing, unless they
are those of `jobs.logs`. Celery's handlers write no keys as text. Celery writes a sentence about its shutdown, and beat
prints its banner, as text; both are no log lines.
"""

import logging
import sys
import threading
from collections.abc import Iterable
from functools import partial
from io import TextIOWrapper
from logging.handlers import WatchedFileHandler
from typing import Any

import click
from celery import signals
from celery.app.log import Logging as CeleryLogging
from celery.utils.log import ColorFormatter, get_multiprocessing_logger, mlevel
from click.core import ParameterSource
from django.apps import apps
from django.conf import settings
from django.utils.log import configure_logging

from jobs.logs import Formatter, Plain, are_json, printed
from jobs.secrets import edge, mask, tail

# Loggers that write about runs, for operators.
OWN = {f"jobs.worker.{name}" for name in ("connection", "pulse", "task")}
FOREIGN = {"celery", "kombu", "amqp"}  # top-level names of loggers
LONGEST_LINE = 10_000  # characters, of the message with its traceback; the end is kept
LOGGING = object()  # writes log lines, which are masked already
TASK_LOGGER = "celery.task"  # the parent of the loggers that Celery's `get_task_logger` returns


class RunHandler(logging.Handler):
    """A handler of the root logger: appends each line to the run of the task that logs it."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(Plain())

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] in FOREIGN or record.name in OWN or not apps.models_ready:
            return
        from jobs.worker import context  # late: logging is set up before Django's models can be imported

        if execution := context.current():
            try:
                execution.log(tail(self.format(record), LONGEST_LINE) + "\n")
            except Exception:  # noqa: BLE001 - logging's own rule: a faulty log call does not fail the job
                self.handleError(record)


class Printed:
    """Stands in for `sys.stdout` and `sys.stderr` in a worker: masks what a task prints, and appends it to its run."""

    def __init__(self, stream: Any, name: str) -> None:
        self._stream, self._name, self._is_json = stream, name, are_json()
        self._begun = threading.local()  # the unfinished line of a thread, and its writer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Pass on whole lines, because a task may print a word such as `password` before its value."""
        from jobs.worker import context  # late: logging is set up before Django's models can be imported

        writer = LOGGING if sys._getframe(1).f_globals.get("__name__") == "logging" else context.current()
        line, before = getattr(self._begun, "line", ("", None))
        if before is not writer:
            self._pass_on(line, before)
            line = ""
        whole, newline, begun = (line + text).rpartition("\n")
        if len(begun) > LONGEST_LINE + edge():  # pass on what cannot end in half a secret
            begun = mask(begun)
            whole, newline, begun = whole + newline, begun[: -edge()], begun[-edge() :]
        self._begun.line = begun, writer
        self._pass_on(whole + newline, writer)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Also pass on this thread's unfinished line."""
        line, writer = getattr(self._begun, "line", ("", None))
        self._begun.line = "", None
        self._pass_on(line, writer)
        self._stream.flush()

    def _pass_on(self, text: str, writer: Any) -> None:
        """`writer` is an execution, `LOGGING`, or None for code outside of runs."""
        if not text:
            return
        lines = text.splitlines(keepends=True)
        execution: Any = writer if writer is not LOGGING else None
        for line in lines if execution is not None else ():
            execution.log(tail(line, LONGEST_LINE))
        if not self._is_json:
            text = mask(text)
        elif writer is not LOGGING:
            keys = execution.keys if execution is not None else {}
            records = [printed(line.rstrip(), self._name, keys) for line in lines if not line.isspace()]
            text = "".join(f"{record}\n" for record in records)
        self._stream.write(text)


def _on_worker_init(sender: Any, **_: Any) -> None:
    if not sender.app.conf.worker_redirect_stdouts:  # else Celery makes log lines of them
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(line_buffering=True)  # in a file, too: a killed child loses what is buffered
        sys.stdout, sys.stderr = Printed(sys.stdout, "stdout"), Printed(sys.stderr, "stderr")


def _on_setup(instance: Any, **_: Any) -> None:
    instance.quiet = instance.quiet or are_json()  # Celery would print its banner


def connect() -> None:
    signals.worker_init.connect(_on_worker_init, dispatch_uid="jobs.worker.logs.printed")
    signals.celeryd_after_setup.connect(_on_setup, dispatch_uid="jobs.worker.logs.banner")


class Logging(CeleryLogging):
    """Celery's set-up of logging, `app.log`, with what LOGGING says."""

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        self.loglevel = mlevel(getattr(settings, "LOG_LEVEL", "INFO"))  # unless --loglevel is given

    def setup(self, loglevel: Any = None, *args: Any, **options: Any) -> Any:
        """In beat, a worker, and each child of its pool. The command line has a level even where none was given."""
        context = click.get_current_context(silent=True)
        given = context is None or context.get_parameter_source("loglevel") is not ParameterSource.DEFAULT
        return super().setup(loglevel if given else None, *args, **options)

    def setup_logging_subsystem(self, loglevel: Any = None, *args: Any, **options: Any) -> Any:
        if _configures_root():
            # Celery sets up nothing itself then.
            follow = partial(self._follow_settings, given=loglevel)
            signals.setup_logging.connect(follow, weak=False, dispatch_uid="jobs.worker.logs")
        handled = super().setup_logging_subsystem(loglevel, *args, **options)
        known = [each for each in logging.root.manager.loggerDict.values() if isinstance(each, logging.Logger)]
        for logger in (logging.getLogger(), logging.getLogger(TASK_LOGGER), *known):
            _keep_lines_of_runs(logger)
        return handled

    def setup_handlers(
        self,
        logger: Any,
        logfile: Any,
        format: str,  # noqa: A002 - Celery's name
        colorize: Any,
        formatter: type[logging.Formatter] = ColorFormatter,
        **options: Any,
    ) -> Any:
        """Called for each logger that Celery sets up itself."""
        is_free = not self.app.conf.value_set_for("worker_log_format")
        chosen: Any = (lambda *_, **__: Formatter()) if are_json() and is_free else _masking(formatter)
        return super().setup_handlers(logger, logfile, format, colorize, formatter=chosen, **options)

    def _follow_settings(self, logfile: str | None, *, given: Any, **_: Any) -> None:
        # The modules of jobs have made their loggers by now.
        configure_logging(settings.LOGGING_CONFIG, {**settings.LOGGING, "disable_existing_loggers": False})
        pool: Any = get_multiprocessing_logger()
        pool.propagate = True  # without a handler of its own, it would write bare sentences
        pool.setLevel(logging.WARNING)
        root = logging.getLogger()
        root.setLevel(given or root.level)
        for handler in filter(_writes_to_terminal, root.handlers[:]):
            if self.app.conf.value_set_for("worker_log_format"):
                handler.setFormatter(Plain(self.format, self.app.conf.worker_log_datefmt))
            if logfile:
                root.removeHandler(handler)
                root.addHandler(_to_file(logfile, like=handler))


def _configures_root() -> bool:
    given = settings.LOGGING if settings.LOGGING_CONFIG else {}
    return bool(given.get("root") or given.get("loggers", {}).get(""))


def _writes_to_terminal(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)


def _to_file(path: str, like: logging.Handler) -> logging.Handler:
    handler = WatchedFileHandler(path, encoding="utf-8")
    handler.setFormatter(like.formatter)
    handler.setLevel(like.level)
    for each in like.filters:
        handler.addFilter(each)
    return handler


def _keep_lines_of_runs(logger: logging.Logger) -> None:
    if (logger.parent and logger.propagate) or any(isinstance(each, RunHandler) for each in logger.handlers):
        return
    logger.addHandler(RunHandler())


def _masking(formatter: type[logging.Formatter]) -> type[logging.Formatter]:
    def format(self: logging.Formatter, record: logging.LogRecord) -> str:  # noqa: A001 - overrides it
        return mask(formatter.format(self, record))

    return type(formatter.__name__, (formatter,), {"format": format})
