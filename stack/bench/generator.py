"""Helper: sends signed requests over HTTP/1.1 and counts what is told, at little cost to the machine it shares.

Requests are ready-made. One is under way a connection. Of an answer it reads the status, the length and,
in a batch, how many items won. Two schedules:

closed   every connection sends its next request when it has the answer: finds the highest rate
open     requests are due at times fixed beforehand, and their latency counts from then on, also while they
         wait for a free connection
"""

import asyncio
import re
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import cycle
from time import perf_counter
from typing import Any

import msgspec

from stack.bench.helper import Work, serve
from stack.bench.presign import read_requests
from stack.bench.schedule import Latency, arrivals, latency

GRACE_S = 30.0
"""So long after its last second a run must be over."""
TICK_S = 0.001
ITEM_WON = b'{"status":200'

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


class Rush(msgspec.Struct, frozen=True, kw_only=True):
    """One run. It ends after `seconds`, or when the requests are used up; with `again` they never are."""

    port: int
    files: list[str]
    connections: int
    per_call: int = 1
    seconds: float = 3_600.0
    again: bool = False
    rate_per_s: float | None = None
    """None: a closed schedule."""
    seed: int = 1


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What the server said. `refused`: everything that was no win, by code, status or fault."""

    calls: int
    wins: int
    refused: dict[str, int]
    seconds: float
    latency: Latency


class Sender:
    """Sends what it is given over its connections and keeps the count."""

    def __init__(self, job: Rush, requests: list[bytes]) -> None:
        self._job = job
        self._requests: Iterator[bytes] = cycle(requests) if job.again else iter(requests)
        self._idle: list[_Connection] = []
        self._late: deque[float] = deque()
        self._under_way = 0
        self._waits: list[float] = []
        self._statuses: Counter[str] = Counter()
        self._wins = 0
        self._over = asyncio.Event()
        self._due: Iterator[float] = iter(())
        self._next_due: float | None = None
        self._is_open = job.rate_per_s is not None
        if job.rate_per_s is not None:
            self._due = iter(arrivals(job.rate_per_s, len(requests), job.seed))

    async def run(self) -> Told:
        """Raises TimeoutError when the server does not answer."""
        loop = asyncio.get_running_loop()
        made = [
            await loop.create_connection(lambda: _Connection(self), "127.0.0.1", self._job.port)
            for _ in range(self._job.connections)
        ]
        self._idle = [connection for _, connection in made]
        self._started = perf_counter()
        self._ends = self._started + self._job.seconds
        if self._is_open:
            self._next_due = next(self._due, None)
            self._tick()
        else:
            for connection in [self._idle.pop() for _ in made]:
                self._send_next(connection)
        try:
            await asyncio.wait_for(self._over.wait(), self._job.seconds + GRACE_S)
        finally:
            seconds = perf_counter() - self._started
            for transport, _ in made:
                transport.abort()
        return Told(
            calls=len(self._waits),
            wins=self._wins,
            refused=dict(self._statuses),
            seconds=seconds,
            latency=latency(self._waits),
        )

    def _tick(self) -> None:
        """Sends what is due now; what finds no free connection waits in line."""
        now = perf_counter()
        while self._next_due is not None and (due := self._started + self._next_due) <= now:
            self._next_due = next(self._due, None) if due < self._ends else None
            if self._idle:
                self._send(self._idle.pop(), due)
            else:
                self._late.append(due)
        if self._next_due is not None:
            wait_s = max(self._started + self._next_due - now, TICK_S)
            asyncio.get_running_loop().call_later(wait_s, self._tick)
        elif not self._under_way:
            self._over.set()

    def _send(self, connection: "_Connection", due: float) -> None:
        self._under_way += 1
        connection.send(next(self._requests), due)

    def _send_next(self, connection: "_Connection") -> None:
        """A closed schedule: the next request is due when the connection is free."""
        now = perf_counter()
        request = next(self._requests, None) if now < self._ends else None
        if request is not None:
            self._under_way += 1
            connection.send(request, now)
        elif not self._under_way:
            self._over.set()

    def answered(self, connection: "_Connection", status: bytes, body: Any, since: float) -> None:
        """Takes in one answer and puts the connection to work again."""
        self._under_way -= 1
        self._waits.append(perf_counter() - since)
        if status == b"200":
            self._count_wins(body)
        else:
            self._statuses[_code(status, bytes(body))] += 1
        if not self._is_open:
            self._send_next(connection)
        elif self._late:
            self._send(connection, self._late.popleft())
        else:
            self._idle.append(connection)
            if self._next_due is None and not self._under_way:
                self._over.set()

    def _count_wins(self, body: Any) -> None:
        if self._job.per_call == 1:
            self._wins += 1
            return
        whole = bytes(body)
        won = whole.count(ITEM_WON)
        self._wins += won
        if won < self._job.per_call:
            self._statuses.update(_item_codes(whole))

    def lost(self) -> None:
        """A connection broke, so the run has failed: it is over. Nothing is sent again."""
        if not self._over.is_set():
            self._statuses["CONNECTION_LOST"] += 1
            self._over.set()


class _Connection(asyncio.Protocol):
    """One connection, one request under way."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._transport: Any = None
        self._since: float | None = None
        self._got = bytearray()
        self._needs = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def send(self, request: bytes, since: float) -> None:
        self._since = since
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        whole: bytes | bytearray = data
        if self._got:
            self._got += data
            whole = self._got
        if not self._needs:
            head = whole.find(b"\r\n\r\n")
            if head >= 0:
                length = _LENGTH.search(whole, 0, head + 2)
                self._needs = head + 4 + int(length[1]) if length else -1
        if self._needs > 0 and len(whole) >= self._needs:
            self._finish(whole)
        elif self._needs < 0:
            self._transport.abort()  # no length: not a server of ours
        elif not self._got:
            self._got += data

    def _finish(self, whole: bytes | bytearray) -> None:
        since, self._since = self._since, None
        status = bytes(whole[9:12])
        body = whole if status == b"200" else whole[whole.find(b"\r\n\r\n") + 4 : self._needs]
        self._needs = 0
        self._got = bytearray()
        assert since is not None
        self._sender.answered(self, status, body, since)

    def connection_lost(self, error: Exception | None) -> None:
        self._sender.lost()


def _code(status: bytes, body: bytes) -> str:
    try:
        return str(msgspec.json.decode(body)["code"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return f"STATUS_{status.decode(errors='replace')}"


def _item_codes(whole: bytes) -> list[str]:
    results = msgspec.json.decode(whole[whole.find(b"\r\n\r\n") + 4 :])["results"]
    return [item["problem"]["code"] for item in results if item["status"] != 200]


async def run_rush(job: Rush) -> Told:
    """Does a job in this process."""
    return await Sender(job, read_requests(job.files)).run()


@asynccontextmanager
async def _opened() -> AsyncIterator[Work[Rush]]:
    yield run_rush


if __name__ == "__main__":
    serve(Rush, _opened)
