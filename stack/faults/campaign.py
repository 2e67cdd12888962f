"""The campaign that is claimed while the stack is broken: one large stock, and small ones that run out."""

from datetime import datetime, time, timedelta

from issuer.campaign.model import Campaign, Category, Funding, Offer, Partner, RefundPolicy, Round, Stock, stock_id_of
from kernel.clock import CITY_ZONE
from kernel.money import BP_WHOLE

CAMPAIGN, ROUND, PARTNER = "faults", "R01", "wechat"
FACE_FEN = 2_000
LARGE, SMALL = 2_000_000, 40
SMALL_STOCKS_MAX = 64


def make_campaign(opens_at: datetime, rounds: int, small: int = SMALL) -> Campaign:
    """Open for a day. `rounds` of faults share the large stock, and each has one of `small` vouchers."""
    opens_at = opens_at.astimezone(CITY_ZONE)
    closes_at = opens_at + timedelta(days=1)
    stocks = tuple(_stock(name, quantity) for name, quantity in _quantities(rounds, small))
    fund_fen = sum(stock.exposure_fen for stock in stocks)
    return Campaign(
        campaign_id=CAMPAIGN,
        title_zh="故障演练",
        title_en="Fault drill",
        zone="Asia/Shanghai",
        fund_fen=fund_fen,
        rollover=False,
        expected_redemption_bp=None,
        opening_time=time(opens_at.hour, opens_at.minute),
        partners=(Partner(partner_id=PARTNER, name_zh="微信", name_en="WeChat"),),
        categories=(Category(category_id="dining", name_zh="餐饮", name_en="Dining"),),
        funding=Funding(city_bp=BP_WHOLE, platform_bp=0, merchant_bp=0),
        per_person_round_and_partner=1,
        offer=Offer(minimum_spend_times=3, vouchers_per_payment=1, refund_policy=RefundPolicy("RESTORE")),
        rounds=(
            Round(
                round_id=ROUND,
                opens_at=opens_at,
                closes_at=closes_at,
                valid_until=closes_at,
                budget_fen=fund_fen,
                stocks=stocks,
            ),
        ),
    )


def stocks_of(turn: int) -> tuple[str, str]:
    """What people want in a round of faults: the large stock, and a small one."""
    return _stock_id("large"), _stock_id(f"small{turn % SMALL_STOCKS_MAX}")


def _quantities(rounds: int, small: int) -> list[tuple[str, int]]:
    return [("large", LARGE), *((f"small{turn}", small) for turn in range(min(rounds, SMALL_STOCKS_MAX)))]


def _stock_id(name: str) -> str:
    return stock_id_of(CAMPAIGN, ROUND, PARTNER, name)


def _stock(name: str, quantity: int) -> Stock:
    return Stock(
        stock_id=_stock_id(name),
        partner_id=PARTNER,
        category_id="dining",
        quantity=quantity,
        face_value_fen=FACE_FEN,
        transaction_minimum_fen=3 * FACE_FEN,
        funded_fen=FACE_FEN,
    )
