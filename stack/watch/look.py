"""One look at the whole city: everything is asked at once, and a view is made of what answered in time."""

import asyncio
import os
import re
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from math import isnan

from kernel.clock import from_ms, open_clock
from kernel.valkey import open_valkey
from stack import leftovers
from stack.data_folder import Process
from stack.reach import Reach
from stack.watch.books import Books
from stack.watch.exposition import Series, added, by_label, pick, spread, total
from stack.watch.machine import CpuMeter
from stack.watch.services import Looked, ServiceReader, open_session
from stack.watch.view import Claims, Coalescing, Draining, Quantiles, View, Worker

HISTORY = 60
"""Looks that the sparkline shows."""


class Watcher:
    """Looks as often as it is asked; rates are since the look before."""

    def __init__(self, reach: Reach, services: ServiceReader, books: Books) -> None:
        self._reach = reach
        self._services = services
        self._books = books
        self._cpu = CpuMeter()
        self._history: deque[float] = deque(maxlen=HISTORY)
        self._clock = open_clock(os.environ.get("HANQUAN_CLOCK_FILE"))
        self._looks = 0

    async def look(self) -> View:
        """Never raises for what is away: a view says what it could not see."""
        processes = (self._reach.folder.read_run() or self._reach.run).processes  # a restart brings new ones
        addresses = {one.name: one.health for one in processes if one.health}
        # The stores by themselves: their time of answering must not be that of everything else here.
        postgres, valkey = await self._books.postgres(), await self._books.valkey()
        looked, draining = await asyncio.gather(self._services.look(addresses), self._books.log())
        now = self._now(looked.now)
        rounds = await self._books.rounds(now)
        everybody = added(looked.now.values())
        claims = _claims(looked, everybody)
        self._looks += 1
        if self._looks > 1:
            self._history.append(claims.per_s)
        claims.last_minute_per_s = list(self._history)
        return View(
            now=now,
            next_opening=min((line.opens_at for line in rounds if line.state == "NEXT"), default=None),
            rounds=rounds,
            claims=claims,
            http_ms=_quantiles_ms(looked.grown, "hanquan_http_request_seconds"),
            store_ms=_quantiles_ms(looked.grown, "hanquan_claim_store_seconds"),
            coalescing=_coalescing(looked, everybody),
            draining=_with_drain(draining, looked),
            postgres=postgres,
            valkey=valkey,
            workers=_workers(processes, looked.now, self._cpu.look([one.pid for one in processes])),
            signals_dropped=total(everybody, "hanquan_signals_dropped_total"),
        )

    def _now(self, series: Mapping[str, Series]) -> datetime:
        """The services' clock, which may run apart from the machine's (docs/adr/0007)."""
        times = [value for one in series.values() for _, value in pick(one, "hanquan_time_seconds")]
        return from_ms(int(max(times) * 1000)) if times else self._clock.now()


@asynccontextmanager
async def watching(reach: Reach) -> AsyncIterator[Watcher]:
    """A watcher with its connections, closed at the end of the block. Its first look has no rates yet."""
    valkey = open_valkey(reach.valkey_url, socket_timeout_s=1.0)
    try:
        async with open_session() as http, Books(reach.dsn("hanquan_auditor"), valkey) as books:
            yield Watcher(reach, ServiceReader(http), books)
    finally:
        await valkey.aclose()


# ---------------------------------------------------------------- from series to views


def _claims(looked: Looked, everybody: Series) -> Claims:
    outcomes = by_label(looked.per_s, "hanquan_claims_total", "outcome")
    granted, replayed = outcomes.pop("GRANTED", 0.0), outcomes.pop("REPLAYED", 0.0)
    refused = {code: rate for code, rate in outcomes.items() if rate > 0}
    return Claims(
        per_s=granted + replayed + sum(refused.values()),
        granted_per_s=granted,
        replayed_per_s=replayed,
        refused_per_s=refused,
        from_memory_per_s=total(looked.per_s, "hanquan_claims_sold_out_from_memory_total"),
        over_quota_per_s=total(looked.per_s, "hanquan_requests_over_quota_total"),
        turned_away_per_s=total(looked.per_s, "hanquan_http_turned_away_total"),
        by_partner_per_s=by_label(looked.per_s, "hanquan_claims_total", "partner"),
        total=total(everybody, "hanquan_claims_total"),
    )


def _quantiles_ms(grown: Series, name: str) -> Quantiles:
    """Of HTTP only calls of our interfaces, not of /metrics or /healthz."""
    found = spread(grown, name, lambda labels: labels.get("route", "/v1").startswith("/v1"))
    p50, p99 = found.quantile(0.5), found.quantile(0.99)
    return Quantiles(p50=p50 and p50 * 1000, p99=p99 and p99 * 1000)


def _coalescing(looked: Looked, everybody: Series) -> Coalescing:
    batches = spread(looked.grown, "hanquan_claim_batch_size")
    return Coalescing(
        waiting=total(everybody, "hanquan_claims_waiting"),
        mean_batch=batches.mean,
        p99_batch=batches.quantile(0.99),
        calls_per_s=total(looked.per_s, "hanquan_claim_batch_size_count"),
    )


def _with_drain(draining: Draining, looked: Looked) -> Draining:
    lags = [lag for one in looked.now.values() for _, lag in pick(one, "hanquan_drain_lag_seconds") if not isnan(lag)]
    draining.lag_s = max(lags, default=None)
    draining.drained_per_s = total(looked.per_s, "hanquan_drained_vouchers_total")
    return draining


def _workers(processes: Sequence[Process], answered: Mapping[str, Series], cpu: Mapping[int, float]) -> list[Worker]:
    return [
        Worker(
            name=one.name,
            service=service_of(one.name),
            is_up=one.name in answered if one.health else leftovers.start_ticks(one.pid) == one.start_ticks,
            cpu_percent=cpu.get(one.pid),
        )
        for one in processes
    ]


def service_of(name: str) -> str:
    """`issuer-2` is a worker of `issuer`."""
    return re.split(r"[^a-z]", name, maxsplit=1)[0]
