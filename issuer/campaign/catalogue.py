"""What was loaded, read back: every round and stock of the installation."""

from collections.abc import Mapping
from datetime import datetime

import msgspec

import sql
from kernel.postgres import Connection

_queries = sql.load("campaign")


class LoadedRound(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the table round. Times aware UTC."""

    round_no: int
    round_id: str
    campaign_no: int
    campaign_id: str
    opens_at: datetime
    closes_at: datetime
    budget_fen: int
    per_person_and_partner_limit: int


class LoadedStock(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the table stock, with the partner's id. Times aware UTC; `state` as it was last moved."""

    stock_no: int
    stock_id: str
    round_no: int
    partner_no: int
    partner_id: str
    category: str
    quantity: int
    face_value_fen: int
    transaction_minimum_fen: int
    city_bp: int
    platform_bp: int
    merchant_bp: int
    funded_fen: int
    valid_from: datetime
    valid_until: datetime
    refund_policy: str
    state: str


class CampaignCatalogue(msgspec.Struct, frozen=True):
    """Rounds by number, in order of opening; stocks by their id."""

    rounds: Mapping[int, LoadedRound]
    stocks: Mapping[str, LoadedStock]

    def stocks_of(self, round_no: int) -> list[LoadedStock]:
        """The stocks of a round."""
        return [stock for stock in self.stocks.values() if stock.round_no == round_no]


async def read_catalogue(conn: Connection) -> CampaignCatalogue:
    """Reads it whole, as one state of the database."""
    async with conn.transaction(isolation="repeatable_read", readonly=True):
        rounds = [LoadedRound(**row) for row in await conn.fetch(_queries["all_rounds"])]
        stocks = [LoadedStock(**row) for row in await conn.fetch(_queries["all_stocks"])]
    return CampaignCatalogue(
        rounds={each.round_no: each for each in rounds}, stocks={stock.stock_id: stock for stock in stocks}
    )
