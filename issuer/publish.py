"""Brings rounds into Valkey: new ones as they are, known ones rebuilt from PostgreSQL when the store lost them; and
keeps what is published as the books say: who is paused, how many there are."""

import asyncio
import contextlib
from contextlib import AbstractAsyncContextManager
from datetime import timedelta

import msgspec
import structlog

import sql
from issuer import metrics
from issuer.catalogue import Catalogue, Round, Stock
from issuer.claim import ClaimDesk
from issuer.operator.budget import keep_up
from issuer.operator.office import published_alone
from issuer.rebuild import Elsewhere, ids_of, look_elsewhere, remember_faces, remember_wins
from issuer.rounds import SERIAL_GAP, deal, unpublished_round
from issuer.soldout import SoldOut
from issuer.stock import StockOnShard, StockStore
from kernel.clock import Clock
from kernel.errors import StoreDown
from kernel.postgres import ACQUIRE_TIMEOUT_S, Connection, Pool
from kernel.refreshing import kept_fresh

REFRESH_EVERY_S = 1.0
PUBLISH_AHEAD = timedelta(minutes=10)
"""A round is brought into Valkey this long before it opens, when the money of earlier rounds is back."""

_queries = sql.load("issuer")
log = structlog.get_logger()


class Publisher:
    """Keeps the desk's catalogue fresh and every round of it published. Safe to run in many workers:
    each step is done once by whoever comes first. `pool` is for reading by many rows."""

    def __init__(
        self, pool: Pool, store: StockStore, desk: ClaimDesk, clock: Clock, sold_out: SoldOut | None = None
    ) -> None:
        self._pool = pool
        self._store = store
        self._desk = desk
        self._clock = clock
        self._sold_out = sold_out
        self.wake = asyncio.Event()
        """Set it when a stock has changed."""

    def kept_fresh(self) -> AbstractAsyncContextManager[None]:
        """Publishes all there is, then looks for more while the context is open."""
        return kept_fresh("rounds", self.refresh, REFRESH_EVERY_S, self.wake)

    async def refresh(self) -> None:
        """Reads the catalogue, and publishes each round that opens soon or is still good and that Valkey
        does not hold: a new one, or one that the store lost."""
        catalogue = await Catalogue.read(self._pool)
        now = self._clock.now()
        self._desk.catalogue = catalogue
        if self._sold_out is not None:
            self._sold_out.see(catalogue, now)
        for round_ in catalogue.rounds.values():
            stocks = catalogue.stocks_of(round_.round_no)
            if stocks and round_.opens_at - PUBLISH_AHEAD <= now < max(stock.valid_until for stock in stocks):
                await self._try_publish(catalogue, round_)
        with contextlib.suppress(StoreDown):  # what is left of a shard that is away, nobody sees
            await metrics.look_at_stock(self._store, catalogue, now)

    async def _try_publish(self, catalogue: Catalogue, round_: Round) -> None:
        """A shard that is away, or a round that somebody else is bringing back, keeps nobody from the other rounds,
        nor a worker from starting."""
        try:
            await self._publish(catalogue, round_)
        except (StoreDown, TimeoutError) as error:
            log.warning("round_not_kept", round_no=round_.round_no, error=f"{type(error).__name__}: {error}")
        except Exception:
            log.exception("round_not_kept", round_no=round_.round_no)

    async def _publish(self, catalogue: Catalogue, round_: Round) -> None:
        """Shards are brought up to the books before one that lost the round is dealt its part again: what an operator's
        edit gave or took of the others must be counted first."""
        round_no = round_.round_no
        lost = [shard for shard in range(catalogue.shards) if await self._has_lost(shard, round_no)]
        async with (
            self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as conn,
            published_alone(conn, round_no, waits=bool(lost)) as is_alone,
        ):
            if is_alone:  # whoever else holds the lock does the same, and a second one has nothing to do
                await keep_up(conn, self._store, catalogue.shards, round_no, self._clock.now())
                for shard in lost:
                    await self._publish_shard(conn, round_, shard)

    async def _has_lost(self, shard: int, round_no: int) -> bool:
        """Whether a shard is there, and the round is not. (Whether one that is away has it, nobody knows.)"""
        with contextlib.suppress(StoreDown):
            return not await self._store.is_published(shard, round_no)
        return False

    async def _publish_shard(self, conn: Connection, round_: Round, shard: int) -> None:
        round_no = round_.round_no
        if await self._store.is_published(shard, round_no):
            return
        await self._forget_lost_log(conn, shard)  # in the books before anything is read or published
        async with conn.transaction():
            catalogue = await Catalogue.read_in(conn)  # as it is under the lock: quantities change under it, too
            stocks = catalogue.stocks_of(round_no)
            if not await _is_funded(conn, round_, stocks):
                metrics.round_not_funded.inc()
                log.error("round_not_funded", round_no=round_no)
                return
            issued = await self._bring(conn, catalogue, round_, shard)
        log.info("round_published", round_no=round_no, shard=shard, already_issued=issued)

    async def _bring(self, conn: Connection, catalogue: Catalogue, round_: Round, shard: int) -> int:
        fresh = unpublished_round(catalogue, round_, self._clock.offset_ms())
        await remember_faces(conn, self._store, catalogue, round_, shard)
        serial, issued = await remember_wins(conn, self._store, catalogue, fresh, shard)
        is_late = self._clock.now() >= round_.opens_at
        stocks = (await Catalogue.read_in(conn)).stocks_of(round_.round_no)  # that took a while: who is paused by now?
        elsewhere, dealt = await self._deal(conn, catalogue.shards, round_.round_no, stocks, shard)
        ready = msgspec.structs.replace(
            fresh, serial=serial + (SERIAL_GAP if is_late else 0), stocks=dealt, moves=elsewhere.moves
        )
        await self._store.publish(shard, ready)
        return issued.total()

    async def _deal(
        self, conn: Connection, shards: int, round_no: int, stocks: list[Stock], shard: int
    ) -> tuple[Elsewhere, dict[int, StockOnShard]]:
        numbers = [stock.stock_no for stock in stocks]
        published = [one for one in range(shards) if await self._store.is_published(one, round_no)]
        missing: dict[int, dict[int, int]] = {one: {} for one in range(shards) if one not in published}
        for row in await conn.fetch(_queries["issued_on_shards"], list(missing), numbers):
            missing[row["shard"]][row["stock_no"]] = row["issued"]
        elsewhere = await look_elsewhere(self._store, round_no, numbers, shard, published, shards)
        return elsewhere, deal(stocks, shard, missing, elsewhere.units)

    async def _forget_lost_log(self, conn: Connection, shard: int) -> None:
        """When the store lost its data, the drain begins its new log from the start: its entries may be numbered
        below the old ones. A drain at work on entries of the old log fails to commit, so what it holds is either
        in the vouchers read below or never counts: a voucher that is in neither would be issued twice."""
        while not await self._store.has_log(shard):
            position = await conn.fetchval(_queries["drain_position"], shard)
            if position is None or await conn.fetchval(_queries["restart_drain"], shard, position) is not None:
                return  # else the drain moved on meanwhile; it may be moving still


async def _is_funded(conn: Connection, round_: Round, stocks: list[Stock]) -> bool:
    """Whether BUDGET can pay for every voucher of a round. A round that it cannot pay for stays shut: its
    wins could not be booked. A round of which vouchers are out was funded when it opened."""
    if await conn.fetchval(_queries["has_vouchers"], *ids_of(round_.round_no)):
        return True
    budget_fen: int = await conn.fetchval(_queries["budget_fen"], round_.campaign_no)
    return budget_fen >= sum(stock.quantity * stock.funded_fen for stock in stocks)
