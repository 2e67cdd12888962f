"""Reads the /metrics of every process of ours, and what grew since the look before."""

import asyncio
from collections.abc import Mapping
from time import monotonic

import aiohttp
import msgspec

from stack.watch.exposition import Series, added, increase, parse

DEADLINE_S = 0.8
_HISTOGRAMS = ("hanquan_http_request_seconds", "hanquan_claim_batch_size", "hanquan_claim_store_seconds")
WANTED = frozenset(
    [
        "hanquan_claims_total",
        "hanquan_claims_sold_out_from_memory_total",
        "hanquan_requests_over_quota_total",
        "hanquan_http_turned_away_total",
        "hanquan_claims_waiting",
        "hanquan_drained_vouchers_total",
        "hanquan_drain_lag_seconds",
        "hanquan_signals_dropped_total",
        "hanquan_time_seconds",
        *(f"{name}_{part}" for name in _HISTOGRAMS for part in ("bucket", "sum", "count")),
    ]
)
"""What the watch shows; whatever else a service tells is passed over."""


class Looked(msgspec.Struct):
    """`now` by process; `grown` and `per_s` over all processes since the look before."""

    now: dict[str, Series]
    grown: Series
    per_s: Series


class ServiceReader:
    """Looks at all services at once, as long as they answer in time."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http
        self._before: dict[str, tuple[float, Series]] = {}

    async def look(self, addresses: Mapping[str, str]) -> Looked:
        """Base URLs by name of process. One that does not answer is left out."""
        found = await asyncio.gather(*(self._read(name, address) for name, address in addresses.items()))
        now = {name: (at, series) for name, at, series in found if series is not None}
        grown, per_s = [], []
        for name, (at, series) in now.items():
            if name in self._before:
                since, before = self._before[name]
                more = increase(before, series)
                grown.append(more)
                per_s.append({what: value / (at - since) for what, value in more.items()})
        self._before |= now
        return Looked({name: series for name, (_, series) in now.items()}, added(grown), added(per_s))

    async def _read(self, name: str, address: str) -> tuple[str, float, Series | None]:
        try:
            async with self._http.get(f"{address}/metrics") as response:
                text = await response.text(encoding="utf-8")
            return name, monotonic(), parse(text, WANTED)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return name, monotonic(), None


def open_session() -> aiohttp.ClientSession:
    """For a ServiceReader."""
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=DEADLINE_S))
