"""How does a command talk to a person and to a script? In tables, sentences and JSON, and by its exit status.

Its one rule: data is plain text. What a terminal would obey, control characters and markup, is shown instead. The
answer goes to stdout, everything else to stderr; a script gets no colours and no cut texts.

The exit status is 0 if all is well, otherwise one of those below, 130 after Ctrl-C, or 141 if the reader went away.
"""

import json
import os
import sys
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any, Never

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error as DatabaseError
from django.utils.timezone import localtime
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.rules.errors import Invalid, UnknownJob
from jobs.web.api.routes import Encoder

FAILED, USAGE, MISSING, LATE, INTERRUPTED, NO_READER = 1, 2, 3, 4, 130, 141
STYLES = {
    "succeeded": "green",
    "ok": "green",
    "running": "cyan",
    "queued": "yellow",
    "waiting": "yellow",
    "failed": "red",
    "lost": "red",
    "expired": "magenta",
    "cancelled": "magenta",
    "skipped": "bright_black",
}
EVERYWHERE = ("--settings", "--pythonpath", "--traceback", "--no-color", "--force-color")
NARROW = {
    "id",
    "state",
    "due",
    "next due",
    "last run",
    "last runs",
    "expires",
    "last used",
    "created",
    "received",
}  # columns of one line
GAP, LEAST = 2, 6  # characters between two columns, and of a folded column
NOTHING = "–"
Rows = Iterable[Sequence[Any]]


class MissingError(CommandError):
    """The named row does not exist."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, returncode=MISSING)


class UsageError(CommandError):
    """The words of the command contradict each other, or name nothing that exists only once."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, returncode=USAGE)


