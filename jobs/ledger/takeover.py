"""What becomes of the runs and schedules in a copied database that another installation takes over?

Its one rule: nothing of the past runs here. The unfinished runs are cancelled, with the reason: the other installation
runs them. Each schedule goes on with its next due moment; beat records the moments before as those of a pause, and
paused schedules stay paused.
"""

from django.db import transaction
from django.db.models.functions import Coalesce, Least, Now

from jobs.ledger import outcomes
from jobs.ledger.outcomes import Cancelled
from jobs.models import Policy, Run, installation
from jobs.models.schedules import NOTHING_HELD_BACK, PAUSED
from jobs.schedules import calendar


def take_over() -> Cancelled:
    """Give the database to the installation of this process; returns what became of the unfinished runs."""
    theirs, mine = installation.adopter() or "no installation", installation.own_name()
    reason = f"{mine} took the database over, which belonged to {theirs}"
    calendar.sweep()  # schedules that no beat has read yet may have due moments, too
    with transaction.atomic():
        installation.take_over()
        first = Coalesce("owed_from", "next_due_at", "paused_at")
        Policy.objects.paused().update(paused_at=Least("paused_at", first), pause_catch_up="none", **NOTHING_HELD_BACK)
        Policy.objects.exclude(PAUSED).filter(next_due_at__lte=Now()).update(
            paused_at=first,
            paused_until=Now(),
            paused_by="manage.py take_over",
            pause_reason=reason,
            pause_catch_up="none",
            **NOTHING_HELD_BACK,
        )
        return outcomes.cancel(Run.objects.active(), reason)
