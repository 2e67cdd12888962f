"""Offers and merchants as the checkout keeps them in memory, read again every second or so."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import Any, Self

import msgspec

import sql
from kernel.clock import Clock
from kernel.ids import PARTITION_BITS, SERIAL_BITS
from kernel.postgres import ACQUIRE_TIMEOUT_S, Connection, Pool
from kernel.refreshing import in_turns, kept_fresh
from kernel.signing import Caller
from redemption.offers import Merchant, Offer

REFRESH_EVERY_S = 1.0
MERCHANTS_EVERY_S = 10.0
"""How often a worker looks whether merchants or keys changed, though nothing was heard of them."""
REMEMBERED = timedelta(days=14)
"""How long after the last voucher of a round ran out the numbers that tills used for it stay theirs."""
ROUND_SHIFT = PARTITION_BITS + SERIAL_BITS

_queries = sql.load("checkout")
_SHOPS = ("merchants", "stores")
_digests = [sql.digest_of(_queries[each]) for each in _SHOPS]


class Shops(msgspec.Struct, frozen=True):
    """Every merchant by its number; once more, by terminal, where its store is of another kind or elsewhere.
    `digest` is another when they are."""

    merchants: Mapping[int, Merchant]
    stores: Mapping[int, Merchant]
    digest: Sequence[str] = ()

    @classmethod
    async def read(cls, conn: Connection, now: datetime, known: Self | None = None) -> Self:
        """Reads them; `known` again when nothing changed. `now` says whose suspension is over."""
        digest = [await conn.fetchval(each, now) for each in _digests]
        if known is not None and known.digest == digest:
            return known
        merchants, stores = [in_turns(await conn.fetch(_queries[each], now)) for each in _SHOPS]
        return cls(
            {row["merchant_no"]: _merchant(row) async for row in merchants},
            {row["terminal_no"]: _merchant(row) async for row in stores},
            digest,
        )

    def knows(self, caller: Caller) -> bool:
        """Whether its merchant was there when they were read."""
        return caller.holder_no in self.merchants

    def of(self, caller: Caller) -> Merchant:
        """Who asks: the merchant, as its store at this terminal is. KeyError for one who is not known."""
        return self.stores.get(caller.terminal_no) or self.merchants[caller.holder_no]


async def oldest_id(conn: Connection | Pool, now: datetime) -> int:
    """The voucher from which on numbers of tills are remembered."""
    oldest_round: int = await conn.fetchval(_queries["oldest_round"], now - REMEMBERED)
    return oldest_round << ROUND_SHIFT


def _merchant(row: Any) -> Merchant:
    return Merchant(**{name: row[name] for name in Merchant.__struct_fields__})


class Catalogue(msgspec.Struct, frozen=True):
    """Every offer by stock number, and every shop.

    oldest_id   tills' numbers that stand in rows of vouchers from this one on are remembered
    """

    offers: Mapping[int, Offer]
    shops: Shops
    buckets: int
    oldest_id: int = 0

    @classmethod
    async def read(cls, pool: Pool, now: datetime, known: Shops | None = None, *, look: bool = True) -> Self:
        """Reads it; the shops that are known stay unless somebody is to `look` and finds that they changed.
        `now` says whose suspension is over."""
        async with pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as conn:
            city = await conn.fetchrow(_queries["city"])
            offers = [Offer.of(dict(row)) for row in await conn.fetch(_queries["stocks"])]
            oldest = await oldest_id(conn, now)
            await conn.fetchval(_queries["analyze_young"])
            shops = known if known and not look else await Shops.read(conn, now, known)
        return cls(
            {offer.stock_no: offer for offer in offers},
            shops,
            city["buckets"] if city else 1,
            oldest,
        )


class LiveCatalogue:
    """The catalogue of now; `current` is replaced, never changed."""

    def __init__(self, pool: Pool, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock
        self._wake = asyncio.Event()
        self._merchants_due = True
        self._merchants_until = 0.0
        self.current = Catalogue({}, Shops({}, {}), 1)

    def hear_of_merchants(self) -> None:
        """A merchant was suspended, resumed or added: they are read at once."""
        self._merchants_due = True
        self._wake.set()

    async def refresh(self) -> None:
        """Reads it again: the offers each time; the merchants, who may be tens of thousands, when it has heard of
        them or not read them for long."""
        loop_s = asyncio.get_running_loop().time()
        look = self._merchants_due or loop_s >= self._merchants_until
        self._merchants_due = False
        try:
            self.current = await Catalogue.read(self._pool, self._clock.now(), self.current.shops, look=look)
        except BaseException:
            self._merchants_due |= look
            raise
        if look:
            self._merchants_until = loop_s + MERCHANTS_EVERY_S

    def kept_fresh(self) -> AbstractAsyncContextManager[None]:
        """Loads the catalogue, then keeps it fresh while the context is open."""
        return kept_fresh("catalogue", self.refresh, REFRESH_EVERY_S, self._wake)
