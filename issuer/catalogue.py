"""What is on offer: rounds, stocks and packs as the issuer keeps them in memory."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Self

import msgspec

import sql
from kernel.clock import ends_at
from kernel.postgres import ACQUIRE_TIMEOUT_S, Connection, Pool

_queries = sql.load("issuer")


class Stock(msgspec.Struct, frozen=True, kw_only=True):
    """Vouchers of one round, partner and category; all alike. Times are aware UTC.

    state       DRAFT, AUDIT, SCHEDULED, PAUSED, ENDED or CLOSED
    issued      how many of `quantity` are in the books
    adjust_no   the last adjustment that `quantity` contains
    valid_days   a voucher ends with so many days from its claim on, if that is before valid_until; None: it does not
    """

    stock_no: int
    stock_id: str
    round_no: int
    partner_no: int
    group_no: int | None
    is_granted: bool
    state: str
    quantity: int
    issued: int
    adjust_no: int
    face_value_fen: int
    funded_fen: int
    transaction_minimum_fen: int
    valid_from: datetime
    valid_until: datetime
    valid_days: int | None = None

    def ends_at(self, claimed_at: datetime) -> datetime:
        """When a voucher that was claimed then is no longer good."""
        return ends_at(self.valid_until, self.valid_days, claimed_at)


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """One grab and its limits. Times are aware UTC.

    groups   group_no -> claims a person may make of the group, whoever the partner is
    stages   seconds after the opening -> share of each stock, in hundredths of a percent, that is out by then
    """

    round_no: int
    campaign_no: int
    opens_at: datetime
    closes_at: datetime
    per_person_and_partner_limit: int
    per_person_limit: int | None
    face_fen_per_person_max: int | None
    groups: Mapping[int, int] = {}
    stages: Sequence[tuple[int, int]] = ()


class Part(msgspec.Struct, frozen=True):
    """So many vouchers of a stock."""

    stock: Stock
    quantity: int


class Offered(msgspec.Struct, frozen=True, kw_only=True):
    """What can be claimed under one id: a voucher of a stock, or a pack of several.

    slot   its place among the offers of its round; what the store remembers of a win
    """

    offer_id: str
    slot: int
    round: Round
    partner_no: int
    group_no: int | None
    is_granted: bool
    pack_no: int | None
    parts: tuple[Part, ...]

    @property
    def face_value_fen(self) -> int:
        """Face of all its vouchers."""
        return sum(part.stock.face_value_fen * part.quantity for part in self.parts)

    @property
    def units(self) -> int:
        """How many vouchers it is."""
        return sum(part.quantity for part in self.parts)


class Catalogue(msgspec.Struct, frozen=True):
    """All that is on offer, found by the name partners use, and all stocks by our number."""

    offers: Mapping[str, Offered]
    stocks: Mapping[int, Stock]
    rounds: Mapping[int, Round]
    buckets: int
    shards: int

    @classmethod
    async def read(cls, pool: Pool) -> Self:
        """Reads it whole, as one state of the database; a campaign has a few hundred stocks."""
        async with (
            pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as conn,
            conn.transaction(isolation="repeatable_read", readonly=True),
        ):
            return await cls.read_in(conn)

    @classmethod
    async def read_in(cls, conn: Connection) -> Self:
        """The same, in a transaction that is open."""
        city = await conn.fetchrow(_queries["city"])
        rounds = {row["round_no"]: Round(**row) for row in await conn.fetch(_queries["rounds_on_offer"])}
        for row in await conn.fetch(_queries["limits_on_offer"]):
            groups = dict(zip(row["group_nos"], row["group_limits"], strict=True))
            stages = tuple(zip(row["stages_after_s"], row["stages_share_bp"], strict=True))
            rounds[row["round_no"]] = msgspec.structs.replace(rounds[row["round_no"]], groups=groups, stages=stages)
        stocks = {row["stock_no"]: Stock(**row) for row in await conn.fetch(_queries["stocks_on_offer"])}
        packs = await conn.fetch(_queries["packs_on_offer"])
        return cls(
            offers={offer.offer_id: offer for offer in _offers(rounds, stocks, packs)},
            stocks=stocks,
            rounds=rounds,
            buckets=city["buckets"] if city else 1,
            shards=city["shards"] if city else 1,
        )

    def stocks_of(self, round_no: int) -> list[Stock]:
        """The stocks of a round, by number."""
        return [stock for stock in self.stocks.values() if stock.round_no == round_no]

    def offers_of(self, round_no: int) -> list[Offered]:
        """The offers of a round, by slot."""
        offers = (offer for offer in self.offers.values() if offer.round.round_no == round_no)
        return sorted(offers, key=lambda offer: offer.slot)


def _offers(rounds: Mapping[int, Round], stocks: Mapping[int, Stock], packs: Iterable[Any]) -> Iterable[Offered]:
    """Slots follow from the numbers, stocks first, so that every worker deals them out alike."""
    slots: dict[int, int] = defaultdict(int)
    for _, stock in sorted(stocks.items()):
        yield _offer_of(stock, rounds[stock.round_no], slots[stock.round_no])
        slots[stock.round_no] += 1
    for row in sorted(packs, key=lambda row: row["pack_no"]):
        parts = zip(row["stock_nos"], row["quantities"], strict=True)
        yield Offered(
            offer_id=row["pack_id"],
            slot=slots[row["round_no"]],
            round=rounds[row["round_no"]],
            partner_no=row["partner_no"],
            group_no=row["group_no"],
            is_granted=row["is_granted"],
            pack_no=row["pack_no"],
            parts=tuple(Part(stocks[no], quantity) for no, quantity in parts),
        )
        slots[row["round_no"]] += 1


def _offer_of(stock: Stock, round_: Round, slot: int) -> Offered:
    return Offered(
        offer_id=stock.stock_id,
        slot=slot,
        round=round_,
        partner_no=stock.partner_no,
        group_no=stock.group_no,
        is_granted=stock.is_granted,
        pack_no=None,
        parts=(Part(stock, 1),),
    )