class LateError(CommandError):
    """The time of --timeout is up."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, returncode=LATE)


class ShellCommand(BaseCommand):
    """A command with several acts, such as `runs list`. Every error is one sentence on stderr."""

    requires_system_checks = ()

    def __init__(self, stdout: Any = None, stderr: Any = None, **options: Any) -> None:
        # Python has no streams where the caller has closed them; an act and its status count without them, too.
        super().__init__(stdout or sys.stdout or StringIO(), stderr or sys.stderr or StringIO(), **options)

    def act(self, acts: Any, name: str, handle: Callable[..., None], does: str, *, json: bool = True) -> CommandParser:
        """The parser of an act, which calls `handle` with its options."""
        parser: CommandParser = acts.add_parser(name, help=does, description=does)
        parser.set_defaults(handle=handle)
        if json:
            parser.add_argument("--json", action="store_true", help="print JSON")
        for option in EVERYWHERE:  # Django expects them before the act
            kind = "store_true" if option not in EVERYWHERE[:2] else "store"
            parser.add_argument(option, action=kind, default=SUPPRESS, help=SUPPRESS)
        return parser

    def execute(self, *args: Any, **options: Any) -> None:
        if os.environ.get("NO_COLOR") and not options.get("force_color"):  # Django does not know it
            options["no_color"] = True
        try:
            with sentences():
                check_texts(options.values())
                super().execute(*args, **options)
                self.stdout.flush()
        except OSError as error:
            self._lose_reader(error)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except CommandError as error:
            is_call = not self._called_from_command_line  # type: ignore[attr-defined] # unknown to django-stubs
            if is_call or options.get("traceback"):
                raise
            self.stderr.write(safe(str(error)))
            sys.exit(error.returncode)

    def confirm(self, question: str, *, yes: bool) -> None:
        """Ask before an act that cannot be taken back. Raises CommandError unless the operator agrees."""
        if yes:
            return
        if self.terminal.as_json or not (sys.stdin and sys.stdin.isatty()):
            raise UsageError(f"{question} No terminal can confirm it: add --yes.")
        self.terminal.note(f"{question} [y/N]")
        if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
            raise CommandError("Nothing was changed.", returncode=FAILED)

    def _lose_reader(self, error: OSError) -> Never:
        """End a command that has acted but cannot print: the reader is gone, or the disk is full."""
        if sys.stdout:
            with Path(os.devnull).open("w") as nowhere:  # otherwise Python prints an error at exit
                os.dup2(nowhere.fileno(), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(NO_READER)
        self.stderr.write(safe(f"The output cannot be written ({brief(error)})."))
        sys.exit(FAILED)

    def handle(self, *, handle: Callable[..., None], **options: Any) -> None:
        self.terminal = Terminal(
            self.stdout,
            self.stderr,
            as_json=options.pop("json", False),
            is_coloured=False if options["no_color"] else options["force_color"] or None,
        )
        own = {"verbosity", "settings", "pythonpath", "traceback", "no_color", "force_color", "skip_checks"}
        own |= {"stdout", "stderr", "act"}
        handle(**{name: value for name, value in options.items() if name not in own})


def add_yes(parser: ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="do not ask; scripts need it")


class Terminal:
    """Where a command prints. `is_coloured` None: if stdout is a terminal."""

    def __init__(self, out: Any, err: Any, *, as_json: bool, is_coloured: bool | None) -> None:
        self._out, self._err = out, err
        self.as_json = as_json
        self.is_live = out.isatty() and not as_json
        self._has_width = not as_json and (self.is_live or bool(is_coloured))
        self.console = _Console(
            file=getattr(out, "_out", out),
            force_terminal=self._has_width,
            no_color=is_coloured is False or None,
            markup=False,
            highlight=False,
            emoji=False,
        )

    def table(self, columns: Sequence[str], rows: Rows) -> None:
        """A row a line. On a terminal in its width, unless that would cut ids and moments; states have colours."""
        texts = [[safe(shown(value)) for value in row] for row in rows]
        heads = [name.upper() for name in columns]
        if not self._has_width or self.console.width < _least_width(columns, [heads, *texts]):
            self._aligned([heads, *texts])
            return
        table = Table(*heads, box=None, pad_edge=False, header_style="bold")
        for column, name in zip(table.columns, columns, strict=True):
            column.no_wrap, column.overflow = name in NARROW, "fold"
        for row in texts:
            table.add_row(*(Text(text, STYLES.get(text, "")) for text in row))
        self._render(table)

    def record(self, values: dict[str, Any]) -> None:
        """One thing, a property a line. Properties without a value are left out."""
        rows = [[name, safe(shown(value))] for name, value in values.items() if value not in (None, "", [], {})]
        if not self._has_width:
            self._aligned(rows)
            return
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True, style="bold")
        grid.add_column(overflow="fold")
        for name, text in rows:
            grid.add_row(Text(name), Text(text, STYLES.get(text, "")))
        self._render(grid)

    def json(self, value: Any) -> None:
        """JSON in ASCII, which no terminal obeys and every script reads."""
        self.line(json.dumps(value, indent=2, cls=Encoder))

    def say(self, sentence: str) -> None:
        """A sentence that is the answer; with --json the answer is JSON."""
        if not self.as_json:
            self.line(safe(sentence))

    def note(self, sentence: str) -> None:
        """A sentence beside the answer."""
        self._err.write(safe(sentence))
        self._err.flush()

    def line(self, text: str) -> None:
        """A text that is safe already, written line by line: with PYTHONUNBUFFERED, Python drops the rest of a text
        that a vanishing reader took in part, and reports no error before the next one."""
        for each in text.split("\n"):
            self._out.write(self._written(each))

    def raw(self, text: str) -> None:
        """A piece of text that is safe already, at once."""
        self._out.write(self._written(text), ending="")
        self.flush()

    def flush(self) -> None:
        """Let a reader see now what was printed; a pipe would keep it until the end."""
        self._out.flush()

    def _render(self, grid: Table) -> None:
        with self.console.capture() as captured:
            self.console.print(grid)
        self.line(captured.get().removesuffix("\n"))

    def _written(self, text: str) -> str:
        encoding = getattr(self._out, "encoding", None) or "utf-8"
        return text.encode(encoding, "backslashreplace").decode(encoding)

    def _aligned(self, rows: Rows) -> None:
        rows = list(rows)
        widths = _widths(rows)
        for row in rows:
            cells = (text + " " * (width - cell_len(text)) for text, width in zip(row, widths, strict=True))
            self.line("  ".join(cells).rstrip())


def _widths(rows: Rows) -> list[int]:
    return [max(map(cell_len, column)) for column in zip(*rows, strict=True)]


def _least_width(columns: Sequence[str], rows: Rows) -> int:
    """The width of a table whose broad columns are folded as far as a word can still be read."""
    pairs = zip(columns, _widths(rows), strict=True)
    return sum(GAP + (width if name in NARROW else min(width, LEAST)) for name, width in pairs) - GAP


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would end with another status than `ShellCommand`


@contextmanager
def sentences() -> Iterator[None]:
    """Let each expected error become a CommandError whose text is one sentence."""
    try:
        yield
    except UnknownJob as error:
        raise MissingError(str(error)) from error
    except Invalid as error:
        raise CommandError(str(error), returncode=FAILED) from error
    except DatabaseError as error:
        raise CommandError(
            f"The database cannot be used ({brief(error)}): check DATABASE_URL, and run `manage.py migrate`.",
            returncode=FAILED,
        ) from error


def check_texts(values: Any) -> None:
    """Refuse bytes that are no text, which the shell passes on as they are. Raises `UsageError`."""
    for value in values:
        if isinstance(value, (list, tuple)):
            check_texts(value)
        elif isinstance(value, str) and ("\0" in value or value != value.encode("utf-8", "replace").decode()):
            raise UsageError(f"The argument {value!r} is not valid UTF-8, or contains NUL: write plain text.")


def safe(text: str, keep: str = "") -> str:
    """The text in one line, with everything that a terminal would obey written as Python writes it."""
    return "".join(each if each.isprintable() or each in keep else repr(each)[1:-1] for each in text)


def shown(value: Any) -> str:
    """A value in a table: moments in the site's time zone."""
    match value:
        case None | "":
            return NOTHING
        case datetime():
            return f"{localtime(value):%Y-%m-%d %H:%M:%S}"
        case timedelta():
            return duration(value)
        case bool():
            return "yes" if value else "no"
        case dict() | list():
            return json.dumps(value, ensure_ascii=False)
    return str(value)


def duration(length: timedelta) -> str:
    """`120 ms`, `1.5 s`, or `1 day, 2:03:04` from a minute on."""
    seconds = length.total_seconds()
    if abs(seconds) < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if abs(seconds) < 60 else str(timedelta(seconds=round(seconds)))


def counted(number: int, one: str, many: str = "") -> str:
    """`1 run`, `2 runs`: a number with its noun."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def brief(error: BaseException) -> str:
    """The first line of an error, to stand in brackets."""
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
