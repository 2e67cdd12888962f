"""What a test city is made of: campaigns, stocks and shops, at noon of a grab. Amounts are fen."""

from collections.abc import Mapping, Sequence
from datetime import datetime, time, timedelta
from hashlib import sha256

from issuer.campaign.model import (
    Campaign,
    Category,
    Funding,
    Group,
    Offer,
    Pack,
    PackItem,
    Partner,
    RefundPolicy,
    Round,
    Stage,
    Stock,
)
from kernel.clock import CITY_ZONE

NOON = datetime(2020, 4, 23, 12, tzinfo=CITY_ZONE)
FACE, MINIMUM, BILL = 2_000, 6_000, 7_500
PAID = BILL - FACE
FUNDED = {"RESTORE": 2_000, "RETURN_TO_BUDGET": 1_600}
"""What the fund pays for one voucher of each campaign: in the second, the shop bears a fifth."""
FEW = 3
MANY = 2_000


def a_stock(
    stock_id: str,
    partner_id: str = "wechat",
    category_id: str = "dining",
    quantity: int = 10,
    funded_fen: int | None = None,
    *,
    face_fen: int = FACE,
    group: str | None = None,
    granted: bool = False,
) -> Stock:
    """Vouchers of 20 yuan for bills from three times that on."""
    return Stock(
        stock_id=stock_id,
        partner_id=partner_id,
        category_id=category_id,
        quantity=quantity,
        face_value_fen=face_fen,
        transaction_minimum_fen=3 * face_fen,
        funded_fen=face_fen if funded_fen is None else funded_fen,
        group_id=group,
        is_granted=granted,
    )


def a_pack(
    pack_id: str,
    items: Mapping[str, int],
    partner_id: str = "wechat",
    *,
    group: str | None = None,
    granted: bool = False,
) -> Pack:
    """So many vouchers of each of a partner's stocks in one claim."""
    return Pack(
        pack_id=pack_id,
        partner_id=partner_id,
        items=tuple(PackItem(stock_id=stock_id, quantity=quantity) for stock_id, quantity in items.items()),
        group_id=group,
        is_granted=granted,
    )


def a_round(
    round_id: str,
    opens_at: datetime,
    *stocks: Stock,
    hours: float = 8,
    packs: Sequence[Pack] = (),
    stages: Sequence[tuple[int, int]] = (),
) -> Round:
    """A round that is open for some hours; its vouchers are good for seven days. Stages: seconds, share_bp."""
    return Round(
        round_id=round_id,
        opens_at=opens_at,
        closes_at=opens_at + timedelta(hours=hours),
        valid_until=opens_at + timedelta(days=7),
        budget_fen=sum(stock.exposure_fen for stock in stocks),
        stocks=stocks,
        packs=tuple(packs),
        stages=tuple(Stage(after_s=after_s, share_bp=share_bp) for after_s, share_bp in stages),
    )


def a_campaign(
    campaign_id: str,
    *rounds: Round,
    policy: str = "RESTORE",
    shop_bp: int = 0,
    limit: int = 1,
    limit_at_all: int | None = None,
    face_limit_fen: int | None = None,
    groups: Mapping[str, int] | None = None,
) -> Campaign:
    """A campaign whose fund pays for all of its vouchers. Limits are a person's: claims at one partner in a
    round, at all partners, face in the campaign, claims out of a group by its id."""
    return Campaign(
        campaign_id=campaign_id,
        title_zh="试点",
        title_en="Trial",
        zone="Asia/Shanghai",
        fund_fen=sum(each.budget_fen for each in rounds),
        rollover=True,
        expected_redemption_bp=None,
        opening_time=time(12),
        partners=tuple(Partner(partner_id=name, name_zh=name, name_en=name) for name in ("wechat", "alipay")),
        categories=tuple(Category(category_id=name, name_zh=name, name_en=name) for name in ("dining", "mall")),
        funding=Funding(city_bp=10_000 - shop_bp, platform_bp=0, merchant_bp=shop_bp),
        per_person_round_and_partner=limit,
        per_person_and_round=limit_at_all,
        face_per_person_fen=face_limit_fen,
        groups=tuple(Group(group_id=group_id, per_person=most) for group_id, most in (groups or {}).items()),
        offer=Offer(minimum_spend_times=3, vouchers_per_payment=1, refund_policy=RefundPolicy(policy)),
        rounds=rounds,
    )


RESTORING = a_campaign(
    "restoring",
    a_round("past", NOON - timedelta(days=7), a_stock("past")),
    a_round(
        "now",
        NOON,
        a_stock("dining", quantity=MANY),
        a_stock("mall", category_id="mall", quantity=MANY),
        a_stock("few_left", quantity=FEW),
        a_stock("paused"),
        a_stock("alipay_dining", "alipay", quantity=MANY),
    ),
    a_round("yesterday", NOON - timedelta(days=1), a_stock("yesterday")),
    a_round("tomorrow", NOON + timedelta(days=1), a_stock("tomorrow")),
    a_round("soon", NOON + timedelta(minutes=5), a_stock("soon")),
)
RETURNING = a_campaign(
    "returning",
    a_round("once", NOON, a_stock("returning", quantity=MANY, funded_fen=1_600)),
    policy="RETURN_TO_BUDGET",
    shop_bp=2_000,
    limit=2,
)
SHOPS = {"NOODLES": "dining", "DUMPLINGS": "dining", "HOTPOT": "dining", "EMPORIUM": "mall", "BANNED": "dining"}


def person(number: int) -> str:
    """The token of the n-th citizen."""
    return sha256(b"citizen %d" % number).hexdigest()[:32]
