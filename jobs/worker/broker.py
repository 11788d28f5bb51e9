"""How do Punctual's processes talk to the broker? With Celery's own classes, which here sign messages and check items.

Its one rule: each override mends one fault and leaves the rest to Celery and kombu. On Redis, an item that kombu cannot
read ends the worker, and an unacknowledged one ends it at each restart; with a key of another type it reconnects for
ever. So the channel checks each item from Redis, sets unreadable ones aside (`set_aside`), and renames such keys.
Limit: on other brokers, kombu reads the item first; the consumer checks the message afterwards.
"""

from collections.abc import Iterable
from contextlib import suppress
from functools import cache, partial
from typing import Any

from kombu import Connection as KombuConnection
from kombu import Producer as KombuProducer
from kombu.connection import ConnectionPool, PooledConnection
from kombu.exceptions import MessageStateError
from kombu.utils.encoding import bytes_to_str

from jobs.messages import form, queues, signing
from jobs.rules.errors import error_of, of_broker
from jobs.secrets import in_one_line

RENAMED = ".set-aside"  # the ending of the new name of a key of a wrong type
PARTS_OF_BINDING = 3
LONGEST_ERROR = 300  # characters


class Producer(KombuProducer):
    """Signs each message, if there is a key."""

    def _prepare(
        self,
        body: Any,
        serializer: Any = None,
        content_type: Any = None,
        content_encoding: Any = None,
        compression: Any = None,
        headers: Any = None,
    ) -> Any:
        prepare = super()._prepare
        if not signing.keys():
            return prepare(body, serializer, content_type, content_encoding, compression, headers)
        body, content_type, content_encoding = prepare(body, serializer, content_type, content_encoding, None, headers)
        # `_publish` replaces the digest by the signature, which also covers the properties.
        headers[signing.SIGNATURE_HEADER] = signing.digest(body)
        return prepare(body, None, content_type, content_encoding, compression, headers)

    def _publish(
        self,
        body: Any,
        priority: Any,
        content_type: Any,
        content_encoding: Any,
        headers: Any,
        properties: Any,
        *rest: Any,
    ) -> Any:
        if signing.keys():
            content, body_digest = (content_type, content_encoding), headers[signing.SIGNATURE_HEADER]
            headers = {**headers, signing.SIGNATURE_HEADER: signing.sign(body_digest, content, headers, properties)}
        return super()._publish(body, priority, content_type, content_encoding, headers, properties, *rest)


class _Guards:
    """The mended method of kombu's connections."""

    def create_transport(self) -> Any:
        form.limit_decompression()  # of messages and replies, in every process
        transport: Any = super().create_transport()  # type: ignore[misc] # a mixin
        if transport.driver_type == "redis":
            transport.Channel = _guarded(transport.Channel)
        return transport


class Connection(_Guards, KombuConnection):
    def Pool(self, limit: int | None = None, **options: Any) -> Any:  # noqa: N802 - kombu's name
        return _Pool(self, limit, **options)


class _PooledConnection(_Guards, PooledConnection):
    pass


class _Pool(ConnectionPool):
    def new(self) -> Any:
        return _PooledConnection(self, **dict(self.connection._info(resolve=False)))


class AMQP(queues.AMQP):
    """Celery's `app.amqp` with these classes. `jobs.worker.app.Application` names it."""

    Connection = Connection
    Producer = Producer

    @property
    def producer_pool(self) -> Any:
        pool = super().producer_pool
        pool.Producer = Producer
        return pool


@cache
def _guarded(channel: Any) -> Any:
    """A subclass of this class of channels (Redis or Sentinel) in which no item raises an error."""
    return type("Channel", (GuardedChannel, channel), {"QoS": type("QoS", (GuardedQoS, channel.QoS), {})})


