"""Clients that are slow, silent or hostile: every connection has deadlines, and there are only so many.

    a request's line and headers    HEAD_S from their first byte                   408, closed
    a request's body                BODY_READ_S in all (kernel/web.py)             400, closed
    between two requests            IDLE_S, CROWDED_IDLE_S when places get scarce  closed
    an answer nobody reads          WRITE_S without room to write on               cut off
    one connection too many         at once                                        503, closed

A connection that waits costs memory only. One look at all of them, twice a second, is cheaper than a timer each.
"""

import asyncio
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from aiohttp import web
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler
from prometheus_client import Counter, Gauge

from kernel.answers import problem_reply, request_id_of
from kernel.errors import Code, Refusal

HEAD_S = 5.0
IDLE_S = 75.0
"""Longer than proxies keep a connection open by default, so that they close first."""
CROWDED_IDLE_S = 1.0
CROWDED = 0.8
"""Of all places taken: from here on whoever says nothing makes room."""
WRITE_S = 20.0
LINGER_S = 1.0
"""How long a body that nobody wants is read and thrown away."""
SWEEP_EVERY_S = 0.5
LOOK_EVERY_S = 0.02
LINE_BYTES_MAX = 4_096
FIELDS_MAX = 64
SPARE_FILES = 128
"""File descriptors for everything that is no client."""

NEVER_S = 1e9

log = structlog.get_logger()

_connections = Gauge("hanquan_http_connections", "Open connections of this worker")
_closed = Counter("hanquan_http_closed", "Connections that this worker closed on its clients", ("reason",))


