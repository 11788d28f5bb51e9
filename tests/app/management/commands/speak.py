"""Prints its arguments, and ends as its options say."""

import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management import BaseCommand, CommandError


class Command(BaseCommand):
    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("words", nargs="*")
        parser.add_argument("--fail", action="store_true")
        parser.add_argument("--exit", type=int)

    def handle(self, *_: Any, words: list[str], fail: bool, exit: int | None, **__: Any) -> None:  # noqa: A002
        for word in words:
            self.stdout.write(word)
        self.stderr.write("to stderr")
        self.stdout.write("without an end", ending="")
        if fail:
            raise CommandError(f"it could not say {words}")
        if exit is not None:
            sys.exit(exit)
