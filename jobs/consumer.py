"""What does a worker do when its broker goes away under it? It connects again.

Celery's consumer does so, too, unless a message was in hand that no process had begun: then it gives the connection up,
wants to give the message back over it, and an AttributeError ends the worker (Celery and kombu 5.7 with Redis). Here
what cannot be closed is left behind: the ledger knows what was in hand.
"""

import logging

from celery.worker.consumer import Consumer as CeleryConsumer

log = logging.getLogger(__name__)


class Consumer(CeleryConsumer):
    """The setting `worker_consumer` names it."""

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        try:
            super().on_connection_error_after_connected(exc)
        except Exception:
            log.debug("A lost connection could not be closed.", exc_info=True)
