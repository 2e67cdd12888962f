"""`python -m issuer.drain`: carries wins from Valkey's log into the voucher table, each exactly once.

One process leads per shard (a PostgreSQL advisory lock). It reads the log from the position that
PostgreSQL holds, copies the vouchers, posts ISSUE, and moves the position, all in one transaction;
only then is the log cut. A crash anywhere repeats work that was not committed, and nothing else.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any

import asyncpg
import structlog
from aiohttp import web
from prometheus_client import Counter, Gauge
from redis.asyncio import Redis
from redis.exceptions import RedisError

import sql
from antifraud.gate import SignalWriter
from issuer import keys
from issuer.catalogue import Catalogue
from issuer.claim import claim_signal
from issuer.record import Win, request_key, unpack_wins
from kernel.clock import Clock, from_ms, open_clock
from kernel.errors import Broken
from kernel.partitions import bucket_of, partition_of
from kernel.postgres import Connection, Pool, open_pool
from kernel.settings import Settings
from kernel.valkey import open_valkey
from kernel.web import READY_CHECKS, new_app, run_service

ENTRIES_MAX = 64
"""Log entries read at once; each holds what one script call granted, up to 1,000 wins."""
BLOCK_MS = 250
RETRY_S = 0.5
COLUMNS = ("voucher_id", "claimed_at", "request_key", "person", "stock_no", "bucket", "out_request_no")

_queries = sql.load("drain")
_drained = Counter("hanquan_drained_vouchers", "Vouchers carried into PostgreSQL", ("shard",))
_lag = Gauge("hanquan_drain_lag_seconds", "Age of the youngest voucher when it was committed", ("shard",))
log = structlog.get_logger()


class Drain:
    """Drains one shard."""

    def __init__(self, pool: Pool, valkey: Redis, signals: SignalWriter, clock: Clock, shard: int) -> None:
        self._pool = pool
        self._valkey = valkey
        self._signals = signals
        self._clock = clock
        self._shard = shard
        self._catalogue: Catalogue | None = None

    async def run(self) -> None:
        """Drains for ever; a store that is away is waited for."""
        while True:
            try:
                async with self._leading() as conn:
                    while True:
                        await self.drain_once(conn)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, RedisError, TimeoutError) as error:
                log.warning("drain_waits", shard=self._shard, error=f"{type(error).__name__}: {error}")
            except Exception:  # wins wait in the log until it is mended; a drain that ended would not tell
                log.exception("drain_fails", shard=self._shard)
            self._catalogue = None
            await asyncio.sleep(RETRY_S)

    @contextlib.asynccontextmanager
    async def _leading(self) -> AsyncIterator[Connection]:
        async with self._pool.acquire(timeout=5) as conn:
            while not await conn.fetchval(_queries["try_lead"], self._shard):
                await asyncio.sleep(RETRY_S)
            log.info("drain_leads", shard=self._shard)
            yield conn

    async def drain_once(self, conn: Connection) -> int:
        """Carries over what waits now, up to a chunk; answers how many vouchers that was."""
        position = await self._position(conn)
        entries = await self._read(position)
        if not entries:
            return 0
        wins = [win for _, fields in entries for win in unpack_wins(fields[b"w"])]
        last: str = entries[-1][0].decode()
        catalogue = await self._catalogue_with(wins)
        async with conn.transaction():
            await self._store(conn, catalogue, wins, last)
            if await conn.fetchval(_queries["move_position"], self._shard, position, last) is None:
                raise Broken(f"shard {self._shard} was drained by two at once")
        await self._valkey.xtrim(keys.log_key(self._shard), minid=_after(last), approximate=False)
        self._tell(wins)
        return len(wins)

    async def _position(self, conn: Connection) -> str:
        await conn.execute(_queries["start_position"], self._shard)
        position: str = await conn.fetchval(_queries["position"], self._shard)
        return position

    async def _read(self, position: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
        key = keys.log_key(self._shard)
        answer: Any = await self._valkey.xread({key: position}, count=ENTRIES_MAX, block=BLOCK_MS)
        if not answer:
            return []
        streams = answer.values() if isinstance(answer, dict) else (pairs for _, pairs in answer)
        entries = next(iter(streams))
        return entries[0] if entries and isinstance(entries[0], list) else entries

    async def _catalogue_with(self, wins: Sequence[Win]) -> Catalogue:
        if self._catalogue is None or any(win.claim.stock_no not in self._catalogue.by_no for win in wins):
            self._catalogue = await Catalogue.read(self._pool)
        return self._catalogue

    async def _store(self, conn: Connection, catalogue: Catalogue, wins: Sequence[Win], last: str) -> None:
        await conn.copy_records_to_table(
            "voucher", columns=COLUMNS, records=[_row(win, catalogue.buckets) for win in wins]
        )
        chunks: dict[tuple[int, int], list[Win]] = defaultdict(list)
        for win in wins:
            stock = catalogue.by_no[win.claim.stock_no]
            chunks[bucket_of(partition_of(win.claim.person), catalogue.buckets), stock.campaign_no].append(win)
        for (bucket, campaign_no), chunk in sorted(chunks.items()):
            await conn.execute(
                _queries["post_issue"],
                bucket,
                campaign_no,
                sum(catalogue.by_no[win.claim.stock_no].funded_fen for win in chunk),
                len(chunk),
                hash_of(win.voucher_id for win in chunk),
                f"shard {self._shard} log {last} campaign {campaign_no}",
                _latest(chunk),
            )
        if catalogue.shards > 1:
            await self._find_clashes(conn, catalogue, wins)

    async def _find_clashes(self, conn: Connection, catalogue: Catalogue, wins: Sequence[Win]) -> None:
        numbers = [request_key(win.claim.partner_no, win.claim.out_request_no) for win in wins]
        ids = [win.voucher_id for win in wins]
        await conn.execute(_queries["find_clashes"], ids, numbers, list(range(catalogue.buckets)), self._clock.now())

    def _tell(self, wins: Sequence[Win]) -> None:
        _drained.labels(self._shard).inc(len(wins))
        _lag.labels(self._shard).set((self._clock.now_ms() - wins[-1].claimed_ms) / 1000)
        for win in wins:
            self._signals.offer(claim_signal(win.claim, win.claimed_ms, "GRANTED"))


def hash_of(voucher_ids: Any) -> bytes:
    """SHA-256 over the voucher numbers of a chunk in ascending order, eight bytes each; an auditor can
    tell by it which vouchers an ISSUE transfer stands for."""
    return sha256(b"".join(number.to_bytes(8) for number in sorted(voucher_ids))).digest()


def _row(win: Win, buckets: int) -> tuple[int, datetime, int, str, int, int, str]:
    claim = win.claim
    return (
        win.voucher_id,
        from_ms(win.claimed_ms),
        request_key(claim.partner_no, claim.out_request_no),
        claim.person.hex(),
        claim.stock_no,
        bucket_of(partition_of(claim.person), buckets),
        claim.out_request_no,
    )


def _latest(wins: Sequence[Win]) -> datetime:
    return from_ms(max(win.claimed_ms for win in wins))


def _after(entry_id: str) -> str:
    ms, _, sequence = entry_id.partition("-")
    return f"{ms}-{int(sequence) + 1}"


async def make_app(settings: Settings) -> web.Application:
    """The drains of all shards, with health and metrics."""
    clock = open_clock(settings.clock_file)
    pool = await open_pool(settings.postgres_dsn, size=2, command_timeout_s=60, name="drain")
    shards = (await Catalogue.read(pool)).shards
    await pool.close()
    pool = await open_pool(settings.postgres_dsn, size=shards + 1, command_timeout_s=60, name="drain")
    valkey = open_valkey(settings.valkey_url, connections=shards + 4)
    signals = SignalWriter(valkey)

    async def draining(app: web.Application) -> AsyncIterator[None]:
        async with signals:
            tasks = [asyncio.create_task(Drain(pool, valkey, signals, clock, n).run()) for n in range(shards)]
            yield
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await pool.close()
        await valkey.aclose()

    app = new_app(clock)
    app[READY_CHECKS].append(valkey.ping)
    app.cleanup_ctx.append(draining)
    return app


if __name__ == "__main__":
    run_service("drain", make_app)
