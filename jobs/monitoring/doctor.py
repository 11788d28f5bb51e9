"""What is wrong with this installation, or with one schedule? The answers of `manage.py doctor`.

Its one rule: the answers come in time, whatever hangs. Each question has a thread, and one without an answer says so.
"""

from dataclasses import dataclass
from datetime import datetime
from functools import partial

from django_celery_beat.models import PeriodicTask

from jobs.models import LONGEST_REASON, database_now
from jobs.monitoring import asked, health
from jobs.monitoring.asked import Asked, why
from jobs.monitoring.symptoms import QUESTIONS, Case, Said, Verdict
from jobs.rules.errors import error_of
from jobs.rules.health import Finding
from jobs.schedules import status
from jobs.secrets import head

SLACK = 0.5  # seconds that a question may take after the deadline of what it rests on
DUE = 5  # moments of a schedule


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether a symptom is there, by which evidence, and the command to type next."""

    question: str
    symptom: str
    verdict: Verdict
    evidence: str
    command: str


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a schedule is. Each due moment has the reason to skip it; empty: it runs."""

    schedule: PeriodicTask
    status: str
    finding: Finding | None  # None: beat has not read it yet
    due: list[tuple[datetime, str]]


def examine() -> list[Answer]:
    """The answer to each question, within `DEADLINE` and a little more."""
    case = Case()
    deadline = asked.DEADLINE + SLACK
    questions = {name: Asked(partial(ask, case), deadline) for name, (_, ask) in QUESTIONS.items()}
    return [_answer(name, each) for name, each in questions.items()]


def look_at(schedule: PeriodicTask) -> Schedule:
    """How a schedule is now, and when it is due next."""
    now = database_now()
    finding = health.health_of(schedule, now)
    return Schedule(schedule, status.sentence(schedule, now), finding, status.upcoming(schedule, DUE))


def _answer(name: str, question: Asked[Said]) -> Answer:
    said: list[Said] = []
    error = error_of(lambda: said.append(question.answer()))
    one = said[0] if said else Said(Verdict.UNKNOWN, why(error) if error else "")
    evidence = " ".join(head(one.evidence, LONGEST_REASON).split())
    return Answer(name, QUESTIONS[name][0], one.verdict, evidence, one.command)
