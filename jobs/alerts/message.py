"""What does a message about alerts say? The facts that every channel is given, and their text for people.

Its one rule: a message holds nothing secret, and no name can make it lie. All of its texts pass `mask`; a name is one
line without characters that turn or hide the text beside it. Moments are those of the reader's clocks.
Limits: it names the first `NAMED` alerts, the worst first, and counts the rest. Longer texts are cut.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from django.conf import settings

from jobs.rules import words
from jobs.rules.crontab import zone_of
from jobs.rules.errors import Invalid
from jobs.rules.health import TITLES, Health
from jobs.secrets import head

VERSION = 1  # of the JSON; a change that breaks its readers raises it
NAMED = 20  # alerts of a message
LINES, LONGEST_LINE = 20, 200  # of the log
LONGEST_NAME, LONGEST_SENTENCE, SHORT_SENTENCE = 150, 1_000, 300  # characters
LONGEST_TEXT = 50_000  # characters
WORST_FIRST = (
    *(Health.DOWN, Health.BLOCKED, Health.FAILING, Health.LATE),
    *(Health.SLOW, Health.SHORT, Health.PAUSED, Health.OK),
)
FAILURES = frozenset({Health.DOWN, Health.BLOCKED, Health.FAILING})


@dataclass(frozen=True, slots=True)
class Item:
    """An alert as a reader gets it."""

    subject: str  # such as `schedule:7`: the same for all alerts about it
    name: str
    health: Health
    before: Health
    sentence: str  # what happened
    expected: str
    at: datetime
    since: datetime  # of a recovery: since when it was not ok
    due_at: datetime | None = None
    count: int = 1  # how often in a row
    link: str = ""  # to the run, or the schedule
    log: Sequence[str] = field(default=())  # the last lines of the run's log


@dataclass(frozen=True, slots=True)
class Message:
    """What a channel is told at once. A repeated message has the same id."""

    id: UUID
    at: datetime
    zone: str  # of its readers
    items: Sequence[Item]
    is_test: bool = False
    asked_by: str = ""  # who wants the test

    @classmethod
    def test(cls, asked_by: str, at: datetime, zone: str) -> "Message":
        return cls(uuid4(), at, zone, (), is_test=True, asked_by=asked_by)


@dataclass(frozen=True, slots=True)
class Ping:
    """An event of a run, for channels that count them. `event` is start, success or fail."""

    id: UUID
    run: UUID
    event: str
    sentence: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """An alert in words. A detail is a name and a text."""

    headline: str
    sentence: str
    details: Sequence[tuple[str, str]]
    link: str = ""
    log: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """The alerts of one health. Not all of them may have an entry."""

    title: str
    entries: Sequence[Entry]
    unnamed: int = 0


# --- its parts --------------------------------------------------------------------------------------------------------


def subject(message: Message) -> str:
    """The message in one line."""
    site = line(settings.INSTALLATION, 50) if getattr(settings, "INSTALLATION", "") else "Punctual"
    return f"[{site}] {_headline(message)}"


def severity(message: Message) -> str:
    """`failure`, `warning` or `success`, by the worst alert; `info` for a test."""
    healths = {item.health for item in message.items}
    if message.is_test or not healths:
        return "info"
    if healths & FAILURES:
        return "failure"
    return "success" if healths == {Health.OK} else "warning"


def groups(message: Message, named: int = NAMED) -> list[Group]:
    """The alerts by health, the worst first. The first `named` ones have an entry."""
    clock = _clock(message.zone)
    if message.is_test:
        return [Group("", [_of_test(message, clock)])]
    if len(message.items) == 1:
        return [Group("", [_whole(message.items[0], clock)])]
    found, left = [], named
    for health in WORST_FIRST:
        items = [item for item in message.items if item.health == health]
        if items:
            entries = [_short(item, clock) for item in items[:left]]
            left -= len(entries)
            found.append(Group(f"{len(items)} {_title(health)}", entries, len(items) - len(entries)))
    return found


def line(text: str, longest: int) -> str:
    """The text in one line, masked and cut."""
    plain = " ".join(head(text, 4 * longest).split())
    # Without what controls terminals or turns the text beside it. The joiner belongs to some emoji.
    shown = "".join(each for each in plain if each.isprintable() or each == "\u200d")
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


def _headline(message: Message) -> str:
    if message.is_test:
        return "Test message"
    if len(message.items) == 1:
        (item,) = message.items
        return f"{line(item.name, LONGEST_NAME)}: {_title(item.health)}"
    number = Counter(item.health for item in message.items)
    parts = [f"{number[health]} {_title(health)}" for health in WORST_FIRST if number[health]]
    return f"{len(message.items)} alerts: {', '.join(parts)}"


def _title(health: Health) -> str:
    return "ok again" if health == Health.OK else TITLES[health]


def _of_test(message: Message, clock: Callable[[datetime], str]) -> Entry:
    asked = f"{line(message.asked_by, LONGEST_NAME)} asked for it." if message.asked_by else ""
    details = [("Sent", clock(message.at))]
    text = " ".join(filter(None, ["This is a test message. Nothing is wrong.", asked]))
    return Entry("Test message", text, details, getattr(settings, "SITE_URL", ""))


def _whole(item: Item, clock: Callable[[datetime], str]) -> Entry:
    details = [("Expected", line(item.expected, SHORT_SENTENCE)), ("Since", _since(item, clock))]
    details += [("Due", clock(item.due_at))] if item.due_at else []
    if item.before not in {item.health, Health.OK} and item.health != Health.OK:
        details.append(("Before", TITLES[item.before]))
    headline = f"{line(item.name, LONGEST_NAME)}: {_title(item.health)}"
    log = [] if item.health == Health.OK else [_line_of_log(each) for each in item.log[-LINES:]]
    return Entry(headline, line(item.sentence, LONGEST_SENTENCE), [each for each in details if each[1]], item.link, log)


def _short(item: Item, clock: Callable[[datetime], str]) -> Entry:
    headline = line(item.name, LONGEST_NAME)
    return Entry(headline, line(item.sentence, SHORT_SENTENCE), [("Since", _since(item, clock))], item.link)


def _line_of_log(text: str) -> str:
    """With its indentation."""
    shown = head(text, LONGEST_LINE)
    return shown[: len(shown) - len(shown.lstrip(" "))] + line(shown, LONGEST_LINE)


def _since(item: Item, clock: Callable[[datetime], str]) -> str:
    if item.health != Health.OK:
        often = f", {item.count} times in a row" if item.count > 1 else ""
        return f"{clock(item.since)}{often}"
    if item.since >= item.at:
        return clock(item.at)
    return f"{clock(item.at)}; it was {TITLES[item.before]} for {words.length(item.at - item.since)}"


def _clock(zone: str) -> Callable[[datetime], str]:
    """How moments are shown. A zone that is no longer known is replaced by UTC, because the message must go out."""
    try:
        zone_of(zone)
    except Invalid:
        zone = "UTC"
    return lambda moment: f"{words.day_and_time(moment.replace(microsecond=0), zone)} ({zone})"


# --- as text and as JSON ----------------------------------------------------------------------------------------------


def text(message: Message, longest: int = LONGEST_TEXT, *, has_title: bool = False) -> str:
    """The message as plain text, in at most `longest` characters: the oldest lines of the log go first.

    `has_title`: whether the reader sees its headline anyway.
    """
    for size in range(max(NAMED, LINES), -1, -1):
        found = _written(message, size, has_title=has_title)
        if len(found) <= longest:
            return found
    return f"{found[: max(longest - 1, 0)]}…"


def _written(message: Message, size: int, *, has_title: bool) -> str:
    is_single = message.is_test or len(message.items) == 1
    if is_single:
        return "\n".join(_paragraphs(groups(message)[0].entries[0], size, has_title=has_title))
    lines = [] if has_title else [_headline(message)]
    for group in groups(message, size):
        lines += [f"\n{group.title}:" if lines else f"{group.title}:"]
        for entry in group.entries:
            lines += [f"- {entry.headline}: {entry.sentence}", f"  {_joined(entry.details)}", *_indented(entry.link)]
        lines += [f"- and {group.unnamed} more" if group.entries else f"- {group.unnamed}"] if group.unnamed else []
    return "\n".join(lines)


def _paragraphs(entry: Entry, size: int, *, has_title: bool) -> Iterable[str]:
    if not has_title:
        yield entry.headline
    yield entry.sentence
    yield ""
    yield from (f"{name}: {text}" for name, text in entry.details)
    if entry.link:
        yield entry.link
    if shown := entry.log[max(0, len(entry.log) - size) :]:
        yield "\nThe last lines of its log:"
        yield from (f"  {each}" for each in shown)


def _joined(details: Sequence[tuple[str, str]]) -> str:
    return "; ".join(f"{name.lower()} {text}" for name, text in details)


def _indented(link: str) -> list[str]:
    return [f"  {link}"] if link else []


def as_json(message: Message) -> dict[str, Any]:
    """The message for programs, as docs/alerts.md describes it."""
    return {
        "type": "punctual.test" if message.is_test else "punctual.alerts",
        "version": VERSION,
        "timestamp": _instant(message.at),
        "data": {
            "site": getattr(settings, "SITE_URL", ""),
            "installation": getattr(settings, "INSTALLATION", ""),
            "text": _headline(message),
            "asked_by": line(message.asked_by, LONGEST_NAME),
            "alerts": [_of_item(item, number < NAMED) for number, item in enumerate(message.items)],
        },
    }


def _of_item(item: Item, has_log: bool) -> Mapping[str, Any]:
    lasted: timedelta | None = item.at - item.since if item.health == Health.OK else None
    return {
        "subject": head(item.subject, LONGEST_SENTENCE),
        "name": head(item.name, LONGEST_SENTENCE),
        "health": item.health.value,
        "before": item.before.value,
        "sentence": head(item.sentence, LONGEST_SENTENCE if has_log else SHORT_SENTENCE),
        "expected": head(item.expected, SHORT_SENTENCE),
        "at": _instant(item.at),
        "since": _instant(item.since),
        "lasted_seconds": max(0, round(lasted.total_seconds())) if lasted is not None else None,
        "due_at": _instant(item.due_at) if item.due_at else None,
        "count": item.count,
        "link": item.link,
        "log": [_line_of_log(each) for each in item.log[-LINES:]] if has_log else [],
    }


def _instant(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
