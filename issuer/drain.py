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
import msgspec
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
from kernel.tasks import end
from kernel.valkey import is_cluster, open_valkey
from kernel.web import READY_CHECKS, new_app, run_service

ENTRIES_MAX = 64
"""Log entries read at once; each holds what one script call granted, up to 1,000 wins."""
BLOCK_MS = 250
RETRY_S = 0.5
SIGNALS_MAX = 4 * ENTRIES_MAX * 1_000
"""Signals that wait to be written: those of some full chunks, so that anti-fraud hears of the rush, too."""

_queries = sql.load("drain")
log = structlog.get_logger()


class Chunk(msgspec.Struct, frozen=True):
    """Log entries that are carried over together, up to the entry `last`."""

    last: str
    wins: Sequence[Win]
    catalogue: Catalogue
    load: Load


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
        self._ahead: tuple[str, Chunk | None] = "", None
        """After which entry the next chunk was read, and the chunk."""

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
            self._catalogue, self._ahead = None, ("", None)
            await asyncio.sleep(RETRY_S)

    @contextlib.asynccontextmanager
    async def _leading(self) -> AsyncIterator[Connection]:
        async with self._pool.acquire(timeout=5) as conn:
            while not await conn.fetchval(_queries["try_lead"], self._shard):
                await asyncio.sleep(RETRY_S)
            log.info("drain_leads", shard=self._shard)
            yield conn

    async def drain_once(self, conn: Connection) -> int:
        """Carries over what waits now, up to a chunk; answers how many vouchers that was. While the database is at
        work on one chunk, the next one is read and made ready."""
        position = await self._position(conn)
        chunk = await self._chunk_after(position)
        if chunk is None:
            return 0
        # What a failover could still take back must not get into the books.
        key = keys.log_key(self._shard)
        await await_replicas(self._valkey, keys.tag(self._shard), self._replicas, entry=(key, chunk.last))
        ahead = asyncio.create_task(self._read_chunk(chunk.last, None))
        try:
            await self._carry(conn, position, chunk)
        except BaseException:
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)
            raise
        (following,) = await asyncio.gather(ahead, return_exceptions=True)
        self._ahead = chunk.last, following if isinstance(following, Chunk) else None  # a fault will be met again
        await self._valkey.xtrim(key, minid=_after(chunk.last), approximate=False)
        self._tell(chunk)
        return sum(chunk.load.issued.values())

    async def _carry(self, conn: Connection, position: str, chunk: Chunk) -> None:
        async with conn.transaction():
            await self._store(conn, chunk.catalogue, chunk.load, chunk.last)
            await self._write_callbacks(conn, chunk.catalogue, chunk.wins)
            if await conn.fetchval(_queries["move_position"], self._shard, position, chunk.last) is None:
                raise Broken(f"shard {self._shard} was drained by two at once")

    async def _chunk_after(self, position: str) -> Chunk | None:
        after, chunk = self._ahead
        self._ahead = "", None
        if chunk is not None and after == position:
            return chunk
        return await self._read_chunk(position, BLOCK_MS)

    async def _read_chunk(self, position: str, block_ms: int | None) -> Chunk | None:
        entries = await self._read(position, block_ms)
        if not entries:
            return None
        wins = [win for _, fields in entries for win in unpack_wins(fields[b"w"])]
        catalogue = await self._catalogue_with(wins)
        return Chunk(entries[-1][0].decode(), wins, catalogue, load_of(wins, catalogue))

    async def _position(self, conn: Connection) -> str:
        await conn.execute(_queries["start_position"], self._shard)
        position: str = await conn.fetchval(_queries["position"], self._shard)
        return position

    async def _read(self, position: str, block_ms: int | None) -> list[tuple[bytes, dict[bytes, bytes]]]:
        key = keys.log_key(self._shard)
        answer: Any = await self._valkey.xread({key: position}, count=ENTRIES_MAX, block=block_ms)
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
        # By campaign first: drains of two shards then take the rows of BUDGET in one order.
        for (bucket, campaign_no), chunk in sorted(load.chunks.items(), key=lambda each: (each[0][1], each[0][0])):
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

    def _tell(self, chunk: Chunk) -> None:
        wins, catalogue = chunk.wins, chunk.catalogue
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


async def _shards(pool: Pool) -> int:
    """How many shards the city has; waits until there is a city."""
    while (shards := await pool.fetchval(_queries["shards"])) is None:
        log.info("drain_waits", error="there is no city yet")
        await asyncio.sleep(RETRY_S)
    return int(shards)


async def make_app(settings: Settings) -> web.Application:
    """The drains of all shards, with health and metrics."""
    clock = open_clock(settings.clock_file)
    pool = await open_pool(settings.postgres_dsn, size=2, command_timeout_s=60, name="drain")
    shards = await _shards(pool)
    await pool.close()
    pool = await open_pool(settings.postgres_dsn, size=shards + 1, command_timeout_s=60, name="drain")
    valkey = open_valkey(settings.valkey_url, connections=shards + 4)
    signals = SignalWriter(valkey, queue_max=SIGNALS_MAX)
    # On a cluster a replica must hold what gets into the books, even where answers do not wait for it: a failover
    # that took a voucher back from the shard would give its units, and its serial, to somebody else.
    replicas = max(settings.valkey_replicas_acked, is_cluster(settings.valkey_url))

    async def draining(app: web.Application) -> AsyncIterator[None]:
        async with signals:
            tasks = [asyncio.create_task(Drain(pool, valkey, signals, clock, n, replicas).run()) for n in range(shards)]
            tasks.append(asyncio.create_task(metrics.watch_logs(valkey, shards)))
            yield
            await asyncio.gather(*map(end, tasks))
        await pool.close()
        await valkey.aclose()

    app = new_app(clock)
    app[READY_CHECKS].append(valkey.ping)
    app.cleanup_ctx.append(draining)
    return app


if __name__ == "__main__":
    run_service("drain", make_app)
