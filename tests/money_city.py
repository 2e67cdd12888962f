"""The city of the money model's worlds, loaded as operators load it."""

from datetime import UTC, datetime, timedelta

import msgspec

from issuer.campaign.load import LoadedCampaign, load, load_city
from issuer.campaign.model import Campaign, RedeemCap, Round
from tests import stores
from tests.city_plan import SHOPS, a_campaign, a_stock
from tests.money_terms import (
    BUCKETS,
    CAMPAIGNS,
    CAP_CAMPAIGN_FEN,
    CAP_MONTH_PER_PARTNER_FEN,
    CAPPED,
    CLAIMS_MAX,
    CLOSES,
    DEBT_MAX,
    OPENS,
    QUANTITY,
    TERMS,
    VALID_UNTIL,
)

PARTNERS = ("wechat", "alipay")


async def found(database: stores.Database) -> dict[int, int]:
    """The city with its campaigns and shops; the funds by campaign number."""
    funds_fen = {}
    async with database.connection("hanquan_operator") as conn:
        await load_city(conn, BUCKETS, 1)
        for number in CAMPAIGNS:
            campaign = _campaign(number)
            loaded = await load(conn, campaign, "", now=OPENS - timedelta(days=1))
            assert isinstance(loaded, LoadedCampaign) and loaded.campaign_no == number
            assert set(loaded.stock_nos.values()) == {no for no, terms in TERMS.items() if terms.campaign == number}
            funds_fen[number] = campaign.fund_fen
    await database.pool.executemany(
        "INSERT INTO merchant (merchant_id, name, category, district, payee_name, payee_account, payee_bank,"
        " refund_debt_fen_max) VALUES ($1, $1, 'dining', 'x', $1, '62220000', 'bank', $2)",
        list(zip(SHOPS, DEBT_MAX.values(), strict=False)),
    )
    await database.pool.execute(
        "INSERT INTO terminal (merchant_no, terminal_id) SELECT merchant_no, 'till' FROM merchant"
    )
    await database.pool.execute(
        "INSERT INTO callback_subscription (partner_no, url, kinds, retry_after_s, changed_at)"
        " VALUES (1, 'https://wechat.example/', '{USED,REFUNDED}', '{60}', $1)",
        datetime.now(UTC),
    )
    return funds_fen


def _campaign(number: int) -> Campaign:
    stocks = [
        msgspec.structs.replace(
            a_stock(f"stock-{stock}", PARTNERS[terms.partner - 1], quantity=QUANTITY, face_fen=terms.face_fen),
            transaction_minimum_fen=terms.minimum_fen,
            funded_fen=terms.funded_fen,
        )
        for stock, terms in TERMS.items()
        if terms.campaign == number
    ]
    only = Round(
        round_id="r1",
        opens_at=OPENS,
        closes_at=CLOSES,
        valid_until=VALID_UNTIL,
        budget_fen=sum(stock.exposure_fen for stock in stocks),
        stocks=tuple(stocks),
    )
    policy = next(terms.policy for terms in TERMS.values() if terms.campaign == number)
    campaign = a_campaign(f"campaign-{number}", only, policy=policy, limit=CLAIMS_MAX)
    if number != CAPPED:
        return campaign
    month = RedeemCap(period="MONTH", is_per_partner=True, face_fen_max=CAP_MONTH_PER_PARTNER_FEN)
    whole = RedeemCap(period="CAMPAIGN", is_per_partner=False, face_fen_max=CAP_CAMPAIGN_FEN)
    return msgspec.structs.replace(campaign, redeem_caps=(month, whole))
