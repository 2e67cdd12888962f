"""Offers and merchants as the checkout keeps them in memory, read again every second or so."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Self

import msgspec

import sql
from kernel.postgres import ACQUIRE_TIMEOUT_S, Pool
from kernel.refreshing import kept_fresh
from redemption.offers import Merchant, Offer

REFRESH_EVERY_S = 1.0

_queries = sql.load("checkout")


class Catalogue(msgspec.Struct, frozen=True):
    """Every offer by stock number, every merchant by its number."""

    offers: Mapping[int, Offer]
    merchants: Mapping[int, Merchant]
    buckets: int

    @classmethod
    async def read(cls, pool: Pool) -> Self:
        """Reads it whole."""
        async with pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as conn:
            city = await conn.fetchrow(_queries["city"])
            offers = [Offer(**row) for row in await conn.fetch(_queries["stocks"])]
            merchants = [Merchant(**row) for row in await conn.fetch(_queries["merchants"])]
        return cls(
            {offer.stock_no: offer for offer in offers},
            {merchant.merchant_no: merchant for merchant in merchants},
            city["buckets"] if city else 1,
        )


class LiveCatalogue:
    """The catalogue of now; `current` is replaced, never changed."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.current = Catalogue({}, {}, 1)

    async def refresh(self) -> None:
        """Reads it again."""
        self.current = await Catalogue.read(self._pool)

    def kept_fresh(self) -> AbstractAsyncContextManager[None]:
        """Loads the catalogue, then keeps it fresh while the context is open."""
        return kept_fresh("catalogue", self.refresh, REFRESH_EVERY_S)
