"""What a test city is made of: campaigns, stocks and shops, at noon of a grab. Amounts are fen."""

from datetime import datetime, time, timedelta
from hashlib import sha256

from issuer.campaign.model import Campaign, Category, Funding, Offer, Partner, RefundPolicy, Round, Stock
from kernel.clock import CITY_ZONE

NOON = datetime(2020, 4, 23, 12, tzinfo=CITY_ZONE)
FACE, MINIMUM, BILL = 2_000, 6_000, 7_500
PAID = BILL - FACE
FUNDED = {"RESTORE": 2_000, "RETURN_TO_BUDGET": 1_600}
"""What the fund pays for one voucher of each campaign: in the second, the shop bears a fifth."""
FEW = 3
MANY = 2_000


def a_stock(
    stock_id: str, partner_id: str = "wechat", category_id: str = "dining", quantity: int = 10, funded_fen: int = FACE
) -> Stock:
    """Vouchers of 20 yuan for bills from 60 yuan on."""
    return Stock(
        stock_id=stock_id,
        partner_id=partner_id,
        category_id=category_id,
        quantity=quantity,
        face_value_fen=FACE,
        transaction_minimum_fen=MINIMUM,
        funded_fen=funded_fen,
    )


def a_round(round_id: str, opens_at: datetime, *stocks: Stock, hours: float = 8) -> Round:
    """A round that is open for some hours; its vouchers are good for seven days."""
    return Round(
        round_id=round_id,
        opens_at=opens_at,
        closes_at=opens_at + timedelta(hours=hours),
        valid_until=opens_at + timedelta(days=7),
        budget_fen=sum(stock.exposure_fen for stock in stocks),
        stocks=stocks,
    )


def a_campaign(campaign_id: str, *rounds: Round, policy: str = "RESTORE", shop_bp: int = 0, limit: int = 1) -> Campaign:
    """A campaign whose fund pays for all of its vouchers."""
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
