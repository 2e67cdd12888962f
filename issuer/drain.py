"""`python -m issuer.drain`: carries wins from Valkey's log into the voucher table, each exactly once.

One process leads per shard (a PostgreSQL advisory lock). It reads the log from the position that
PostgreSQL holds, copies the vouchers, posts ISSUE, and moves the position, all in one transaction;
only then is the log cut. A crash anywhere repeats work that was not committed, and nothing else.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from datetime import datetime
from io import BytesIO
from typing import Any

import asyncpg
import structlog
from aiohttp import web
from redis.asyncio import Redis
from redis.exceptions import RedisError

import sql
from antifraud.gate import ClaimSignal, SignalWriter
from issuer import keys, metrics
from issuer.callbacks.outbox import add_claimed, stocks_told_of_claims
from issuer.carry import COLUMNS, Load, hash_of, load_of
from issuer.catalogue import Catalogue
from issuer.record import NO_DEVICE, Win, unpack_wins
from kernel.clock import Clock, from_ms, open_clock
from kernel.errors import Broken, StoreDown
from kernel.partitions import bucket_of
from kernel.postgres import Connection, Pool, open_pool
from kernel.scripts import await_replicas
from kernel.settings import Settings
from kernel.valkey import open_valkey
from kernel.web import READY_CHECKS, new_app, run_service

ENTRIES_MAX = 64
"""Log entries read at once; each holds what one script call granted, up to 1,000 wins."""
BLOCK_MS = 250
RETRY_S = 0.5

_queries = sql.load("drain")
log = structlog.get_logger()


class Drain:
    """Drains one shard."""

    def __init__(
        self, pool: Pool, valkey: Redis, signals: SignalWriter, clock: Clock, shard: int, replicas: int = 0
    ) -> None:
        self._replicas = replicas
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
            except (
                asyncpg.PostgresError,
                asyncpg.InterfaceError,
                OSError,
                RedisError,
                StoreDown,
                TimeoutError,
            ) as error:
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
        # What a failover could still take back must not get into the books.
        key = keys.log_key(self._shard)
        await await_replicas(self._valkey, keys.tag(self._shard), self._replicas, entry=(key, last))
        catalogue = await self._catalogue_with(wins)
        load = load_of(wins, catalogue)
        async with conn.transaction():
            await self._store(conn, catalogue, load, last)
            await self._write_callbacks(conn, catalogue, wins)
            if await conn.fetchval(_queries["move_position"], self._shard, position, last) is None:
                raise Broken(f"shard {self._shard} was drained by two at once")
        await self._valkey.xtrim(keys.log_key(self._shard), minid=_after(last), approximate=False)
        self._tell(wins, catalogue)
        return sum(load.issued.values())

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
        """The catalogue, read again when something won is not in it."""
        known = self._catalogue.stocks if self._catalogue is not None else {}
        if self._catalogue is None or any(no not in known for win in wins for no, _ in win.parts):
            self._catalogue = await Catalogue.read(self._pool)
        return self._catalogue

    async def _store(self, conn: Connection, catalogue: Catalogue, load: Load, last: str) -> None:
        await conn.copy_to_table("voucher", source=BytesIO(load.rows), columns=COLUMNS, format="binary")
        for (bucket, campaign_no), chunk in sorted(load.chunks.items()):
            await conn.execute(
                _queries["post_issue"],
                bucket,
                campaign_no,
                chunk.amount_fen,
                len(chunk.voucher_ids),
                hash_of(chunk.voucher_ids),
                f"shard {self._shard} log {last} campaign {campaign_no}",
                from_ms(chunk.latest_ms),
            )
        stock_nos = sorted(load.issued)
        await conn.execute(_queries["add_issued"], self._shard, stock_nos, [load.issued[no] for no in stock_nos])
        if catalogue.shards > 1:
            await self._find_clashes(conn, catalogue, load)

    async def _write_callbacks(self, conn: Connection, catalogue: Catalogue, wins: Sequence[Win]) -> None:
        told = await stocks_told_of_claims(conn)
        if told:
            await add_claimed(conn, list(_claimed(wins, told, catalogue.buckets)))

    async def _find_clashes(self, conn: Connection, catalogue: Catalogue, load: Load) -> None:
        ids = [number for chunk in load.chunks.values() for number in chunk.voucher_ids]
        await conn.execute(_queries["lock_clashes"])
        await conn.execute(_queries["find_clashes"], ids, list(range(catalogue.buckets)), self._clock.now())

    def _tell(self, wins: Sequence[Win], catalogue: Catalogue) -> None:
        metrics.drained(self._shard, len(wins), (self._clock.now_ms() - wins[-1].claimed_ms) / 1000)
        for win in wins:
            self._signals.offer(_signal(win, catalogue.stocks[win.parts[0][0]].partner_no))


def _claimed(wins: Sequence[Win], told: Collection[int], buckets: int) -> Iterator[tuple[int, int, int, datetime]]:
    """Bucket, number, stock and time of the vouchers whose partner is told."""
    for win in wins:
        for voucher_id, stock_no in win.vouchers():
            if stock_no in told:
                yield bucket_of(win.partition, buckets), voucher_id, stock_no, from_ms(win.claimed_ms)


def _signal(win: Win, partner_no: int) -> ClaimSignal:
    return ClaimSignal(
        at_ms=win.claimed_ms,
        person=win.person.hex(),
        device=None if win.device == NO_DEVICE else win.device.hex(),
        partner_no=partner_no,
        stock_no=win.parts[0][0],
        outcome="GRANTED",
    )


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
    replicas = settings.valkey_replicas_acked

    async def draining(app: web.Application) -> AsyncIterator[None]:
        async with signals:
            tasks = [asyncio.create_task(Drain(pool, valkey, signals, clock, n, replicas).run()) for n in range(shards)]
            tasks.append(asyncio.create_task(metrics.watch_logs(valkey, shards)))
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
