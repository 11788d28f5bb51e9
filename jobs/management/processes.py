"""What do `manage.py worker` and `manage.py beat` share? Each becomes Celery's command of the same name.

Its one rule: options that Django does not know go to Celery, unread. So all of Celery's options work, also new ones.
"""

import sys
from argparse import RawDescriptionHelpFormatter
from typing import Any

import click
from django.core.management.base import (
    BaseCommand,
    CommandError,
    CommandParser,
    DjangoHelpFormatter,
    handle_default_options,
)

from jobs.local import processes
from jobs.rules.errors import Invalid


class HelpFormatter(RawDescriptionHelpFormatter, DjangoHelpFormatter):
    """Keeps the lines of Celery's own help."""


class ProcessCommand(BaseCommand):
    """A command that becomes Celery's command `celery_command`."""

    requires_system_checks = ()  # Celery runs Django's checks itself
    celery_command: click.Command

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        context = click.Context(self.celery_command, info_name=f"manage.py {subcommand}")
        theirs = self.celery_command.get_help(context)
        kwargs |= {"allow_abbrev": False, "formatter_class": HelpFormatter}
        return super().create_parser(prog_name, subcommand, epilog=f"Celery's options and help:\n\n{theirs}", **kwargs)

    def run_from_argv(self, argv: list[str]) -> None:
        options, arguments = self.create_parser(argv[0], argv[1]).parse_known_args(argv[2:])
        handle_default_options(options)
        try:
            self.execute(arguments=arguments, **vars(options))
        except CommandError as error:
            if options.traceback:
                raise
            sys.exit(str(error))

    def handle(self, *, arguments: list[str], **_options: Any) -> None:
        try:
            words = processes.command(str(self.celery_command.name), *arguments)
        except Invalid as error:
            raise CommandError(str(error)) from error
        processes.replace(words)
