"""`manage.py invalidate NAME ...`: every worker drops its values of these resources."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from jobs.messages import discovery
from jobs.worker import resources
from jobs.worker.resources import UnknownResourceError


class Command(BaseCommand):
    help = "Makes every worker drop its values of these resources within seconds."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("names", nargs="+", metavar="NAME", help="the name of a resource")

    def handle(self, *, names: list[str], **_options: Any) -> None:
        discovery.load()  # resources are declared beside the tasks that use them
        names = list(dict.fromkeys(names))
        try:
            resources.invalidate(*names, actor="manage.py invalidate")
        except UnknownResourceError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"Invalidated: {', '.join(names)}. Every worker drops its values within seconds.")
