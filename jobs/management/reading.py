"""What do the words of a command mean? Runs, schedules, moments, durations, arguments of jobs.

Its one rule: a word that means nothing, or more than one thing, is refused with a sentence that says what to write. A
moment without an offset is one of the site's time zone (TIME_ZONE).
"""

import json
import re
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from django.db.models import Q, QuerySet
from django.utils import timezone
from django_celery_beat.models import PeriodicTask
from pydantic import BaseModel, ValidationError

from jobs.management.terminal import MissingError, UsageError
from jobs.messages.message import Decoder, read
from jobs.models import Run, RunQuerySet
from jobs.monitoring import search
from jobs.rules import durations, moments
from jobs.rules.errors import Invalid

SHORTEST_PART = 4  # characters of an id
HEX = re.compile(r"[0-9a-f]{1,32}", re.ASCII)
KEY = re.compile(r"(?P<name>[^=]+)=(?P<value>.*)", re.DOTALL)
LARGEST_ID = 2**31 - 1
LARGEST_FORM = 2_500_000  # bytes, as in a request to the API
F = TypeVar("F", bound=BaseModel)
EXAMPLES = (
    "write a moment such as 2026-12-24, 2026-12-24T18:00 or 2026-12-24T18:00+01:00, or a duration such as 2 hours"
)


def run_of(word: str, among: RunQuerySet | None = None) -> Run:
    """The run with this id, or whose id alone begins or ends so. Raises `MissingError` or `UsageError`."""
    run: Run = row_of(word, Run.objects.all() if among is None else among, "run")
    return run


def row_of(word: str, rows: QuerySet[Any], what: str) -> Any:
    """The row among these with this UUID, or whose UUID alone begins or ends so.

    Raises `MissingError` or `UsageError`.
    """
    part = word.strip().lower().replace("-", "")
    if not HEX.fullmatch(part) or len(part) < SHORTEST_PART:
        raise MissingError(
            f"There is no {what} {word!r}: give its id, or at least {SHORTEST_PART} characters of its end."
        )
    low, high = UUID(part.ljust(32, "0")), UUID(part.ljust(32, "f"))
    found = list(rows.filter(id__gte=low, id__lte=high)[:2])
    if not found and len(part) < 32:
        with search.patient():
            found = list(rows.filter(id__endswith=part).order_by("-id")[:2])
    if not found:
        raise MissingError(f"There is no {what} {word!r}: it was deleted, or never existed.")
    if len(found) > 1:
        raise UsageError(f"The ids of several {what}s begin or end with {word!r}: give more characters.")
    return found[0]


def runs_of(words: Sequence[str]) -> list[Run]:
    """The runs of these words, each once."""
    return list({run.id: run for run in map(run_of, words)}.values())


def schedule_of(word: str) -> PeriodicTask:
    """The schedule with this name, otherwise with this id. Raises `MissingError`."""
    rows = PeriodicTask.objects.select_related("policy", "crontab", "interval", "solar", "clocked")
    is_id = word.isascii() and word.isdigit() and int(word[:20]) <= LARGEST_ID
    wanted = Q(name=word) | Q(pk=int(word)) if is_id else Q(name=word)
    found = sorted(rows.filter(wanted), key=lambda schedule: schedule.name != word)
    if not found:
        raise MissingError(f"There is no schedule {word!r}: `manage.py schedules list` shows all.")
    return found[0]


def schedules_of(words: Sequence[str]) -> Any:
    """The schedules of these words as acts take them. Raises `MissingError` if one does not exist."""
    return PeriodicTask.objects.filter(pk__in=[schedule_of(word).pk for word in words])


# --- types of arguments ---------------------------------------------------------------------------------------------


def past(word: str) -> datetime:
    """A moment, or how long ago it was."""
    return _moment(word, -1)


def coming(word: str) -> datetime:
    """A moment, or how long it takes until it comes."""
    return _moment(word, 1)


def length(word: str) -> timedelta:
    """A duration that is not negative."""
    try:
        return durations.read(word)
    except Invalid as error:
        raise ArgumentTypeError(str(error)) from error


def seconds(word: str) -> float:
    """A duration in seconds."""
    return length(word).total_seconds()


def between(low: int, high: int) -> Callable[[str], int]:
    """A whole number of this range."""

    def number(word: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,18}", word) or not low <= int(word) <= high:
            raise ArgumentTypeError(f"{word[:30]!r} is not a whole number from {low:,} to {high:,}")
        return int(word)

    return number


def _moment(word: str, direction: int) -> datetime:
    try:
        if re.match(r"\d{4}-", word):
            return moments.utc(_aware(datetime.fromisoformat(word)))
        return timezone.now() + direction * durations.read(word)
    except (ValueError, OverflowError) as error:
        raise ArgumentTypeError(f"{word[:60]!r} is no moment: {EXAMPLES}.") from error


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else timezone.make_aware(moment)


# --- files ----------------------------------------------------------------------------------------------------------


def form_of(word: str, kind: type[F]) -> F:
    """A form of the API in the JSON file of this name, or from stdin for `-`. Raises `UsageError` and `Invalid`."""
    try:
        return kind.model_validate(_json_of(word))
    except ValidationError as error:
        raise Invalid(" ".join(map(_fault, error.errors()))) from error


def file_of(word: str) -> Path:
    """A file that can be read to its end. Raises `UsageError`."""
    path = Path(word)
    if not path.is_file():
        raise UsageError(f"There is no file {word!r}: give the path of an ordinary file.")
    return path


def _json_of(word: str) -> Any:
    try:
        content = _content_of(word)
        if len(content) > LARGEST_FORM:
            raise UsageError(f"{word} is larger than {LARGEST_FORM:,} bytes: write a smaller form.")
        return Decoder().decode(content.decode())
    except OSError as error:
        raise UsageError(f"{word} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(f"{word} is not valid JSON: {error}.") from error


def _content_of(word: str) -> bytes:
    """No more of the file, or of stdin, than shows that it is too large."""
    if word == "-":
        return sys.stdin.buffer.read(LARGEST_FORM + 1)
    with file_of(word).open("rb") as file:
        return file.read(LARGEST_FORM + 1)


def _fault(error: Any) -> str:
    place, sentence = "/".join(map(str, error["loc"])), error["msg"].removeprefix("Value error, ")
    return f"{place}: {sentence}." if place else f"{sentence}."


# --- arguments of jobs ----------------------------------------------------------------------------------------------


def arguments_of(pairs: Sequence[str], text: str | None) -> dict[str, Any]:
    """The arguments of a job, from words such as `month=2026-11`, or from JSON. A value that is JSON is read as JSON.

    Raises `UsageError`.
    """
    if pairs and text is not None:
        raise UsageError("Give arguments as name=value or as --arguments JSON, not both.")
    if text is not None:
        try:
            return dict(read(text, "The arguments", dict))
        except Invalid as error:
            raise UsageError(str(error)) from error
    arguments: dict[str, Any] = {}
    for pair in pairs:
        match = KEY.fullmatch(pair)
        if match is None:
            raise UsageError(f"{pair!r} is no argument: write name=value, such as month=2026-11.")
        if match["name"] in arguments:
            raise UsageError(f"The argument {match['name']!r} is given twice.")
        arguments[match["name"]] = _value(match["value"])
    return arguments


def _value(text: str) -> Any:
    try:
        return Decoder().decode(text)
    except json.JSONDecodeError:
        return text
