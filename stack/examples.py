"""Something to try on a fresh stack: a small campaign that is open now, one platform, one shop, and calls to paste."""

import secrets
import shlex
from collections.abc import Mapping
from datetime import datetime, time, timedelta

import asyncpg

import sql
from issuer.campaign.load import load
from issuer.campaign.model import Campaign, Category, Funding, Offer, Partner, RefundPolicy, Round, Stock, stock_id_of
from kernel.clock import CITY_ZONE, Clock, business_day
from kernel.money import BP_WHOLE
from kernel.signing import Algorithm, Signer
from kernel.tokens import make_token
from stack.data_folder import DEFAULT, DataFolder, Secrets
from stack.enrol import NewMerchant, enrol_merchants, enrol_partner
from stack.keystore import KeyStore
from stack.new_city import found_city

CAMPAIGN, PARTNER, SHOP = "playground", "wechat", "shop"
STOCK = stock_id_of(CAMPAIGN, "R01", PARTNER, "dining")
VOUCHERS, FACE_FEN = 10_000, 2_000

_queries = sql.load("examples")


async def ensure_playground(
    operator_dsn: str, valkey_url: str, folder: DataFolder, keys: Secrets, clock: Clock
) -> bool:
    """Loads the playground where there is no campaign yet. True when the folder holds keys to play with."""
    conn = await asyncpg.connect(operator_dsn)
    try:
        if await conn.fetchval(_queries["count_campaigns"]):
            return {PARTNER, SHOP} <= set(KeyStore(folder.path).names())
        now = clock.now()
        await found_city(conn, valkey_url)
        await load(conn, playground(now), "made by `hanquan up` for trying things out", now=now)
        await _hand_out_keys(conn, folder, bytes.fromhex(keys.master_key), now)
        return True
    finally:
        await conn.close()


async def _hand_out_keys(
    conn: "asyncpg.Connection[asyncpg.Record]", folder: DataFolder, master_key: bytes, now: datetime
) -> None:
    partner = await enrol_partner(conn, master_key, PARTNER, Algorithm.HMAC, now)
    shop = NewMerchant(
        merchant_id="SHOP-0001",
        name="Playground Noodles",
        category="dining",
        district="Jiang'an",
        payee_name="Playground Noodles Ltd",
        payee_account="6200000000000001",
        payee_bank="Bank of Hankou",
    )
    [till] = await enrol_merchants(conn, master_key, [shop], now)
    KeyStore(folder.path).add({PARTNER: partner, SHOP: till})


def playground(now: datetime) -> Campaign:
    """A campaign of one stock that opens at `now` and stays open for a year."""
    opens_at = now.astimezone(CITY_ZONE)
    closes_at = opens_at + timedelta(days=365)
    stock = Stock(
        stock_id=STOCK,
        partner_id=PARTNER,
        category_id="dining",
        quantity=VOUCHERS,
        face_value_fen=FACE_FEN,
        transaction_minimum_fen=3 * FACE_FEN,
        funded_fen=FACE_FEN,
    )
    fund_fen = stock.exposure_fen
    return Campaign(
        campaign_id=CAMPAIGN,
        title_zh="试用活动",
        title_en="Playground",
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
                round_id="R01",
                opens_at=opens_at,
                closes_at=closes_at,
                valid_until=closes_at,
                budget_fen=fund_fen,
                stocks=(stock,),
            ),
        ),
    )


def curl(signer: Signer, base_url: str, method: str, path: str, body: str, clock: Clock) -> str:
    """A signed call as one line for a shell; good for five minutes."""
    data = body.encode()
    header = signer.authorization(method, path, data, timestamp_s=clock.now_ms() // 1000, nonce=secrets.token_hex(8))
    words = ["curl", "-sS", "-X", method, base_url + path, "-H", f"Authorization: {header}"]
    if body:
        words += ["-H", "Content-Type: application/json", "-d", body]
    return shlex.join(words)


def example_calls(
    folder: DataFolder, addresses: Mapping[str, str], keys: Secrets, clock: Clock
) -> list[tuple[str, str]]:
    """Pairs of what a call does and the line to paste: claim, use, look at the day."""
    number = secrets.token_hex(4)
    person = make_token(bytes.fromhex(keys.person_key), f"citizen {number}")
    claim = f'{{"out_request_no":"grab-{number}","stock_id":"{STOCK}","person_token":"{person}"}}'
    use = f'{{"use_request_no":"use-{number}","voucher_code":"CODE","order_no":"order-{number}","bill_fen":8000}}'
    signer = KeyStore(folder.path).get(PARTNER)
    day = business_day(clock.now()).isoformat()
    claiming = curl(signer, addresses["issuer"], "POST", "/v1/claims", claim, clock)
    here = "" if folder.path == DEFAULT.resolve() else f"--data {shlex.quote(str(folder.path))} "
    using = f"./hanquan sign {here}{SHOP} POST /v1/redemptions {shlex.quote(use)} | sh"
    return [
        ("Claim a voucher (signed now, good for five minutes)", claiming),
        ("Use it at a till: write the voucher_code of the answer for CODE", using),
        ("Look at the shop's day", f"./hanquan sign {here}{SHOP} GET /v1/statements/{day} | sh"),
    ]