class GuardedChannel:
    """The mended methods of kombu's channel."""

    def _create_client(self, asynchronous: bool = False) -> Any:
        client = super()._create_client(asynchronous)  # type: ignore[misc] # a mixin
        if asynchronous:
            client.parse_response = partial(self._read, client.parse_response)
        return client

    def _read(self, parse: Any, connection: Any, command: Any, **options: Any) -> Any:
        """The answer of Redis, or None for an item that kombu cannot read."""
        answer = parse(connection, command, **options)
        if command == "BRPOP" and answer:
            key, item = answer
            queue = bytes_to_str(key).rsplit(self.sep, 1)[0]  # type: ignore[attr-defined] # a mixin
            if why := form.fault_of_item(item):
                self._queue_cycle.rotate(queue)  # type: ignore[attr-defined] # a mixin
                _set_aside(queue, item, why)
                return None
        return answer

    def _handle_message(self, client: Any, response: Any) -> Any:
        event = super()._handle_message(client, response)  # type: ignore[misc] # a mixin
        is_item = bytes_to_str(event["type"]).endswith("message") and event["data"]
        if is_item and (why := form.fault_of_item(event["data"])):
            _set_aside(bytes_to_str(event["channel"]), event["data"], why)
            event["data"] = None
        return event

    def basic_consume(self, queue: Any, no_ack: Any, callback: Any, *args: Any, **options: Any) -> Any:
        transport = self.connection  # type: ignore[attr-defined] # a mixin
        callback = partial(_receive, callback, of_broker((*transport.connection_errors, *transport.channel_errors)))
        return super().basic_consume(queue, no_ack, callback, *args, **options)  # type: ignore[misc] # a mixin

    def get_table(self, exchange: Any) -> Any:
        key = self.keyprefix_queue % exchange  # type: ignore[attr-defined] # a mixin
        with self.conn_or_acquire() as client:  # type: ignore[attr-defined] # a mixin
            members = [member.decode(errors="replace").split(self.sep) for member in client.smembers(key)]  # type: ignore[attr-defined]
        return [tuple(parts) for parts in members if len(parts) == PARTS_OF_BINDING]

    def mend_keys(self, queues: Iterable[str], exchanges: Iterable[str]) -> None:
        """Rename keys that kombu uses and that have another type: every command of Redis on them fails."""
        channel: Any = self
        kinds = {channel.unacked_key: b"hash", channel.unacked_index_key: b"zset"}
        kinds |= {channel.keyprefix_queue % exchange: b"set" for exchange in exchanges}
        kinds |= {channel._q_for_pri(queue, step): b"list" for queue in queues for step in channel.priority_steps}
        with channel.conn_or_acquire() as client:
            for name, kind in kinds.items():
                key = f"{channel.global_keyprefix}{name}"
                found = client.type(key)
                if found not in (kind, b"none"):
                    client.rename(key, new := f"{key}{RENAMED}")
                    was = f"was a {found.decode()} instead of a {kind.decode()}"
                    why = f"the key {key} of Redis {was}; its name is now {new}"
                    _set_aside(name, key, why)


class GuardedQoS:
    """The mended methods of kombu's list of unacknowledged messages."""

    def append(self, message: Any, delivery_tag: Any) -> None:
        channel = self.channel  # type: ignore[attr-defined] # a mixin
        try:
            super().append(message, delivery_tag)  # type: ignore[misc] # a mixin
        except channel.ResponseError:
            channel.mend_keys([], [])
            super().append(message, delivery_tag)  # type: ignore[misc] # a mixin

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        mine: Any = self
        with mine.channel.conn_or_acquire(client) as connected:
            item = connected.hget(mine.unacked_key, tag)
            if item is not None and (why := form.fault_of_unacked(item)):
                _set_aside(mine.unacked_key, item, why)
                mine._remove_from_indices(tag).execute()
                return
        restore = partial(super().restore_by_tag, tag, client, leftmost)  # type: ignore[misc] # a mixin
        passing = (*of_broker(mine.channel.connection_errors), mine.channel.ResponseError)
        error = error_of(restore, passing)
        if error is not None:
            _set_aside(mine.unacked_key, item, f"kombu cannot put it back: {in_one_line(error, LONGEST_ERROR)}")
            mine._remove_from_indices(tag).execute()


def _receive(callback: Any, passing: tuple[type[BaseException], ...], message: Any) -> None:
    error = error_of(partial(callback, message), passing)
    if error is not None:
        from jobs.worker import set_aside  # late: models cannot be imported with this module

        set_aside.note_message(message, f"kombu cannot take it: {in_one_line(error, LONGEST_ERROR)}")
        with suppress(MessageStateError):
            message.reject()


def _set_aside(queue: str, item: Any, why: str) -> None:
    from jobs.worker import set_aside  # late: models cannot be imported with this module

    set_aside.note(queue, item, why)
