"""Which names may a queue have? None that kombu, Celery or a broker uses for data of its own.

In Redis, a queue is a key: one message to the queue `unacked` replaces kombu's own key, and then no worker receives
messages until an operator deletes the key. Its one rule: such a name is refused in the settings as well as in a row. A
name that no setting and no task defines must also be plain, because the cache or another program may use the same
database of Redis.

Limit: it knows only names. `messages.dispatch` handles a plain key of another type.
"""

import re
from collections.abc import Collection

LONGEST = 200  # characters
PLAIN = re.compile(rf"[A-Za-z0-9_.-]{{1,{LONGEST}}}")
OWN = re.compile(
    # A prefix (`global_keyprefix`) of any installation in this database may precede these.
    r"unacked(_index|_mutex)?$"  # kombu: messages that are not acknowledged
    r"|_kombu\.|ae\.undeliver$"  # kombu: bindings of exchanges, messages without a queue
    r"|(^|\.)pidbox$"  # kombu: remote control and its replies
    r"|^celeryev($|\.)|^celery_delayed_\d+$"  # Celery: events, messages with an ETA on quorum queues
    r"|^celery-task(set)?-meta-|^chord-unlock-"  # Celery: results in Redis
    r"|^amq\."  # RabbitMQ
)


def reserved(name: str, taken: Collection[str] = (), what: str = "queue") -> str:
    """Why no queue may have this name, even a defined one; empty if a queue may.

    `taken` holds further names that the settings give to keys and queues of Celery.
    """
    if not name.isprintable() or len(name) > LONGEST:
        return f"The {what} {name[:LONGEST]!r} needs a name of at most {LONGEST} printable characters."
    if OWN.search(name) or any(name == own or name.startswith(f"{own}.") for own in taken):
        return f"Choose another {what} than {name!r}: Celery or the broker uses this name for its own data."
    return ""


def refusal(name: str, known: Collection[str] = (), taken: Collection[str] = ()) -> str:
    """Why no message may go to the queue of this name; empty if one may. The code defines the `known` queues."""
    if (why := reserved(name, taken)) or name in known or PLAIN.fullmatch(name):
        return why
    return (
        f"The queue {name!r} is not defined, and its name is not plain: use letters, digits, _ . - only, or define it"
        " in CELERY_TASK_QUEUES."
    )
