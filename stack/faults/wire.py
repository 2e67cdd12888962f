"""A wire that can be cut: a small TCP proxy that loses a store's reply after the store did the work."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from enum import Enum
from typing import NamedTuple
from urllib.parse import urlsplit

Deed = Callable[[], bool]
"""Done when a trap closes. True: what closed it is passed on; False: it is lost and its connection cut."""


class Where(Enum):
    """What a trap looks at."""

    REQUEST = "a request that holds the bytes"
    REPLY = "a reply that holds the bytes"
    REPLY_TO = "the reply to a request that holds the bytes"


class _Trap(NamedTuple):
    where: Where
    holds: bytes
    deed: Deed


class Wire:
    """Passes everything on to the server behind `url`, which is asked for at each connection.

    `port` is where it listens. `sprung` counts traps that closed, each on the first that fits it.
    """

    def __init__(self, url: Callable[[], str]) -> None:
        self._url = url
        self._traps: list[_Trap] = []
        self._links: set[asyncio.Task[None]] = set()
        self.sprung = 0
        self.port = 0
        self.delay: Callable[[], float] = lambda: 0.0
        """Seconds for which each reply is held back."""

    @property
    def lost(self) -> int:
        """Replies that were never delivered (with `lose` and `lose_reply_to` only)."""
        return self.sprung

    @property
    def armed(self) -> bool:
        """Whether a trap still waits."""
        return bool(self._traps)

    def lose(self, reply: bytes) -> None:
        """The first reply that holds these bytes is never delivered, and its connection is cut."""
        self.trap(Where.REPLY, reply, lambda: False)

    def lose_reply_to(self, request: bytes) -> None:
        """The reply to the first request that holds these bytes is never delivered; its connection is cut."""
        self.trap(Where.REPLY_TO, request, lambda: False)

    def trap(self, where: Where, holds: bytes, deed: Deed) -> None:
        """Does something to the first traffic that fits."""
        self._traps.append(_Trap(where, holds, deed))

    def disarm(self) -> None:
        """Takes back all traps that wait."""
        self._traps.clear()

    def cut(self) -> int:
        """Resets every connection; how many those were."""
        links = [*self._links]
        for link in links:
            link.cancel()
        return len(links)

    async def closed(self) -> None:
        """Resets every connection and waits until they are gone."""
        links = [*self._links]
        self.cut()
        await asyncio.gather(*links, return_exceptions=True)
        await asyncio.sleep(0)  # transports say goodbye in the next turn of the loop

    def url(self, real: str) -> str:
        """The same URL by way of this wire."""
        parts = urlsplit(real)
        assert parts.netloc.endswith(f":{parts.port}")
        netloc = parts.netloc.removesuffix(f":{parts.port}") + f":{self.port}"
        return parts._replace(netloc=netloc).geturl()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carries one connection until either end, a trap or `cut` ends it. Never raises."""
        link = asyncio.current_task()
        assert link is not None
        self._links.add(link)
        try:
            await self._carry(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # nobody waits for this task: its end is the end of the connection
        finally:
            self._links.discard(link)
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parts = urlsplit(self._url())
        far_reader, far_writer = await asyncio.open_connection(parts.hostname, parts.port)
        waiting: list[_Trap] = []  # traps whose request was seen here
        ways = [self._requests(reader, far_writer, waiting), self._replies(far_reader, writer, waiting)]
        tasks = [asyncio.create_task(way) for way in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            far_writer.transport.abort()  # first: the wait below may be cancelled
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _requests(self, reader: asyncio.StreamReader, far: asyncio.StreamWriter, waiting: list[_Trap]) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                waiting += self._take(Where.REPLY_TO, data)
                if not self._spring(self._take(Where.REQUEST, data)):
                    return
                far.write(data)
                await far.drain()

    async def _replies(self, far: asyncio.StreamReader, writer: asyncio.StreamWriter, waiting: list[_Trap]) -> None:
        with suppress(OSError):
            while data := await far.read(65_536):
                if delay_s := self.delay():
                    await asyncio.sleep(delay_s)
                sprung = [*waiting, *self._take(Where.REPLY, data)]
                waiting.clear()
                if not self._spring(sprung):
                    return
                writer.write(data)
                await writer.drain()

    def _take(self, where: Where, data: bytes) -> list[_Trap]:
        fit = [trap for trap in self._traps if trap.where is where and trap.holds in data]
        for trap in fit:
            self._traps.remove(trap)
        return fit

    def _spring(self, traps: list[_Trap]) -> bool:
        self.sprung += len(traps)
        return all([trap.deed() for trap in traps])


@asynccontextmanager
async def wire_to(url: str | Callable[[], str]) -> AsyncIterator[Wire]:
    """A wire to the store behind a URL, for as long as the block lasts. A function is asked for the URL
    at each connection, so that the wire can be there before the store."""
    wire = Wire((lambda: url) if isinstance(url, str) else url)
    server = await asyncio.start_server(wire.carry, "127.0.0.1", 0)
    wire.port = server.sockets[0].getsockname()[1]
    try:
        yield wire
    finally:
        server.close()
        await wire.closed()
