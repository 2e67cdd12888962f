"""The short way from socket to handler, for the few addresses that a whole city asks at once.

aiohttp's parser reads every request. One that came whole, over HTTP/1.1, for an address listed in SHORT, is handed
to its handler at once and its answer is written as one piece; router, middlewares, and aiohttp's request and
response objects cost more than everything else that happens to a claim. Every other request (in pieces, chunked,
pipelined, HTTP/1.0, another address or method) goes aiohttp's own way, to the same handler, with the same answer.

One request of a connection is under way at a time, whichever way it goes.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from aiohttp import web
from aiohttp.http import HttpVersion11, RawRequestMessage
from aiohttp.streams import StreamReader

from kernel import logs
from kernel.admission import BUSY, weight
from kernel.answers import (
    ADMISSION,
    LEAVING,
    SHORT,
    Ask,
    Reply,
    Short,
    observe,
    problem_reply,
    request_id_of,
)
from kernel.slow_clients import Guest, Guests

Messages = Sequence[tuple[RawRequestMessage, StreamReader]]


class Door(Guest):
    """A connection with the short way built in."""

    __slots__ = ("_admission", "_held", "_leaving", "_short", "_task")

    def __init__(self, app: web.Application, server: web.Server, guests: Guests) -> None:
        super().__init__(app, server, guests)
        self._short = app[SHORT]
        self._admission = app[ADMISSION]
        self._leaving = app[LEAVING]
        self._task: asyncio.Task[None] | None = None
        self._held = b""
        self._parser: Any = _Sieve(self._parser, self)

    @property
    def is_busy(self) -> bool:
        return self._task is not None or super().is_busy

    def data_received(self, data: bytes) -> None:
        if self._task is None:
            super().data_received(data)
        elif data:  # sent before the answer to what came before it: waits its turn
            self._held += data
            self._pause_transport_reading()

    async def shutdown(self, timeout: float | None = 15.0) -> None:
        if self._task is not None:
            await asyncio.wait([self._task], timeout=timeout)
        await super().shutdown(timeout)

    def takes(self, message: RawRequestMessage, payload: StreamReader) -> bool:
        """Whether this request goes the short way; if so, it is on its way already."""
        short = self._short.get((message.method, message.path))
        if short is None or not payload.is_eof() or self._paused or super().is_busy or _is_special(message):
            return False
        self._request_count += 1
        arrived_s, body = time.perf_counter(), payload.read_nowait()
        if self._admission.enter(pieces := weight(len(body), True)):
            self._task = self._loop.create_task(self._serve(short, message, body, pieces, arrived_s))
        else:
            request_id = request_id_of(message.headers)
            self._write(problem_reply(BUSY, self._app, request_id), request_id)
            observe(message.path, BUSY.code.http_status, 0.0)
        return True

    async def _serve(
        self, short: Short, message: RawRequestMessage, body: bytes, pieces: int, arrived_s: float
    ) -> None:
        request_id = request_id_of(message.headers)
        logs.request_id.set(request_id)
        authorization = message.headers.get("Authorization")
        ask = Ask(self._app, message.method, message.path, authorization, body, request_id)
        try:
            reply = await short.answer(ask)
            self._write(reply, request_id)
            observe(message.path, reply.status, time.perf_counter() - arrived_s)
        finally:
            self._admission.leave(pieces)
            self._task = None
            self._go_on()

    def _write(self, reply: Reply, request_id: str) -> None:
        transport = self.transport
        if transport is not None and not transport.is_closing():
            is_last = self._close or self._leaving.is_set()
            transport.write(reply.on_the_wire(request_id, is_last=is_last))
            if is_last:
                transport.close()

    def _go_on(self) -> None:
        held, self._held = self._held, b""
        if held and self.transport is not None and not self.transport.is_closing():
            self._resume_transport_reading()
            self.data_received(held)


def _is_special(message: RawRequestMessage) -> bool:
    headers = message.headers
    return (
        message.should_close
        or message.chunked
        or message.version != HttpVersion11
        or "Expect" in headers
        or "Content-Encoding" in headers
    )


class _Sieve:
    """Stands in front of the parser: takes the short requests out of what it read, and lets all else pass."""

    def __init__(self, parser: Any, door: Door) -> None:
        self._parser = parser
        self._door = door

    def feed_data(self, data: bytes) -> tuple[Messages, bool, bytes]:
        messages, is_upgraded, tail = self._parser.feed_data(data)
        if len(messages) == 1 and not is_upgraded and self._door.takes(*messages[0]):
            self._parser.message_consumed()
            return (), False, b""
        return messages, is_upgraded, tail

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)
