"""What is on offer: rounds and stocks as the issuer keeps them in memory."""

from collections.abc import Mapping
from datetime import datetime
from typing import Self

import msgspec

import sql
from kernel.postgres import ACQUIRE_TIMEOUT_S, Pool

_queries = sql.load("issuer")


class Offered(msgspec.Struct, frozen=True, kw_only=True):
    """One stock with what a claim needs to know of its round. Times are aware UTC."""

    stock_no: int
    stock_id: str
    round_no: int
    campaign_no: int
    partner_no: int
    quantity: int
    face_value_fen: int
    funded_fen: int
    transaction_minimum_fen: int
    valid_from: datetime
    valid_until: datetime
    paused: bool
    opens_at: datetime
    closes_at: datetime
    per_person_and_partner_limit: int


class Catalogue(msgspec.Struct, frozen=True):
    """All stocks, found by the name partners use or by our number."""

    by_id: Mapping[str, Offered]
    by_no: Mapping[int, Offered]
    buckets: int
    shards: int

    @classmethod
    async def read(cls, pool: Pool) -> Self:
        """Reads it whole; a campaign has a few hundred stocks."""
        async with pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as conn:
            city = await conn.fetchrow(_queries["city"])
            rows = await conn.fetch(_queries["stocks_on_offer"])
        stocks = [Offered(**row) for row in rows]
        return cls(
            by_id={stock.stock_id: stock for stock in stocks},
            by_no={stock.stock_no: stock for stock in stocks},
            buckets=city["buckets"] if city else 1,
            shards=city["shards"] if city else 1,
        )

    def rounds(self) -> Mapping[int, list[Offered]]:
        """Stocks by round."""
        rounds: dict[int, list[Offered]] = {}
        for stock in self.by_no.values():
            rounds.setdefault(stock.round_no, []).append(stock)
        return rounds
