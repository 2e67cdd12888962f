"""Brings rounds into Valkey: new ones as they are, known ones rebuilt from PostgreSQL when the store lost them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import structlog

import sql
from issuer.catalogue import Catalogue, Offered
from issuer.claim import ClaimDesk
from issuer.record import Claim
from issuer.stock import StockStore, fresh_round
from kernel.clock import Clock, to_ms
from kernel.ids import unpack_voucher_id
from kernel.partitions import PARTITIONS
from kernel.postgres import ACQUIRE_TIMEOUT_S, Connection, Pool

REFRESH_EVERY_S = 1.0
REBUILD_PAGE = 5_000

_queries = sql.load("issuer")
log = structlog.get_logger()


class Publisher:
    """Keeps the desk's catalogue fresh and every round of it published. Safe to run in many workers:
    each step is done once by whoever comes first."""

    def __init__(self, pool: Pool, store: StockStore, desk: ClaimDesk, clock: Clock) -> None:
        self._pool = pool
        self._store = store
        self._desk = desk
        self._clock = clock
        self._published: set[int] = set()

    @contextlib.asynccontextmanager
    async def kept_fresh(self) -> AsyncIterator[None]:
        """Publishes all there is, then looks for more while the context is open."""
        await self.refresh()
        task = asyncio.create_task(self._keep_refreshing())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def refresh(self) -> None:
        """Reads the catalogue and publishes the rounds that are new to this worker."""
        catalogue = await Catalogue.read(self._pool)
        for round_no, stocks in catalogue.rounds().items():
            if round_no not in self._published:
                await self._publish(catalogue, stocks)
                self._published.add(round_no)
        self._desk.catalogue = catalogue

    async def _keep_refreshing(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_EVERY_S)
            try:
                await self.refresh()
            except Exception as error:  # what is published stays claimable while a store is away
                log.warning("catalogue_not_refreshed", error=str(error))

    async def _publish(self, catalogue: Catalogue, stocks: Sequence[Offered]) -> None:
        for shard in range(catalogue.shards):
            if not await self._store.is_published(shard, stocks[0].round_no):
                await self._publish_shard(catalogue, stocks, shard)

    async def _publish_shard(self, catalogue: Catalogue, stocks: Sequence[Offered], shard: int) -> None:
        round_no = stocks[0].round_no
        async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as conn, conn.transaction():
            await conn.execute(_queries["lock_publishing"], round_no)
            if await self._store.is_published(shard, round_no):
                return
            issued = [row async for row in _issued(conn, round_no, shard, catalogue.shards)]
            fresh = fresh_round(stocks, shard, catalogue.shards, self._clock.offset_ms())
            await self._store.restore(shard, fresh, [_told(catalogue, row) for row in issued])
        log.info("round_published", round_no=round_no, shard=shard, already_issued=len(issued))


async def _issued(conn: Connection, round_no: int, shard: int, shards: int) -> AsyncIterator[Any]:
    first, end = -(-shard * PARTITIONS // shards), -(-(shard + 1) * PARTITIONS // shards)
    after, below = (round_no << 38) - 1, (round_no + 1) << 38
    while True:
        rows = await conn.fetch(_queries["vouchers_of_round"], after, below, REBUILD_PAGE, first, end)
        for row in rows:
            yield row
        if len(rows) < REBUILD_PAGE:
            return
        after = rows[-1]["voucher_id"]


def _told(catalogue: Catalogue, row: Any) -> tuple[Claim, int, int]:
    stock = catalogue.by_no[row["stock_no"]]
    claim = Claim(
        round_no=stock.round_no,
        stock_no=stock.stock_no,
        partner_no=stock.partner_no,
        person=row["person"].bytes,
        device=bytes(8),
        out_request_no=row["out_request_no"],
    )
    return claim, unpack_voucher_id(row["voucher_id"]).serial, to_ms(row["claimed_at"])
