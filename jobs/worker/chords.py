"""When is the body of a chord sent? When each task that its members end in has left a result in the database.

Its one rule: Celery says how many tasks these are (`set_chord_size`), just before it sends the last one. The backend of
django-celery-results guesses: it counts a member that ends in a group as one, and then never sends the body. Where the
body will not be sent, its step notes why, for the reason of the run.

Limit: a member outside of runs that raises Ignore leaves the chord open without a word, as with Celery on Redis.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from celery import maybe_signature, states
from celery.result import ResultSet
from django.db import router, transaction
from django.db.models import F
from django_celery_results.backends.database import ChordCounter, DatabaseBackend, trigger_callback

from jobs.models import LONGEST_REASON
from jobs.secrets import in_one_line
from jobs.worker import canvas
from jobs.worker.loops import outside_loop

OPEN = 1 << 30  # added to a chord's counter until the number of its tasks is known; no chord has so many
MISSING = "{} of its tasks left no result: it expired (RESULT_EXPIRES), or the message of a member came twice"


class ChordBackend(DatabaseBackend):  # type: ignore[misc] # django-celery-results has no type hints
    """Counts the tasks of a chord down, in a row that names their results (`ChordCounter`)."""

    @outside_loop()
    def apply_chord(self, header_result_args: Any, body: Any, **_: Any) -> None:  # noqa: ARG002
        """Begin to count. A chord that is sent again begins anew."""
        group_id, members = header_result_args
        begun = {"sub_tasks": _as_text(members), "count": OPEN}
        ChordCounter.objects.update_or_create(group_id=group_id, defaults=begun)

    @outside_loop()
    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """Set the number of tasks, once. Groups in which members end are named here, too: they have no counter."""
        counting = ChordCounter.objects.filter(group_id=group_id, count__gt=OPEN // 2)
        counting.update(count=F("count") - OPEN + chord_size)

    @outside_loop()
    def add_to_chord(self, group_id: str, result: Any) -> None:
        """A member adds another one, whose result comes last."""
        with transaction.atomic(using=router.db_for_write(ChordCounter)):
            for chord in ChordCounter.objects.select_for_update().filter(group_id=group_id):
                chord.sub_tasks = _as_text([*chord.group_result(app=self.app), result])
                chord.count += len(list(leaves(result)))
                chord.save(update_fields=["sub_tasks", "count"])

    @outside_loop()
    def on_chord_part_return(self, request: Any, state: str, result: Any, **_: Any) -> None:  # noqa: ARG002
        """A task of a chord is done. The last one sends the body, with the results of all members."""
        if not request.group or not request.id:
            return
        with transaction.atomic(using=router.db_for_write(ChordCounter)):
            chord = ChordCounter.objects.select_for_update().filter(group_id=request.group).first()
            missing = self._count_down(chord) if chord else set()
        if chord is None:
            canvas.forsake(request.chord, "the counter of its chord is gone")
        elif missing:
            canvas.forsake(request.chord, MISSING.format(len(missing)))
        elif not chord.count:
            trigger_callback(self.app, maybe_signature(request.chord, app=self.app), chord.group_result(app=self.app))

    def _count_down(self, chord: Any) -> set[str]:
        """Count a task that is done. Returns the tasks without a result, if this one should have been the last."""
        chord.count -= 1
        missing = set() if chord.count else self._without_result(chord.group_result(app=self.app))
        if missing:  # wait for them: a task whose message came twice was counted twice
            chord.count = len(missing)
        if chord.count:
            chord.save(update_fields=["count"])
        else:
            chord.delete()
        return missing

    def _without_result(self, members: Any) -> set[str]:
        ids = {each.id for each in leaves(members)}
        finished = self.TaskModel._default_manager.filter(status__in=states.READY_STATES).only("task_id")
        return ids - set(finished.in_bulk(ids, field_name="task_id"))

    def chord_error_from_stack(self, callback: Any, exc: Any = None) -> Any:
        """Celery cannot send the body, because of the error that it handles or of `exc`."""
        if error := sys.exception() or exc:
            canvas.forsake(callback, in_one_line(error, LONGEST_REASON))
        return super().chord_error_from_stack(callback, exc)


def leaves(result: Any) -> Iterator[Any]:
    """The results of the single tasks that a result waits for. The one of a group waits for all tasks of the group."""
    if isinstance(result, ResultSet):
        for each in result.results or ():
            yield from leaves(each)
    else:
        yield result


def _as_text(members: Iterable[Any]) -> str:
    """The column `sub_tasks`."""
    return json.dumps([member.as_tuple() for member in members])
