"""Sabotages a process before it starts work, by its variable SABOTAGE: words with values, separated by commas.

`crash=MODULE.FUNCTION:N` kills the process when that function is called for the Nth time; `thrice` publishes each
message three times; `no_...` disables one of Punctual's guards, and some storm must then fail. `hasty` only shortens
the patience with messages that no worker starts, so that storms end soon.
"""

import os
import signal
from collections.abc import Callable, Iterator
from datetime import timedelta
from importlib import import_module
from itertools import count
from typing import Any

from django.apps import AppConfig


class Sabotage(AppConfig):
    name = "tests.chaos.sabotage"
    label = "sabotage"

    def ready(self) -> None:
        for word in filter(None, os.environ.get("SABOTAGE", "").split(",")):
            name, _, value = word.partition("=")
            ACTS[name](value)


def crash(place: str) -> None:
    path, _, number = place.partition(":")
    module, _, name = path.rpartition(".")
    calls: Iterator[int] = count(1)

    def dying(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == int(number):
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return call

    _wrap(import_module(module), name, dying)


def thrice(_: str) -> None:
    from kombu import Producer

    def repeating(original: Callable[..., Any]) -> Callable[..., Any]:
        def publish(*args: Any, **kwargs: Any) -> Any:
            original(*args, **kwargs)
            original(*args, **kwargs)
            return original(*args, **kwargs)

        return publish

    _wrap(Producer, "publish", repeating)


def hasty(_: str) -> None:
    from jobs.rules import policies

    policies.FIRST_PATIENCE = timedelta(seconds=2)


def no_rescue(_: str) -> None:
    from jobs.beat import rescue

    rescue.rescue = lambda: 0


def no_redispatch(_: str) -> None:
    from jobs.ledger import outbox

    outbox.send_waiting = lambda: 0


def no_start_guard(_: str) -> None:
    from jobs.models import RunQuerySet

    def careless(original: Callable[..., Any]) -> Callable[..., Any]:
        def start(*args: Any) -> bool:
            original(*args)
            return True

        return start

    _wrap(RunQuerySet, "start", careless)


def no_fence(_: str) -> None:
    from django.db.models.functions import Now

    from jobs.ledger import outcomes
    from jobs.models import Run

    def finish(run_id: Any, attempt: int, state: Any, **changes: Any) -> bool:
        over = {"state": state, "finished_at": Now(), "lease_until": None}
        return bool(Run.objects.filter(id=run_id).update(**over, **changes))

    outcomes.finish = finish


def _wrap(place: Any, name: str, wrapper: Callable[[Any], Any]) -> None:
    setattr(place, name, wrapper(getattr(place, name)))


ACTS = {act.__name__: act for act in (crash, thrice, hasty, no_rescue, no_redispatch, no_start_guard, no_fence)}
