"""Offers and merchants as the checkout keeps them in memory, read again every second or so."""

import asyncio
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import Self

import msgspec

import sql
from kernel.clock import Clock
from kernel.ids import PARTITION_BITS, SERIAL_BITS
from kernel.postgres import ACQUIRE_TIMEOUT_S, Pool
from kernel.refreshing import in_turns, kept_fresh
from redemption.offers import Merchant, Offer

REFRESH_EVERY_S = 1.0
MERCHANTS_EVERY_S = 60.0
"""How often the merchants are read though nothing was heard of them."""
REMEMBERED = timedelta(days=14)
"""How long after the last voucher of a round ran out the numbers that tills used for it stay theirs."""
ROUND_SHIFT = PARTITION_BITS + SERIAL_BITS

_queries = sql.load("checkout")


class Catalogue(msgspec.Struct, frozen=True):
    """Every offer by stock number, every merchant by its number.

    oldest_id   tills' numbers that stand in rows of vouchers from this one on are remembered
    """

    offers: Mapping[int, Offer]
    merchants: Mapping[int, Merchant]
    buckets: int
    oldest_id: int = 0

    @classmethod
    async def read(cls, pool: Pool, now: datetime, merchants: Mapping[int, Merchant] | None = None) -> Self:
        """Reads it; without the merchants when they are given. `now` says whose suspension is over."""
        async with pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as conn:
            city = await conn.fetchrow(_queries["city"])
            offers = [Offer.of(dict(row)) for row in await conn.fetch(_queries["stocks"])]
            oldest_round = await conn.fetchval(_queries["oldest_round"], now - REMEMBERED)
            if merchants is None:
                rows = in_turns(await conn.fetch(_queries["merchants"], now))
                merchants = {row["merchant_no"]: Merchant(**row) async for row in rows}
        return cls(
            {offer.stock_no: offer for offer in offers},
            merchants,
            city["buckets"] if city else 1,
            oldest_round << ROUND_SHIFT,
        )


class LiveCatalogue:
    """The catalogue of now; `current` is replaced, never changed."""

    def __init__(self, pool: Pool, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock
        self._wake = asyncio.Event()
        self._merchants_due = True
        self._merchants_until = 0.0
        self.current = Catalogue({}, {}, 1)

    def hear_of_merchants(self) -> None:
        """A merchant was suspended, resumed or added: they are read at once."""
        self._merchants_due = True
        self._wake.set()

    async def refresh(self) -> None:
        """Reads it again: the offers each time; the merchants, who may be tens of thousands, when it has heard of
        them or not read them for long."""
        loop_s = asyncio.get_running_loop().time()
        known = None if self._merchants_due or loop_s >= self._merchants_until else self.current.merchants
        self._merchants_due = False
        try:
            self.current = await Catalogue.read(self._pool, self._clock.now(), known)
        except BaseException:
            self._merchants_due |= known is None
            raise
        if known is None:
            self._merchants_until = loop_s + MERCHANTS_EVERY_S

    def kept_fresh(self) -> AbstractAsyncContextManager[None]:
        """Loads the catalogue, then keeps it fresh while the context is open."""
        return kept_fresh("catalogue", self.refresh, REFRESH_EVERY_S, self._wake)
