"""A real mail server on loopback: which messages did it get, and how does it reply?

Its one rule: it accepts every message, unless `answers` holds a reply for that command and address, or a function,
which may return a reply or end the client's process.
"""

import asyncio
import gc
import threading
import warnings
from collections.abc import Callable
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

from aiosmtpd.smtp import SMTP

from tests.waiting import DEADLINE

BREAK_OFF = "break off"  # instead of a reply
LEAVE = "leave"  # after the usual reply

Letter = tuple[str, EmailMessage]  # the address on the envelope, and the message
Answer = str | Callable[[], str | None]


class Server(SMTP):
    """Refuses the command DATA itself if told to, and then accepts no MAIL before RSET, as real servers do."""

    async def smtp_DATA(self, arg: str) -> None:  # noqa: N802 - aiosmtpd's
        reply = self.event_handler.answers.get(("DATA command", *self.envelope.rcpt_tos))
        if reply:
            await self.push(reply)
        else:
            await super().smtp_DATA(arg)


class Post:
    def __init__(self) -> None:
        self.letters: list[Letter] = []
        self.answers: dict[tuple[str, str], Answer] = {}  # by command and address; without an address, for all
        self.quits = 0  # clients that said QUIT
        self.port = 0
        self._servers: list[Server] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve)
        self._ready = threading.Event()

    def __enter__(self) -> "Post":
        self._thread.start()
        self._ready.wait(DEADLINE)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE)
        with warnings.catch_warnings():  # aiosmtpd leaves interrupted connections open
            warnings.simplefilter("ignore", ResourceWarning)
            self._servers.clear()
            gc.collect()

    @property
    def url(self) -> str:
        return f"smtp://127.0.0.1:{self.port}"

    @property
    def given(self) -> list[str]:
        """The addresses whose messages it accepted, in order."""
        return [address for address, _ in self.letters]

    async def handle_MAIL(self, server: SMTP, _session: Any, envelope: Any, address: str, _options: Any) -> str:  # noqa: N802 - aiosmtpd's
        envelope.mail_from = address
        return self._answer(server, "MAIL", address)

    async def handle_RCPT(self, server: SMTP, _session: Any, envelope: Any, address: str, _options: Any) -> str:  # noqa: N802
        if (reply := self._answer(server, "RCPT", address)).startswith("250"):
            envelope.rcpt_tos.append(address)
        return reply

    async def handle_DATA(self, server: SMTP, _session: Any, envelope: Any) -> str:  # noqa: N802
        (address,) = envelope.rcpt_tos
        if not str(self.answers.get(("DATA", address), "")).startswith(("4", "5")):
            self.letters.append((address, message_from_bytes(envelope.content, policy=policy.default)))
        return self._answer(server, "DATA", address)

    async def handle_QUIT(self, _server: SMTP, _session: Any, _envelope: Any) -> str:  # noqa: N802
        self.quits += 1
        return "221 Bye"

    def _answer(self, server: SMTP, command: str, address: str) -> str:
        answer = self.answers.get((command, address)) or self.answers.get((command, "")) or "250 OK"
        reply = (answer() if callable(answer) else answer) or "250 OK"
        if reply == LEAVE:
            self._loop.call_soon(server.transport.close)
            return "250 OK"
        if reply == BREAK_OFF:
            server.transport.abort()
        return reply

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(self._loop.create_server(self._make_server, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        self._turn()  # the last accepted connection gets its server only now
        for transport in [each.transport for each in self._servers if each.transport]:
            transport.abort()
        self._turn()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(server.wait_closed())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def _make_server(self) -> Server:
        """One for each connection."""
        self._servers.append(Server(self, loop=self._loop, hostname="localhost", enable_SMTPUTF8=False))
        return self._servers[-1]

    def _turn(self) -> None:
        """Run all callbacks that are due."""
        for _ in range(10):
            self._loop.run_until_complete(asyncio.sleep(0))
