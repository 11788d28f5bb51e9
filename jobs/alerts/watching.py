"""Who looks whether all is well, and how often? A thread of each beat; of each worker while no beat is there.

Its one rule: it delays no run. Looking and sending have threads and connections of their own, and each channel another
one, so a channel that hangs delays neither another channel nor a look. The row `Watch` lets one process look at a time.
Limits: a beat whose ticks or looks fail sends no dead-man ping, whatever else it does. Without any process, nothing is
sent: the dead-man ping is for that.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from typing import Any

from celery import signals
from django.db import connection, transaction

from jobs.alerts import changes, channels, notices
from jobs.models import Channel, Node, Watch, database_now, installation
from jobs.monitoring import health, system, tallies
from jobs.rules.errors import logged

log = logging.getLogger(__name__)

EVERY = 10.0  # seconds between looks
SHARE = 0.1  # of the time that looks may take: after a long one, the next comes later
LONGEST_GAP = 60.0  # seconds that the next look comes later at most, such as after one that waited for the database
PAUSE = 1.0  # seconds between two questions whether there is something to do
OVERLAP = timedelta(minutes=1)  # an end may be committed so long after its time
COUNTED_AFTER = timedelta(seconds=30)  # an end is counted once, so long after its time
FIRST_LOOK = timedelta(days=1)  # how far the first look of an installation goes back
PING_EVERY = 60.0  # seconds between dead-man pings
FRESH_TICK = 30.0  # seconds; a beat that has not ticked for longer sends no ping
MOST_SENDERS = 8  # channels that a process sends to at a time

_last_tick = float("-inf")
_took = 0.0  # seconds that the last look of this process took
_sending: set[int] = set()
_lock = threading.Lock()


def note_tick() -> None:
    """Note that this beat has just done a whole tick."""
    global _last_tick  # noqa: PLW0603 - one for the process
    _last_tick = time.monotonic()


def look(every: float = EVERY) -> bool:
    """Look at everything that may have changed, unless a look has begun within `every` seconds; whether it did."""
    global _took  # noqa: PLW0603 - one for the process
    this = Watch.begin(_gap(every, _took))
    if this is None:
        return False
    begun = time.monotonic()
    _look(this)
    _took = time.monotonic() - begun
    return True


def _gap(every: float, took: float) -> float:
    return max(every, min(took / SHARE, LONGEST_GAP))


def _look(this: Watch) -> None:
    now = database_now()
    seen_until = this.seen_until or now - FIRST_LOOK
    for found in health.findings(seen_until - OVERLAP, now):
        changes.record(this, changes.of_schedules(found), now)
    changes.record(this, changes.of_system(system.findings(now)), now)
    with transaction.atomic():
        if this.hold():
            changes.note_runs(seen_until - OVERLAP)
            if this.seen_until is not None:
                tallies.add_ended(seen_until - COUNTED_AFTER, now - COUNTED_AFTER)
            Watch.objects.update(seen_until=now)


def send(is_wanted: Callable[[Channel], bool] = lambda _: True) -> None:
    """Start a thread for each channel that has something to send, and that none of this process sends to."""
    for channel in Channel.objects.filter(pk__in=notices.waiting()):
        with _lock:
            if channel.pk in _sending or len(_sending) >= MOST_SENDERS or not is_wanted(channel):
                continue
            _sending.add(channel.pk)
        try:
            threading.Thread(target=_deliver, args=(channel.pk,), name="channel", daemon=True).start()
        except RuntimeError:  # no thread is left: a later time may be better
            _forget(channel.pk)
            raise


def _deliver(channel: int) -> None:
    try:
        with closing(connection), logged(log, "The messages of a channel could not be sent."):
            notices.deliver(channel)
    finally:
        _forget(channel)


def _forget(channel: int) -> None:
    with _lock:
        _sending.discard(channel)


def _keep_watching() -> None:
    """In beat."""
    pinged, is_well = float("-inf"), True
    while True:
        is_well = _watch(is_well)
        now = time.monotonic()
        if is_well and now - _last_tick < FRESH_TICK and now - pinged > PING_EVERY:
            pinged = now
            with logged(log, "The dead-man ping failed.", level=logging.WARNING):
                threading.Thread(target=_ping, name="dead-man ping", daemon=True).start()
        time.sleep(PAUSE)


def _watch(was_well: bool) -> bool:
    """Look, if it is time, and send; whether the last look of this process went well."""
    with logged(log, "Beat could not look at the health of the schedules.", level=logging.WARNING):
        connection.close_if_unusable_or_obsolete()
        if installation.refusal():
            return was_well
        looked = look()
        send()
        return looked or was_well
    return False


def _ping() -> None:
    with logged(log, "The dead-man ping failed.", level=logging.WARNING):
        channels.ping_alive()


def _stand_in() -> None:
    """In a worker: look while no beat is there, and send through the channels whose address it knows."""
    while True:
        time.sleep(EVERY)
        with closing(connection), logged(log, "The worker could not look for a beat.", level=logging.DEBUG):
            if not installation.refusal() and not Node.objects.live().filter(kind=Node.Kind.BEAT).exists():
                look()
                send(lambda channel: not channels.why_not(channel))


def _start(work: Callable[[], None], name: str) -> None:
    threading.Thread(target=work, name=name, daemon=True).start()


def _on_beat_init(**_: Any) -> None:
    _start(_keep_watching, "watching")


def _on_worker_ready(**_: Any) -> None:
    _start(_stand_in, "standing in")


def connect() -> None:
    signals.beat_init.connect(_on_beat_init, dispatch_uid="jobs.alerts.watching")
    signals.worker_ready.connect(_on_worker_ready, dispatch_uid="jobs.alerts.watching.worker")
