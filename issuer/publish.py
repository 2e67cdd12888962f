"""Brings rounds into Valkey: new ones as they are, known ones rebuilt from PostgreSQL when the store lost them."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Any

import structlog

import sql
from issuer.catalogue import Catalogue, Offered
from issuer.claim import ClaimDesk
from issuer.record import Claim
from issuer.stock import StockStore, fresh_round
from kernel.clock import Clock, to_ms
from kernel.ids import SERIAL_MAX, pack_voucher_id, unpack_voucher_id
from kernel.partitions import PARTITIONS
from kernel.postgres import ACQUIRE_TIMEOUT_S, Connection, Pool
from kernel.refreshing import kept_fresh

REFRESH_EVERY_S = 1.0
REBUILD_PAGE = 5_000
PUBLISH_AHEAD = timedelta(minutes=10)
"""A round is brought into Valkey this long before it opens, when the money of earlier rounds is back."""

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

    def kept_fresh(self) -> AbstractAsyncContextManager[None]:
        """Publishes all there is, then looks for more while the context is open."""
        return kept_fresh("rounds", self.refresh, REFRESH_EVERY_S)

    async def refresh(self) -> None:
        """Reads the catalogue, and publishes each round that opens soon or is still good and that Valkey
        does not hold: a new one, or one that the store lost."""
        catalogue = await Catalogue.read(self._pool)
        now = self._clock.now()
        for stocks in catalogue.rounds().values():
            if stocks[0].opens_at - PUBLISH_AHEAD <= now < stocks[0].valid_until:
                await self._publish(catalogue, stocks)
        self._desk.catalogue = catalogue

    async def _publish(self, catalogue: Catalogue, stocks: Sequence[Offered]) -> None:
        for shard in range(catalogue.shards):
            if await self._store.is_published(shard, stocks[0].round_no):
                await self._keep_paused(stocks, shard)
            else:
                await self._publish_shard(catalogue, stocks, shard)

    async def _keep_paused(self, stocks: Sequence[Offered], shard: int) -> None:
        round_no, wanted = stocks[0].round_no, {stock.stock_no: stock.paused for stock in stocks}
        if await self._store.paused(shard, round_no, list(wanted)) != wanted:
            await self._store.pause(shard, round_no, wanted)
            log.info("stocks_paused", round_no=round_no, shard=shard, paused=[no for no, on in wanted.items() if on])

    async def _publish_shard(self, catalogue: Catalogue, stocks: Sequence[Offered], shard: int) -> None:
        round_no = stocks[0].round_no
        async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as conn, conn.transaction():
            await conn.execute(_queries["lock_publishing"], round_no)
            if await self._store.is_published(shard, round_no):
                return
            await self._forget_lost_log(conn, shard)
            issued = [row async for row in _issued(conn, round_no, shard, catalogue.shards)]
            if not await _is_funded(conn, stocks):
                log.error("round_not_funded", round_no=round_no)
                return
            fresh = fresh_round(stocks, shard, catalogue.shards, self._clock.offset_ms())
            await self._store.restore(shard, fresh, [_told(catalogue, row) for row in issued])
        log.info("round_published", round_no=round_no, shard=shard, already_issued=len(issued))

    async def _forget_lost_log(self, conn: Connection, shard: int) -> None:
        """When the store lost its data, the drain begins its new log from the start: its entries may be numbered
        below the old ones. A drain at work on entries of the old log fails to commit, so what it holds is either
        in the vouchers read below or never counts: a voucher that is in neither would be issued twice."""
        position = await conn.fetchval(_queries["drain_position"], shard)
        if position is not None and not await self._store.has_log(shard):
            await conn.execute(_queries["restart_drain"], shard, position)


async def _is_funded(conn: Connection, stocks: Sequence[Offered]) -> bool:
    """Whether BUDGET can pay for every voucher of a round. A round that it cannot pay for stays shut: its
    wins could not be booked. A round of which vouchers are out was funded when it opened."""
    if await conn.fetchval(_queries["has_vouchers"], *_ids_of(stocks[0].round_no)):
        return True
    budget_fen: int = await conn.fetchval(_queries["budget_fen"], stocks[0].campaign_no)
    return budget_fen >= sum(stock.quantity * stock.funded_fen for stock in stocks)


def _ids_of(round_no: int) -> tuple[int, int]:
    """The range of a round's voucher numbers; the end is not in it."""
    return pack_voucher_id(round_no, 0, 1), pack_voucher_id(round_no, PARTITIONS - 1, SERIAL_MAX) + 1


async def _issued(conn: Connection, round_no: int, shard: int, shards: int) -> AsyncIterator[Any]:
    first, end = -(-shard * PARTITIONS // shards), -(-(shard + 1) * PARTITIONS // shards)
    first_id, below = _ids_of(round_no)
    after = first_id - 1
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
