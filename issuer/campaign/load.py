"""Brings a checked campaign into the database: once, whole or not at all."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum

import msgspec

import sql
from issuer.campaign.model import Campaign, Round
from issuer.campaign.parse import ROUNDS_MAX
from kernel.errors import Broken
from kernel.postgres import Connection

_queries = sql.load("campaign")


class LoadRefusal(StrEnum):
    """Why a campaign was not loaded. Nothing was written then."""

    ALREADY_LOADED = "ALREADY_LOADED"
    NO_ROUND_NUMBERS = "NO_ROUND_NUMBERS"


class NotLoaded(msgspec.Struct, frozen=True):
    """A campaign that was refused, and why in plain words."""

    reason: LoadRefusal
    detail: str


class LoadedCampaign(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers that a campaign got: its own, rounds by their id, stocks by theirs."""

    campaign_no: int
    campaign_id: str
    round_nos: Mapping[str, int]
    stock_nos: Mapping[str, int]


class City(msgspec.Struct, frozen=True):
    """Constants of an installation."""

    buckets: int
    shards: int


async def load_city(conn: Connection, buckets: int, shards: int) -> City:
    """Writes the constants of the installation if there are none, and returns those in force.

    They never change, because every person's bucket follows from them: compare the answer with
    what was asked for. Runs as hanquan_operator.
    """
    await conn.execute(_queries["insert_city"], buckets, shards)
    row = await conn.fetchrow(_queries["city"])
    if row is None:
        raise Broken("the city's constants were written, and are not there")
    return City(row["buckets"], row["shards"])


async def load(conn: Connection, campaign: Campaign, document: str, *, now: datetime) -> LoadedCampaign | NotLoaded:
    """Writes partners, campaign, rounds and stocks, opens the rounds' storage and books the fund.

    One transaction, as hanquan_operator; two loads at once take turns. `document` is the file the
    campaign was read from. Partners that are known are reused; rounds take the next free numbers.
    """
    async with conn.transaction():
        await conn.execute(_queries["lock_loading"])
        highest = await conn.fetchval(_queries["highest_round_no"])
        if (refusal := await _refusal(conn, campaign, highest)) is not None:
            return refusal
        round_nos = {each.round_id: no for no, each in enumerate(campaign.rounds, start=highest + 1)}
        await _insert_partners(conn, campaign)
        campaign_no = await conn.fetchval(
            _queries["insert_campaign"],
            campaign.campaign_id,
            campaign.title_zh,
            campaign.title_en,
            campaign.fund_fen,
            document,
            now,
        )
        await _insert_rounds(conn, campaign, campaign_no, round_nos)
        stock_nos: dict[str, int] = {}
        for each in campaign.rounds:
            stock_nos |= await _insert_stocks(conn, campaign, each, round_nos[each.round_id])
        await conn.execute(_queries["open_round_storage"], list(round_nos.values()))
        await conn.execute(_queries["fund"], campaign_no, campaign.fund_fen, f"fund {campaign.campaign_id}", now)
    return LoadedCampaign(
        campaign_no=campaign_no, campaign_id=campaign.campaign_id, round_nos=round_nos, stock_nos=stock_nos
    )


async def _refusal(conn: Connection, campaign: Campaign, highest_round_no: int) -> NotLoaded | None:
    if await conn.fetchval(_queries["is_loaded"], campaign.campaign_id):
        words = f"{campaign.campaign_id} was loaded before, and what was published never changes; take a new id"
        return NotLoaded(LoadRefusal.ALREADY_LOADED, words)
    if highest_round_no + len(campaign.rounds) > ROUNDS_MAX:
        words = f"{len(campaign.rounds)} rounds are asked for, and {ROUNDS_MAX - highest_round_no} numbers are left"
        return NotLoaded(LoadRefusal.NO_ROUND_NUMBERS, f"{words} of the {ROUNDS_MAX} of an installation")
    return None


async def _insert_partners(conn: Connection, campaign: Campaign) -> None:
    await conn.execute(
        _queries["insert_partners"],
        [partner.partner_id for partner in campaign.partners],
        [partner.name_zh for partner in campaign.partners],
        [partner.name_en for partner in campaign.partners],
    )


async def _insert_rounds(conn: Connection, campaign: Campaign, campaign_no: int, round_nos: Mapping[str, int]) -> None:
    await conn.execute(
        _queries["insert_rounds"],
        campaign_no,
        campaign.per_person_round_and_partner,
        [round_nos[each.round_id] for each in campaign.rounds],
        [each.round_id for each in campaign.rounds],
        [each.opens_at for each in campaign.rounds],
        [each.closes_at for each in campaign.rounds],
        [each.budget_fen for each in campaign.rounds],
    )


async def _insert_stocks(conn: Connection, campaign: Campaign, each: Round, round_no: int) -> dict[str, int]:
    rows = await conn.fetch(
        _queries["insert_stocks"],
        round_no,
        each.opens_at,
        each.valid_until,
        campaign.funding.city_bp,
        campaign.funding.platform_bp,
        campaign.funding.merchant_bp,
        campaign.offer.refund_policy,
        [stock.stock_id for stock in each.stocks],
        [stock.partner_id for stock in each.stocks],
        [stock.category_id for stock in each.stocks],
        [stock.quantity for stock in each.stocks],
        [stock.face_value_fen for stock in each.stocks],
        [stock.transaction_minimum_fen for stock in each.stocks],
        [stock.funded_fen for stock in each.stocks],
    )
    return {row["stock_id"]: row["stock_no"] for row in rows}
