"""From the YAML tree of a campaign file to a campaign.

Reading goes on after a complaint, so that one run shows them all. What cannot be read is replaced
by a stand-in on which no rule of check.py complains, or left out of its list; a campaign with
stand-ins never leaves this package, because its complaints go with it.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, time
from typing import TypeAlias

import msgspec

from issuer.campaign import extras, kinds, till
from issuer.campaign.apportion import apportion
from issuer.campaign.complaints import Code, Complaint, Complaints
from issuer.campaign.extras import LIMIT_MAX, Groups, PackLine, Packs, Plan
from issuer.campaign.kinds import CATEGORY_ID, PARTNER_ID, format_percent, ident, whole
from issuer.campaign.model import (
    Campaign,
    Category,
    Funding,
    Offer,
    Pack,
    PackItem,
    Partner,
    Round,
    Stock,
    stock_id_of,
)
from issuer.campaign.source import read_tree
from issuer.campaign.table import Table, Written
from issuer.campaign.till import Caps, Scopes, Validity
from kernel.ids import ROUND_BITS
from kernel.money import BP_WHOLE, FUND_FEN_MAX

ROUNDS_MAX = (1 << ROUND_BITS) - 1
"""A voucher's number has ten bits for its round; round 0 is left out."""
PARTNERS_MAX = 32
CATEGORIES_MAX = 32
STOCKS_MAX = 20_000
"""Stocks of all rounds together. The issuer keeps every stock in memory."""
QUANTITY_MAX = 100_000_000
CLAIMS_PER_S_MAX = 1_000_000

CAMPAIGN_ID = ident("[a-z0-9-]{3,40}", "3 to 40 small letters, digits and hyphens", "wuhan-2020")
ROUND_ID = ident("[A-Za-z0-9-]{1,16}", "1 to 16 letters, digits and hyphens", "r01")

_TOP = (
    *("id", "title", "zone", "fund", "rollover", "expected_redemption", "opening_time", "partners"),
    *("categories", "funding", "limits", "redeem_caps", "groups", "scopes", "offer", "validity"),
    *("stocks", "packs", "release", "rounds"),
)
_ROUND = ("id", "opens", "closes", "valid_until", "budget", "scale", "stocks", "packs", "release")
_STOCK = ("partner", "category", "face", "quantity", "minimum", "group", "granted", "scope")
_LIMITS = ("per_person_round_and_partner", "per_person_and_round", "face_per_person")


class StockLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a list of stocks as written. `minimum_fen` is None where the offer's rule holds."""

    partner_id: str
    category_id: str
    face_value_fen: int
    quantity: int
    minimum_fen: int | None
    group_id: str | None
    is_granted: bool
    scope_id: str | None


Lines: TypeAlias = Sequence[Written[StockLine]]


class Parsed(msgspec.Struct, frozen=True, kw_only=True):
    """A file as far as it could be read, with the places where things stand.

    stock_lists   the template first, then what single rounds write
    plans         how stocks are released: the campaign's plan, if it has one, then what single rounds write
    """

    campaign: Campaign
    complaints: tuple[Complaint, ...]
    top: Table
    limits: Table | None
    partners: tuple[Written[Partner], ...]
    categories: tuple[Written[Category], ...]
    groups: Groups
    scopes: Scopes
    caps: Caps
    stock_lists: tuple[Lines, ...]
    packs: Packs
    plans: tuple[Plan, ...]
    rounds: tuple[Written[Round], ...]


