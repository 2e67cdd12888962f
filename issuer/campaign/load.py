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
    UNKNOWN_MERCHANTS = "UNKNOWN_MERCHANTS"


class NotLoaded(msgspec.Struct, frozen=True):
    """A campaign that was refused, and why in plain words."""

    reason: LoadRefusal
    detail: str


class LoadedCampaign(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers that a campaign got: its own, and those of rounds, stocks and packs by their ids."""

    campaign_no: int
    campaign_id: str
    round_nos: Mapping[str, int]
    stock_nos: Mapping[str, int]
    pack_nos: Mapping[str, int]


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


async def load(
    conn: Connection, campaign: Campaign, document: str, *, now: datetime, state: str = "SCHEDULED"
) -> LoadedCampaign | NotLoaded:
    """Writes partners and all that the campaign says, opens the rounds' storage, books the fund.

    One transaction, as hanquan_operator; two loads at once take turns. `document` is the file the
    campaign was read from, `state` what its stocks start in (stock_state in schema.sql). Partners that
    are known are reused; rounds take the next free numbers.
    """
    async with conn.transaction():
        await conn.execute(_queries["lock_loading"])
        highest = await conn.fetchval(_queries["highest_round_no"])
        merchant_nos = await _merchant_nos(conn, campaign)
        if (refusal := await _refusal(conn, campaign, highest, merchant_nos)) is not None:
            return refusal
        round_nos = {each.round_id: no for no, each in enumerate(campaign.rounds, start=highest + 1)}
        await _insert_partners(conn, campaign)
        campaign_no = await _insert_campaign(conn, campaign, document, now)
        await _insert_rounds(conn, campaign, campaign_no, round_nos)
        stock_nos: dict[str, int] = {}
        pack_nos: dict[str, int] = {}
        for each in campaign.rounds:
            stock_nos |= await _insert_stocks(conn, campaign, each, round_nos[each.round_id], state)
            await _insert_scopes(conn, campaign, each, stock_nos, merchant_nos)
            pack_nos |= await _insert_packs(conn, each, round_nos[each.round_id], stock_nos)
        await conn.execute(_queries["open_round_storage"], list(round_nos.values()))
        await conn.execute(_queries["fund"], campaign_no, campaign.fund_fen, f"fund {campaign.campaign_id}", now)
    return LoadedCampaign(
        campaign_no=campaign_no,
        campaign_id=campaign.campaign_id,
        round_nos=round_nos,
        stock_nos=stock_nos,
        pack_nos=pack_nos,
    )


async def _merchant_nos(conn: Connection, campaign: Campaign) -> dict[str, int]:
    """Numbers of the merchants that scopes name, of those that are enrolled."""
    named = [merchant_id for scope in campaign.scopes for merchant_id in scope.merchant_ids]
    rows = await conn.fetch(_queries["merchant_nos"], named) if named else []
    return {row["merchant_id"]: row["merchant_no"] for row in rows}


async def _refusal(
    conn: Connection, campaign: Campaign, highest_round_no: int, merchant_nos: Mapping[str, int]
) -> NotLoaded | None:
    if await conn.fetchval(_queries["is_loaded"], campaign.campaign_id):
        words = f"{campaign.campaign_id} was loaded before, and what was published never changes; take a new id"
        return NotLoaded(LoadRefusal.ALREADY_LOADED, words)
    if highest_round_no + len(campaign.rounds) > ROUNDS_MAX:
        words = f"{len(campaign.rounds)} rounds are asked for, and {ROUNDS_MAX - highest_round_no} numbers are left"
        return NotLoaded(LoadRefusal.NO_ROUND_NUMBERS, f"{words} of the {ROUNDS_MAX} of an installation")
    named = {merchant_id: scope.scope_id for scope in campaign.scopes for merchant_id in scope.merchant_ids}
    if unknown := [merchant_id for merchant_id in named if merchant_id not in merchant_nos]:
        words = f"scope {named[unknown[0]]} names {unknown[0]}, and no such merchant is enrolled; enrol it first"
        more = f" ({len(unknown)} merchants in all)" if len(unknown) > 1 else ""
        return NotLoaded(LoadRefusal.UNKNOWN_MERCHANTS, words + more)
    return None


async def _insert_partners(conn: Connection, campaign: Campaign) -> None:
    await conn.execute(
        _queries["insert_partners"],
        [partner.partner_id for partner in campaign.partners],
        [partner.name_zh for partner in campaign.partners],
        [partner.name_en for partner in campaign.partners],
        [partner.claims_per_s_max for partner in campaign.partners],
    )


async def _insert_campaign(conn: Connection, campaign: Campaign, document: str, now: datetime) -> int:
    campaign_no: int = await conn.fetchval(
        _queries["insert_campaign"],
        campaign.campaign_id,
        campaign.title_zh,
        campaign.title_en,
        campaign.fund_fen,
        document,
        now,
        campaign.face_per_person_fen,
    )
    await conn.execute(
        _queries["insert_category_names"],
        campaign_no,
        [category.category_id for category in campaign.categories],
        [category.name_zh for category in campaign.categories],
        [category.name_en for category in campaign.categories],
    )
    await conn.execute(
        _queries["insert_redeem_caps"],
        campaign_no,
        [cap.period for cap in campaign.redeem_caps],
        [cap.is_per_partner for cap in campaign.redeem_caps],
        [cap.face_fen_max for cap in campaign.redeem_caps],
    )
    return campaign_no


async def _insert_rounds(conn: Connection, campaign: Campaign, campaign_no: int, round_nos: Mapping[str, int]) -> None:
    await conn.execute(
        _queries["insert_rounds"],
        campaign_no,
        campaign.per_person_round_and_partner,
        campaign.per_person_and_round,
        [round_nos[each.round_id] for each in campaign.rounds],
        [each.round_id for each in campaign.rounds],
        [each.opens_at for each in campaign.rounds],
        [each.closes_at for each in campaign.rounds],
        [each.budget_fen for each in campaign.rounds],
    )
    await conn.execute(
        _queries["insert_groups"],
        list(round_nos.values()),
        [group.group_id for group in campaign.groups],
        [group.per_person for group in campaign.groups],
    )
    stages = [(round_nos[each.round_id], stage) for each in campaign.rounds for stage in each.stages]
    await conn.execute(
        _queries["insert_stages"],
        [round_no for round_no, _ in stages],
        [stage.after_s for _, stage in stages],
        [stage.share_bp for _, stage in stages],
    )


async def _insert_stocks(
    conn: Connection, campaign: Campaign, each: Round, round_no: int, state: str
) -> dict[str, int]:
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
        [stock.group_id for stock in each.stocks],
        [stock.is_granted for stock in each.stocks],
        state,
        each.valid_days,
        list(campaign.offer.stacks_with),
        campaign.offer.till_code,
    )
    return {row["stock_id"]: row["stock_no"] for row in rows}


async def _insert_scopes(
    conn: Connection, campaign: Campaign, each: Round, stock_nos: Mapping[str, int], merchant_nos: Mapping[str, int]
) -> None:
    scopes = {scope.scope_id: scope for scope in campaign.scopes}
    scoped = [
        (stock_nos[stock.stock_id], scopes[stock.scope_id]) for stock in each.stocks if stock.scope_id is not None
    ]
    districts = [(stock_no, district) for stock_no, scope in scoped for district in scope.districts]
    merchants = [(stock_no, merchant_nos[name]) for stock_no, scope in scoped for name in scope.merchant_ids]
    await conn.execute(_queries["insert_stock_districts"], [no for no, _ in districts], [name for _, name in districts])
    await conn.execute(_queries["insert_stock_merchants"], [no for no, _ in merchants], [no for _, no in merchants])


async def _insert_packs(conn: Connection, each: Round, round_no: int, stock_nos: Mapping[str, int]) -> dict[str, int]:
    rows = await conn.fetch(
        _queries["insert_packs"],
        round_no,
        [pack.pack_id for pack in each.packs],
        [pack.partner_id for pack in each.packs],
        [pack.group_id for pack in each.packs],
        [pack.is_granted for pack in each.packs],
    )
    pack_nos = {row["pack_id"]: row["pack_no"] for row in rows}
    items = [(pack_nos[pack.pack_id], item) for pack in each.packs for item in pack.items]
    await conn.execute(
        _queries["insert_pack_items"],
        [pack_no for pack_no, _ in items],
        [stock_nos[item.stock_id] for _, item in items],
        [item.quantity for _, item in items],
    )
    return pack_nos