def raise_file_limit(wanted: int) -> int:
    """As many open files as the system allows, up to `wanted` and some to spare; answers how many clients that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    goal = wanted + SPARE_FILES
    if hard != resource.RLIM_INFINITY:
        goal = min(goal, hard)
    if soft != resource.RLIM_INFINITY and soft < goal:
        resource.setrlimit(resource.RLIMIT_NOFILE, (goal, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if soft == resource.RLIM_INFINITY else min(wanted, soft - SPARE_FILES)


class Guests:
    """The open connections of a worker: how many there may be, and who has stayed too long."""

    def __init__(self, connections_max: int) -> None:
        self.connections_max = connections_max
        self._guests: set[Guest] = set()
        _connections.set_function(lambda: len(self._guests))

    def __len__(self) -> int:
        return len(self._guests)

    def enter(self, guest: "Guest") -> bool:
        """Whether there is a place for one more."""
        if len(self._guests) >= self.connections_max:
            _closed.labels("full").inc()
            return False
        self._guests.add(guest)
        return True

    def leave(self, guest: "Guest") -> None:
        """The connection is gone."""
        self._guests.discard(guest)

    @contextmanager
    def swept(self) -> Iterator[None]:
        """Closes who stayed too long while the context is open."""
        task = asyncio.create_task(self._keep_sweeping())
        try:
            yield
        finally:
            task.cancel()

    async def _keep_sweeping(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            try:
                self.sweep(asyncio.get_running_loop().time())
            except Exception:  # without sweeps there are no deadlines
                log.exception("sweep_failed")

    def sweep(self, now_s: float) -> None:
        """Closes who has stayed too long by now."""
        idle_s = IDLE_S if len(self._guests) < CROWDED * self.connections_max else CROWDED_IDLE_S
        for guest in list(self._guests):
            guest.close_if_overdue(now_s, idle_s)

    async def are_served(self, quiet_s: float, within_s: float) -> None:
        """Returns when every connection is gone, or idle and quiet for so long; or after `within_s`.

        Set LEAVING first, and close the listener: then each answer ends its connection, and none comes anew. Who
        was just answered may have sent its next request already, so a moment's idleness is not enough.
        """
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + within_s
        while loop.time() < deadline_s:
            if all(guest.is_quiet(loop.time() - quiet_s) for guest in self._guests):
                return
            await asyncio.sleep(LOOK_EVERY_S)


class Guest(RequestHandler):
    """One connection: aiohttp's, with deadlines. aiohttp itself has none for headers and for silent readers."""

    __slots__ = ("_app", "_guests", "_head_since_s", "_last_byte_s", "_payload", "_stuck_since_s")

    def __init__(self, app: web.Application, server: web.Server, guests: Guests) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # None is what web.AppRunner documents for no log
            keepalive_timeout=NEVER_S,  # the sweep does it
            lingering_time=LINGER_S,
            auto_decompress=False,
            max_line_size=LINE_BYTES_MAX,
            max_field_size=LINE_BYTES_MAX,
            max_headers=FIELDS_MAX,
        )
        self._app = app
        self._guests = guests
        self._last_byte_s = self._loop.time()
        self._head_since_s = 0.0
        self._stuck_since_s = 0.0
        self._payload: StreamReader | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a request is under way, or waits for its turn."""
        return self._waiter is None or bool(self._messages)

    def is_quiet(self, since_s: float) -> bool:
        """Whether nothing is under way and no byte came after a moment of the loop's time."""
        return not self.is_busy and self._last_byte_s <= since_s

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._guests.enter(self):
            super().connection_made(transport)
            return
        assert isinstance(transport, asyncio.Transport)
        reply = problem_reply(_FULL, self._app, request_id := request_id_of({}))
        transport.write(reply.on_the_wire(request_id, is_last=True))
        transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._guests.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        count = self._request_count
        super().data_received(data)
        self._last_byte_s = self._loop.time()
        if self._request_count != count:
            self._head_since_s = 0.0
            self._payload = self._messages[-1][1] if self._messages else None
        elif data and not self._head_since_s and (self._waiter is not None or count == 0):
            self._head_since_s = self._last_byte_s

    def resume_reading(self, resume_parser: bool = True) -> None:
        if self._reading_paused:  # aiohttp says so after every body; each time it would start the parser for nothing
            super().resume_reading(resume_parser)

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio allows it: True keeps our half open
        """Who sent a whole request and closed its half is still answered."""
        if not self.is_busy or (self._payload is not None and not self._payload.is_eof()):
            return False
        self.close()
        return True

    def pause_writing(self) -> None:
        self._stuck_since_s = self._loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._stuck_since_s = 0.0
        super().resume_writing()

    def close_if_overdue(self, now_s: float, idle_s: float) -> None:
        """Closes the connection if its client took longer than it may. `idle_s`: between two requests."""
        if self._stuck_since_s:
            if now_s - self._stuck_since_s > WRITE_S:
                self._end("unread answer")
        elif self.is_busy:
            return
        elif self._head_since_s:
            if now_s - self._head_since_s > HEAD_S:
                self._end("slow request", _TOO_SLOW)
        elif now_s - self._last_byte_s > idle_s:
            self._end("idle")

    def _end(self, reason: str, last_words: bytes = b"") -> None:
        _closed.labels(reason).inc()
        transport = self.transport
        if transport is None:
            return
        if last_words:
            transport.write(last_words)
            self.force_close()
        else:
            transport.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What cannot be read as HTTP is answered as problem+json too, and fills no log with its traces."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was begun already")
        if status >= 500:
            log.error("answer_failed", exc_info=exc)
            refusal = Refusal(code=Code.SYSTEM_ERROR, detail="a fault of ours; it is logged under this request id")
        else:
            log.info("not_http", error=type(exc).__name__)
            refusal = Refusal(code=Code.PARAM_ERROR, detail="this cannot be read as one HTTP request")
        reply = problem_reply(refusal, self._app, request_id := request_id_of(request.headers))
        response = web.Response(body=reply.body, status=reply.status, headers=reply.headers(request_id))
        response.force_close()
        return response


_FULL = Refusal(code=Code.SYSTEM_BUSY, detail="this worker takes no more connections", retry_after_s=1)
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