class _Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What the campaign says about every round."""

    campaign_id: str
    funding: Funding
    offer: Offer
    validity: Validity
    template: Lines
    packs: Packs
    plan: Plan | None


def parse(data: bytes) -> Parsed | tuple[Complaint, ...]:
    """Reads a file. Complaints alone come back when it has no fields that could be read."""
    complaints = Complaints()
    tree = read_tree(data, complaints)
    if tree is None:
        return complaints.in_order()
    top = Table(tree, path="", what="the campaign", known=_TOP, complaints=complaints)
    return _read_campaign(top)


def _read_campaign(top: Table) -> Parsed:
    partners = tuple(_partners(top))
    categories = tuple(_categories(top))
    groups = tuple(extras.groups(top))
    scopes = tuple(till.scopes(top))
    caps = tuple(till.redeem_caps(top))
    limits = top.table("limits", what="limits", known=_LIMITS)
    rules = _rules(top)
    rounds, lists, plans = _rounds(top, rules)
    title_zh, title_en = _names(top, "title")
    campaign = Campaign(
        campaign_id=rules.campaign_id,
        title_zh=title_zh,
        title_en=title_en,
        zone=top.read("zone", kinds.ZONE_NAME) or kinds.ZONE,
        fund_fen=top.read("fund", kinds.FUND_FEN) or FUND_FEN_MAX,
        rollover=top.read("rollover", kinds.FLAG) or False,
        expected_redemption_bp=top.read("expected_redemption", kinds.PERCENT_BP, required=False),
        opening_time=top.read("opening_time", kinds.TIME_OF_DAY) or time(12),
        partners=tuple(each.value for each in partners),
        categories=tuple(each.value for each in categories),
        funding=rules.funding,
        per_person_round_and_partner=(limits.read(_LIMITS[0], whole(1, 9)) if limits else None) or 1,
        per_person_and_round=limits.read(_LIMITS[1], whole(1, LIMIT_MAX), required=False) if limits else None,
        face_per_person_fen=limits.read(_LIMITS[2], kinds.AMOUNT_FEN, required=False) if limits else None,
        groups=tuple(each.value for each in groups),
        scopes=tuple(each.value for each in scopes),
        redeem_caps=tuple(each.value for each in caps),
        offer=rules.offer,
        rounds=tuple(each.value for each in rounds),
    )
    return Parsed(
        campaign=campaign,
        complaints=top.complaints.in_order(),
        top=top,
        limits=limits,
        partners=partners,
        categories=categories,
        groups=groups,
        scopes=scopes,
        caps=caps,
        stock_lists=(rules.template, *lists),
        packs=rules.packs,
        plans=(*((rules.plan,) if rules.plan else ()), *plans),
        rounds=tuple(rounds),
    )


# ---------------------------------------------------------------- what holds for all rounds


def _names(table: Table, key: str) -> tuple[str, str]:
    names = table.table(key, what=key, known=("zh", "en"))
    if names is None:
        return "", ""
    return names.read("zh", kinds.TITLE) or "", names.read("en", kinds.TITLE) or ""


def _partners(top: Table) -> Iterable[Written[Partner]]:
    for row in top.rows("partners", what="partner", known=("id", "name", "claims_per_second"), most=PARTNERS_MAX):
        partner_id = row.read("id", PARTNER_ID)
        name_zh, name_en = _names(row, "name")
        most = row.read("claims_per_second", whole(1, CLAIMS_PER_S_MAX), required=False)
        if partner_id is not None:
            yield Written(Partner(partner_id=partner_id, name_zh=name_zh, name_en=name_en, claims_per_s_max=most), row)


def _categories(top: Table) -> Iterable[Written[Category]]:
    for row in top.rows("categories", what="category", known=("id", "name"), most=CATEGORIES_MAX):
        category_id = row.read("id", CATEGORY_ID)
        name_zh, name_en = _names(row, "name")
        if category_id is not None:
            yield Written(Category(category_id=category_id, name_zh=name_zh, name_en=name_en), row)


def _rules(top: Table) -> _Rules:
    return _Rules(
        campaign_id=top.read("id", CAMPAIGN_ID) or "campaign",
        funding=_funding(top),
        offer=till.offer(top),
        validity=till.validity(top),
        template=_stock_lines(top, least=1),
        packs=tuple(extras.packs(top)),
        plan=extras.plan(top),
    )


def _funding(top: Table) -> Funding:
    all_city = Funding(city_bp=BP_WHOLE, platform_bp=0, merchant_bp=0)
    table = top.table("funding", what="funding", known=("city", "platform", "merchant"))
    if table is None:
        return all_city
    city, platform, merchant = (table.read(who, kinds.PERCENT_BP) for who in ("city", "platform", "merchant"))
    if city is None or platform is None or merchant is None:
        return all_city
    if city + platform + merchant != BP_WHOLE:
        shares = " + ".join(format_percent(share) for share in (city, platform, merchant))
        words = f"the shares must add up to 100: {shares} is {format_percent(city + platform + merchant)}"
        top.complain(Code.FUNDING_NOT_WHOLE, "funding", words)
        return all_city
    return Funding(city_bp=city, platform_bp=platform, merchant_bp=merchant)


# ---------------------------------------------------------------- stocks and rounds


def _stock_lines(table: Table, *, least: int, required: bool = True) -> Lines:
    rows = table.rows("stocks", what="stock", known=_STOCK, most=PARTNERS_MAX * CATEGORIES_MAX, required=required)
    return [line for row in rows if (line := _stock_line(row, least)) is not None]


def _stock_line(row: Table, least: int) -> Written[StockLine] | None:
    partner_id = row.read("partner", PARTNER_ID)
    category_id = row.read("category", CATEGORY_ID)
    face_value_fen = row.read("face", kinds.AMOUNT_FEN)
    quantity = row.read("quantity", whole(least, QUANTITY_MAX))
    minimum_fen = row.read("minimum", kinds.AMOUNT_FEN, required=False)
    group_id, is_granted = extras.membership(row)
    scope_id = row.read("scope", extras.SHORT_ID, required=False)
    if partner_id is None or category_id is None or face_value_fen is None or quantity is None:
        return None
    line = StockLine(
        partner_id=partner_id,
        category_id=category_id,
        face_value_fen=face_value_fen,
        quantity=quantity,
        minimum_fen=minimum_fen,
        group_id=group_id,
        is_granted=is_granted,
        scope_id=scope_id,
    )
    return Written(line, row)


def _rounds(top: Table, rules: _Rules) -> tuple[list[Written[Round]], list[Lines], list[Plan]]:
    rounds: list[Written[Round]] = []
    lists: list[Lines] = []
    plans: list[Plan] = []
    rows = top.rows("rounds", what="round", known=_ROUND, most=ROUNDS_MAX)
    if len(rows) * (len(rules.template) + len(rules.packs)) > STOCKS_MAX:
        what = f"{len(rules.template)} stocks" + (f" and {len(rules.packs)} packs" if rules.packs else "")
        top.complain(
            Code.TOO_MANY, "rounds", f"{len(rows)} rounds of {what} are more than {STOCKS_MAX:,} stocks in all"
        )
        rules = msgspec.structs.replace(rules, template=rules.template[:1], packs=())
    for row in rows:
        own = _stock_lines(row, least=0, required=False) if row.has("stocks") else []
        plan = extras.plan(row)
        lists.append(own)
        plans += [plan] if plan else []
        if (each := _round(row, rules, own, plan or rules.plan)) is not None:
            rounds.append(Written(each, row))
    return rounds, lists, plans


def _round(row: Table, rules: _Rules, own: Lines, plan: Plan | None) -> Round | None:
    round_id = row.read("id", ROUND_ID) or row.spot.path
    scale = row.read("scale", whole(1, 1_000), required=False)
    opens_at = row.read("opens", kinds.MOMENT)
    closes_at = row.read("closes", kinds.LAST_MOMENT)
    budget_fen = row.read("budget", kinds.FUND_FEN)
    valid_until = row.read("valid_until", kinds.LAST_MOMENT, required=False)
    if opens_at is None or closes_at is None:
        return None
    stocks = _stocks(rules, round_id, scale or 100, own)
    has_packs = row.read("packs", kinds.FLAG, required=False) is not False
    return Round(
        round_id=round_id,
        opens_at=opens_at,
        closes_at=closes_at,
        valid_until=valid_until or _valid_until(row, rules, opens_at, closes_at),
        budget_fen=budget_fen or max(1, sum(stock.exposure_fen for stock in stocks)),
        stocks=stocks,
        packs=tuple(_pack(rules, round_id, each.value) for each in rules.packs if has_packs),
        stages=plan.values if plan else (),
        valid_days=rules.validity.days_claimed,
    )


def _pack(rules: _Rules, round_id: str, line: PackLine) -> Pack:
    def stock_id(category_id: str) -> str:
        return stock_id_of(rules.campaign_id, round_id, line.partner_id, category_id)

    items = (PackItem(stock_id=stock_id(each.value.category_id), quantity=each.value.quantity) for each in line.items)
    return Pack(
        pack_id=stock_id(line.pack_id),
        partner_id=line.partner_id,
        items=tuple(items),
        group_id=line.group_id,
        is_granted=line.is_granted,
    )


def _valid_until(row: Table, rules: _Rules, opens_at: datetime, closes_at: datetime) -> datetime:
    if row.has("valid_until"):
        return closes_at
    if (ends_at := rules.validity.ends(opens_at, closes_at)) is not None:
        return ends_at
    words = "neither this round nor the campaign says how long vouchers are good; write valid_until: 2020-04-29 here"
    row.complain(Code.MISSING_FIELD, "valid_until", f"{words}, or validity: {{days: 7}} for all rounds")
    return closes_at


def _stocks(rules: _Rules, round_id: str, scale_percent: int, own: Lines) -> tuple[Stock, ...]:
    """The template's stocks at the round's scale; a line of the round's own replaces its like, or takes it out."""
    template = [each.value for each in rules.template]
    total = max(len(template), (sum(line.quantity for line in template) * scale_percent + 50) // 100)
    quantities = apportion(total, [line.quantity for line in template])
    lines = {(line.partner_id, line.category_id): (line, n) for line, n in zip(template, quantities, strict=True)}
    for written in own:
        lines[written.value.partner_id, written.value.category_id] = (written.value, written.value.quantity)
    return tuple(_stock(rules, round_id, line, quantity) for line, quantity in lines.values() if quantity > 0)


def _stock(rules: _Rules, round_id: str, line: StockLine, quantity: int) -> Stock:
    return Stock(
        stock_id=stock_id_of(rules.campaign_id, round_id, line.partner_id, line.category_id),
        partner_id=line.partner_id,
        category_id=line.category_id,
        quantity=quantity,
        face_value_fen=line.face_value_fen,
        transaction_minimum_fen=line.minimum_fen or line.face_value_fen * rules.offer.minimum_spend_times,
        funded_fen=rules.funding.funded_fen(line.face_value_fen),
        group_id=line.group_id,
        is_granted=line.is_granted,
        scope_id=line.scope_id,
    )
