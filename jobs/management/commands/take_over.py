"""`manage.py take_over`: a copied database belongs to this installation from now on, and runs nothing of the past."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from jobs.ledger import takeover
from jobs.models import Run, installation


class Command(BaseCommand):
    help = (
        "Gives this database to the installation that the setting INSTALLATION names, and cancels the runs that were"
        " unfinished in it. Schedules go on with their next due moment."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--no-input", action="store_true", help="do not ask for confirmation")

    def handle(self, *, no_input: bool, **_options: Any) -> None:
        theirs, mine = installation.adopter(), installation.own_name()
        if not mine:
            raise CommandError("This process has no name: set INSTALLATION, such as INSTALLATION=staging.")
        if theirs == mine:
            self.stdout.write(f"This database belongs to {mine} already.")
            return
        if not no_input and not self._is_confirmed(theirs or "no installation", mine):
            raise CommandError("Nothing was changed.")
        cancelled = takeover.take_over()
        self.stdout.write(
            f"This database belongs to {mine} now. Cancelled runs: {cancelled.ended}; running ones that beat ends once"
            f" their lease is over: {cancelled.asked}."
        )

    def _is_confirmed(self, theirs: str, mine: str) -> bool:
        number = Run.objects.active().count()
        self.stdout.write(
            f"This database belongs to {theirs}. It will belong to {mine}: beats and workers of {theirs} that use it"
            f" stop working, and its unfinished runs, {number:,}, are cancelled."
        )
        return input(f"Write {mine} to go on: ").strip() == mine
