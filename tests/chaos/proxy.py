"""A wire that can be cut: passes TCP connections on to a server's socket, and drops them in the middle of a message."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PIECE = 1_000  # bytes passed on at a time, so that a cut falls between the pieces of a message


class Proxy:
    """The wire to one server; any thread may call its methods."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._ends: set[asyncio.BaseTransport] = set()

    async def _ended(self) -> None:
        """Wait for the tasks of all connections, if there are any."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)

    @contextmanager
    def running(self) -> Iterator[int]:
        """The port on loopback that leads to the server."""
        server = self._loop.run_until_complete(asyncio.start_server(self._pass_on, "127.0.0.1", 0))
        thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        thread.start()
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            self._loop.call_soon_threadsafe(server.close)
            self.cut()
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.run_until_complete(self._ended())
            self._loop.close()

    def cut(self) -> None:
        """Drop every connection and the data in transit."""
        self._loop.call_soon_threadsafe(lambda: [end.abort() for end in self._ends])

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            there, back = await asyncio.open_unix_connection(self._target)
            ends = {writer.transport, back.transport}
            self._ends |= ends
            await asyncio.gather(self._pump(reader, back), self._pump(there, writer), return_exceptions=True)
            self._ends -= ends
        writer.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while piece := await source.read(PIECE):
                target.write(piece)
                await target.drain()
        finally:
            target.close()
