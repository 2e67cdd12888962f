"""Reads rounds and stocks from PostgreSQL, what is left and what waits from Valkey, and how both feel."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from time import monotonic, perf_counter
from types import TracebackType
from typing import Any, Self

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError

import sql
from antifraud.gate import GateLimits
from issuer.metrics import look_at_log
from issuer.stock import StockStore
from kernel.cluster import Cluster
from kernel.errors import StoreDown
from kernel.postgres import Pool
from stack.watch.view import Draining, RoundLine, StockLine, Store

DEADLINE_S = 0.8
ROUNDS_MAX = 12
ROUNDS_EVERY_S = 5.0
"""What is on sale changes slowly; what is left of it is read at each look."""

_queries = sql.load("watch")
_AWAY = (asyncpg.PostgresError, asyncpg.InterfaceError, RedisError, StoreDown, OSError, TimeoutError)


class Books:
    """Both stores, read only. A store that is away leaves what was read from it last, and says so."""

    def __init__(self, dsn: str, valkey: Redis) -> None:
        self._dsn = dsn
        self._valkey = valkey
        self._store = StockStore(valkey, GateLimits())
        self._pool: Pool
        self._exits = AsyncExitStack()
        self._rounds: list[Any] = []
        self._read_at = float("-inf")
        self._before: dict[str, tuple[float, float]] = {}

    async def __aenter__(self) -> Self:
        settings = {"application_name": "watch", "TimeZone": "UTC", "default_transaction_read_only": "on"}
        self._pool = await asyncpg.create_pool(
            self._dsn, min_size=0, max_size=1, command_timeout=DEADLINE_S, timeout=DEADLINE_S, server_settings=settings
        )
        self._exits.callback(self._pool.terminate)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exits.aclose()

    # ------------------------------------------------------------ PostgreSQL

    async def postgres(self) -> Store:
        """One small query: the time it takes and how busy the server is."""
        started = perf_counter()
        try:
            row = await self._pool.fetchrow(_queries["health"])
        except _AWAY:
            return Store()
        took_s = perf_counter() - started
        assert row is not None
        rate = self._rate("postgres", row["transactions"])
        return Store(answer_ms=took_s * 1000, connections=row["connections"], operations_per_s=rate)

    async def rounds(self, now: datetime) -> list[RoundLine]:
        """Rounds in sight with their stocks: those that are open first, and of these the one that opened last."""
        try:
            if monotonic() - self._read_at > ROUNDS_EVERY_S:
                self._rounds = await self._pool.fetch(_queries["rounds_in_sight"], now, ROUNDS_MAX)
                self._read_at = monotonic()
            numbers = [row["round_no"] for row in self._rounds]
            stocks = await self._pool.fetch(_queries["stocks_in_sight"], numbers)
        except _AWAY:
            return []
        lines = [
            _round_line(row, [one for one in stocks if one["round_no"] == row["round_no"]], now) for row in self._rounds
        ]
        await asyncio.gather(*(self._fill_left(line, stocks) for line in lines))
        return sorted(lines, key=lambda line: (_ORDER[line.state], abs(line.opens_at - now)))

    @property
    def shards(self) -> int:
        """How many shards the installation has; 1 until it is known."""
        return self._rounds[0]["shards"] if self._rounds else 1

    # ------------------------------------------------------------ Valkey

    async def valkey(self) -> Store:
        """Time of one PING, and what the store says of itself."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                started = perf_counter()
                await self._valkey.ping()
                took_s = perf_counter() - started
                nodes = await self._valkey.primaries() if isinstance(self._valkey, Cluster) else [self._valkey]
                told: list[Any] = [await node.info("memory", "stats", "clients") for node in nodes]
        except _AWAY:
            return Store()
        rate = self._rate("valkey", sum(node["total_commands_processed"] for node in told))
        return Store(
            answer_ms=took_s * 1000,
            connections=sum(node["connected_clients"] for node in told),
            operations_per_s=rate,
            memory_bytes=sum(node["used_memory"] for node in told),
        )

    async def log(self) -> Draining:
        """What waits for the drain, over all shards."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                seen = await asyncio.gather(*(look_at_log(self._valkey, shard) for shard in range(self.shards)))
        except _AWAY:
            return Draining()
        return Draining(log_entries=sum(int(entries) for entries, _ in seen), oldest_s=max(age for _, age in seen))

    async def _fill_left(self, line: RoundLine, stocks: Sequence[Any]) -> None:
        numbers = [row["stock_no"] for row in stocks if row["round_no"] == line.round_no]
        try:
            async with asyncio.timeout(DEADLINE_S):
                looks = [self._store.left(shard, line.round_no, numbers) for shard in range(self.shards)]
                parts = [part for part in await asyncio.gather(*looks) if part is not None]
        except _AWAY:
            return
        for stock, number in zip(line.stocks, numbers, strict=True):
            stock.left = sum(part.get(number, 0) for part in parts) if parts else None

    def _rate(self, what: str, count: float) -> float | None:
        now = monotonic()
        since, before = self._before.get(what, (now, count))
        self._before[what] = now, count
        return max(0.0, count - before) / (now - since) if now > since else None


_ORDER = {"OPEN": 0, "NEXT": 1, "OVER": 2}


def _round_line(row: Any, stocks: Sequence[Any], now: datetime) -> RoundLine:
    state = "NEXT" if now < row["opens_at"] else "OPEN" if now < row["closes_at"] else "OVER"
    names = ("campaign_id", "title_zh", "title_en", "round_no", "round_id", "opens_at", "closes_at")
    return RoundLine(**{name: row[name] for name in names}, state=state, stocks=[_stock_line(one) for one in stocks])


def _stock_line(row: Any) -> StockLine:
    names = ("stock_id", "partner_id", "quantity", "issued", "paused")
    return StockLine(**{name: row[name] for name in names}, left=None)
