"""A wire that can be cut: a small TCP proxy that loses the store's reply after the store did the work."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit


class Wire:
    """Passes everything on, until `lose` names bytes: the first reply that holds them is never delivered,
    and its connection is cut. `lost` counts."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._lose: bytes | None = None
        self.lost = 0
        self.port = 0

    def lose(self, reply: bytes) -> None:
        """Arms the wire for one reply."""
        self._lose = reply

    def url(self, real: str) -> str:
        """The same URL by way of this wire."""
        parts = urlsplit(real)
        assert parts.netloc.endswith(f":{parts.port}")
        netloc = parts.netloc.removesuffix(f":{parts.port}") + f":{self.port}"
        return parts._replace(netloc=netloc).geturl()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
        ways = [self._pass_on(reader, far_writer, False), self._pass_on(far_reader, writer, True)]
        tasks = [asyncio.create_task(way) for way in ways]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in (writer, far_writer):
            each.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_reply: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                if is_reply and self._lose is not None and self._lose in data:
                    self._lose = None
                    self.lost += 1
                    return
                writer.write(data)
                await writer.drain()


@asynccontextmanager
async def wire_to(url: str) -> AsyncIterator[Wire]:
    """A wire to the store behind a URL, for as long as the block lasts."""
    parts = urlsplit(url)
    assert parts.hostname is not None and parts.port is not None
    wire = Wire(parts.hostname, parts.port)
    server = await asyncio.start_server(wire._carry, "127.0.0.1", 0)
    wire.port = server.sockets[0].getsockname()[1]
    try:
        yield wire
    finally:
        server.close()
