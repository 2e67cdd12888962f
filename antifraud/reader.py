"""Reads the stream of signals, each batch once, in pages."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple, Self

import msgspec
import structlog
from prometheus_client import Counter
from redis.asyncio import Redis

from antifraud.detectors.recent import Recent
from antifraud.signals import STREAM, Signal, decode

PAGE_ENTRIES = 50
BLOCK_MS = 500
BATCHES_REMEMBERED = 20_000

_read = Counter("hanquan_signals_read", "Signals shown to the detectors")
_unreadable = Counter("hanquan_signal_batches_unreadable", "Batches in the stream that are none of ours")
log = structlog.get_logger()

Entry = tuple[bytes, dict[bytes, bytes]]


class Position(NamedTuple):
    """An entry's number in the stream: the store's milliseconds, and a count within one."""

    ms: int
    seq: int

    @classmethod
    def parse(cls, entry_id: bytes) -> Self:
        """From `1590000000000-0`."""
        ms, _, seq = entry_id.partition(b"-")
        return cls(int(ms), int(seq))

    def __str__(self) -> str:
        return f"{self.ms}-{self.seq}"


START = Position(0, 0)


class Page(NamedTuple):
    """Signals of some entries, and where the last of these stands."""

    signals: Sequence[Signal]
    last: Position


class SignalReader:
    """Reads with a client of its own, for it blocks. A batch that was written twice is shown once."""

    def __init__(self, valkey: Redis) -> None:
        self._valkey = valkey
        self._seen: Recent[bytes, bool] = Recent(BATCHES_REMEMBERED)

    async def after(self, position: Position) -> Page:
        """The next page; waits BLOCK_MS for one, then answers an empty page at the same position."""
        answer: Any = await self._valkey.xread({STREAM: str(position)}, count=PAGE_ENTRIES, block=BLOCK_MS)
        return self._page(_entries_of(answer), position)

    async def between(self, first: Position, last: Position) -> AsyncIterator[Page]:
        """All pages from `first` to `last`, both included, as far as the stream still holds them."""
        low = str(first)
        while True:
            entries: Any = await self._valkey.xrange(STREAM, min=low, max=str(last), count=PAGE_ENTRIES)
            if not entries:
                return
            page = self._page(entries, first)
            yield page
            low = f"({page.last}"

    def _page(self, entries: Sequence[Entry], before: Position) -> Page:
        signals = [signal for _, fields in entries for signal in self._signals(fields)]
        _read.inc(len(signals))
        return Page(signals, Position.parse(entries[-1][0]) if entries else before)

    def _signals(self, fields: dict[bytes, bytes]) -> list[Signal]:
        number = fields.get(b"n", b"")
        if number in self._seen:
            return []
        try:
            signals = decode(fields.get(b"b", b""))
        except msgspec.MsgspecError as error:
            _unreadable.inc()
            log.warning("signals_unreadable", error=str(error))
            return []
        self._seen.put(number, True)
        return signals


def _entries_of(answer: Any) -> Sequence[Entry]:
    """The entries of the one stream in an answer to XREAD, in either protocol's shape."""
    if not answer:
        return []
    entries = next(iter(answer.values())) if isinstance(answer, dict) else answer[0][1]
    return entries[0] if entries and isinstance(entries[0], list) else entries
