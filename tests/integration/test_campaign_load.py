"""Loading a campaign into a real database, as the role that does it, and reading it back."""

import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

import sql
from issuer.campaign import load as loading
from issuer.campaign.catalogue import read_catalogue
from issuer.campaign.load import City, LoadedCampaign, LoadRefusal, NotLoaded, load, load_city
from issuer.campaign.model import Campaign
from issuer.campaign.shipped import shipped_document
from redemption.offers import Offer, split
from tests.small_campaign import SMALL, read, small
from tests.stores import Database

NOW = datetime(2020, 4, 1, 8, tzinfo=UTC)
OPERATOR = "hanquan_operator"


async def loaded(database: Database, text: str = SMALL) -> LoadedCampaign:
    async with database.connection(OPERATOR) as operator:
        answer = await load(operator, read(text), text, now=NOW)
    assert isinstance(answer, LoadedCampaign)
    return answer


async def test_rows_are_what_the_file_says(database: Database) -> None:
    answer = await loaded(database)
    assert answer.round_nos == {"r1": 1, "r2": 2}
    campaign = await database.pool.fetchrow("SELECT * FROM campaign")
    assert campaign is not None
    assert (campaign["document"], campaign["loaded_at"], campaign["fund_fen"]) == (SMALL, NOW, 100_000)
    assert campaign["campaign_no"] == answer.campaign_no
    async with database.connection("hanquan_issuer") as issuer:
        catalogue = await read_catalogue(issuer)
    assert {stock_id: stock.stock_no for stock_id, stock in catalogue.stocks.items()} == answer.stock_nos
    first = catalogue.rounds[1]
    assert (first.campaign_id, first.round_id, first.budget_fen) == ("small-2020", "r1", 40_000)
    assert first.opens_at == datetime(2020, 4, 23, 4, tzinfo=UTC)
    assert first.opens_at.utcoffset() == timedelta(0)


async def test_the_catalogue_is_the_campaign_read_back(database: Database) -> None:
    campaign = read(SMALL)
    await loaded(database)
    async with database.connection("hanquan_redemption") as anyone:
        catalogue = await read_catalogue(anyone)
    for number, each in enumerate(campaign.rounds, start=1):
        stocks = catalogue.stocks_of(number)
        assert [stock.stock_id for stock in stocks] == [stock.stock_id for stock in each.stocks]
        for stored, stock in zip(stocks, each.stocks, strict=True):
            assert (stored.partner_id, stored.category) == (stock.partner_id, stock.category_id)
            assert (stored.quantity, stored.face_value_fen) == (stock.quantity, stock.face_value_fen)
            assert (stored.funded_fen, stored.transaction_minimum_fen) == (
                stock.funded_fen,
                stock.transaction_minimum_fen,
            )
            assert (stored.city_bp, stored.platform_bp, stored.merchant_bp) == (6_000, 3_000, 1_000)
            assert (stored.valid_from, stored.valid_until) == (each.opens_at, each.valid_until)
            assert (stored.refund_policy, stored.state) == ("RESTORE", "SCHEDULED")


async def test_the_fund_is_in_the_books(database: Database) -> None:
    await loaded(database)
    (transfer,) = await database.pool.fetch("SELECT * FROM transfer")
    assert (transfer["bucket"], transfer["kind"], transfer["reference"]) == (0, "FUND", "fund small-2020")
    assert (transfer["amount_fen"], transfer["booked_at"]) == (100_000, NOW)
    balances = await database.pool.fetch("SELECT kind::text AS name, balance_fen FROM balance ORDER BY kind")
    assert [tuple(row) for row in balances] == [("CITY_FUND", 100_000), ("BUDGET", 100_000)]


async def test_every_round_can_store_vouchers(database: Database) -> None:
    answer = await loaded(database)
    for round_no in answer.round_nos.values():
        await database.pool.execute(
            "INSERT INTO voucher (voucher_id, claimed_at, request_key, person, stock_no, bucket, out_request_no)"
            " VALUES ($1::bigint << 38, $2, 1, gen_random_uuid(), 1, 0, 'a')",
            round_no,
            NOW,
        )
    with pytest.raises(asyncpg.CheckViolationError):
        await database.pool.execute(
            "INSERT INTO voucher (voucher_id, claimed_at, request_key, person, stock_no, bucket, out_request_no)"
            " VALUES (3::bigint << 38, $1, 1, gen_random_uuid(), 1, 0, 'a')",
            NOW,
        )


async def test_a_second_load_is_refused_and_changes_nothing(database: Database) -> None:
    await loaded(database)
    before = await counts(database)
    async with database.connection(OPERATOR) as operator:
        answer = await load(operator, read(SMALL), SMALL, now=NOW)
    assert isinstance(answer, NotLoaded)
    assert answer.reason is LoadRefusal.ALREADY_LOADED
    assert "small-2020 was loaded before" in answer.detail
    assert await counts(database) == before


async def test_another_campaign_takes_the_next_numbers_and_reuses_partners(database: Database) -> None:
    await loaded(database)
    partners = await database.pool.fetch("SELECT * FROM partner ORDER BY partner_id")
    text = small(
        ("id: small-2020", "id: more-2020"), ("{id: alipay, name: {zh: 支付宝", "{id: alipay, name: {zh: 别名")
    )
    answer = await loaded(database, text)
    assert answer.round_nos == {"r1": 3, "r2": 4}
    assert await database.pool.fetch("SELECT * FROM partner ORDER BY partner_id") == partners


async def load_while_another_loads(database: Database) -> LoadedCampaign:
    """A second campaign comes while the first one's transaction is open."""
    text = small(("id: small-2020", "id: more-2020"))
    async with database.connection(OPERATOR) as operator:
        async with operator.transaction():
            await load(operator, read(SMALL), SMALL, now=NOW)
            second = asyncio.create_task(loaded(database, text))
            while not await database.pool.fetchval(WAITING):
                await asyncio.sleep(0.01)
        return await second


WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


async def test_two_loads_at_once_take_turns(database: Database) -> None:
    answer = await load_while_another_loads(database)
    assert answer.round_nos == {"r1": 3, "r2": 4}


async def test_without_the_lock_two_loads_collide(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the same story with the lock off takes a number twice."""
    statements = {name: sql.load("campaign")[name] for name in sql.load("campaign")} | {"lock_loading": "SELECT 1"}
    monkeypatch.setattr(loading, "_queries", statements)
    with pytest.raises(asyncpg.UniqueViolationError):
        await load_while_another_loads(database)


async def test_the_same_campaign_at_once_is_loaded_once(database: Database) -> None:
    async def attempt() -> LoadedCampaign | NotLoaded:
        async with database.connection(OPERATOR) as operator:
            return await load(operator, read(SMALL), SMALL, now=NOW)

    answers = await asyncio.gather(*(attempt() for _ in range(6)))
    assert sum(isinstance(answer, LoadedCampaign) for answer in answers) == 1


async def test_rounds_run_out_of_numbers(database: Database) -> None:
    await loaded(database)
    await database.pool.execute(
        "INSERT INTO round SELECT 1022, campaign_no, 'last', opens_at, closes_at, budget_fen, 1"
        "  FROM round WHERE round_no = 1"
    )
    before = await counts(database)
    text = small(("id: small-2020", "id: more-2020"))
    async with database.connection(OPERATOR) as operator:
        answer = await load(operator, read(text), text, now=NOW)
    assert isinstance(answer, NotLoaded)
    assert answer.reason is LoadRefusal.NO_ROUND_NUMBERS
    assert "2 rounds are asked for, and 1 numbers are left" in answer.detail
    assert await counts(database) == before


async def test_a_load_that_breaks_off_leaves_nothing(database: Database) -> None:
    campaign = read(SMALL)
    await database.pool.execute("ALTER TABLE transfer ADD CHECK (kind <> 'FUND')")  # the last step cannot be made
    before = await counts(database)
    async with database.connection(OPERATOR) as operator:
        with pytest.raises(asyncpg.CheckViolationError):
            await load(operator, campaign, SMALL, now=NOW)
    assert await counts(database) == before


async def test_the_city_is_written_once(database: Database) -> None:
    async with database.connection(OPERATOR) as operator:
        assert await load_city(operator, 4, 2) == City(buckets=4, shards=2)
        assert await load_city(operator, 8, 8) == City(buckets=4, shards=2)


async def test_limits_groups_packs_and_stages_are_what_the_file_says(database: Database) -> None:
    document = shipped_document("city-tour").decode()
    campaign = read(document)
    answer = await loaded(database, document)
    assert await rows(database, "SELECT face_fen_per_person_max FROM campaign") == [(30_000,)]
    assert await rows(database, "SELECT per_person_and_partner_limit, per_person_limit FROM round") == [(1, 2)] * 3
    assert await rows(database, "SELECT * FROM claim_group ORDER BY round_no") == [
        (round_no, 1, "big-ticket", 1) for round_no in answer.round_nos.values()
    ]
    assert await rows(database, "SELECT partner_id, claims_per_s_max FROM partner") == [
        ("wechat", 5_000),
        ("alipay", 5_000),
    ]
    stocks = await rows(database, "SELECT stock_id, group_no, is_granted, state::text FROM stock ORDER BY stock_no")
    assert stocks == [
        (stock.stock_id, 1 if stock.group_id else None, stock.is_granted, "SCHEDULED")
        for each in campaign.rounds
        for stock in each.stocks
    ]
    packs = await rows(database, "SELECT pack_id, round_no, group_no, is_granted, pack_no FROM pack ORDER BY pack_no")
    assert packs == [
        (pack.pack_id, answer.round_nos[each.round_id], 1 if pack.group_id else None, pack.is_granted, number)
        for each in campaign.rounds
        for pack in each.packs
        for number in (answer.pack_nos[pack.pack_id],)
    ]
    items = await rows(
        database,
        "SELECT pack_id, stock_id, i.quantity FROM pack_item i JOIN pack USING (pack_no) JOIN stock USING (stock_no)",
    )
    assert sorted(items) == sorted(
        (pack.pack_id, item.stock_id, item.quantity)
        for each in campaign.rounds
        for pack in each.packs
        for item in pack.items
    )
    stages = await rows(database, "SELECT * FROM release_stage ORDER BY round_no, after_s")
    assert stages == [
        (answer.round_nos[each.round_id], stage.after_s, stage.share_bp)
        for each in campaign.rounds
        for stage in each.stages
    ]


TILL = (
    ("validity: {days: 7}", "validity: {days_after_claim: 3}"),
    (
        "offer: {minimum",
        "redeem_caps:\n  - {period: month, face: 100, per_partner: yes}\n  - {period: campaign, face: 200}\n"
        "scopes:\n  - {id: old-town, districts: [hankou, wuchang]}\n"
        "  - {id: two-shops, merchants: [NOODLES, EMPORIUM]}\n"
        "offer: {minimum",
    ),
    (
        "refund_policy: RESTORE",
        "refund_policy: PAID_SHARE, stacks_with: {shop: yes, platform: no}, till_code: ROTATING",
    ),
    ("face: 20, quantity: 10", "face: 20, quantity: 10, scope: old-town"),
    ("minimum: 70", "minimum: 70, scope: two-shops"),
)
ENROL = """
    INSERT INTO merchant (merchant_id, name, category, district, payee_name, payee_account, payee_bank)
    SELECT id, id, 'dining', 'hankou', id, '62220000', 'bank' FROM unnest(ARRAY['NOODLES', 'EMPORIUM', 'BAKERY']) AS id
"""


async def test_what_a_file_says_about_the_till_is_in_the_books(database: Database) -> None:
    await database.pool.execute(ENROL)
    await loaded(database, small(*TILL))
    assert await rows(database, "SELECT period::text, is_per_partner, face_fen_max FROM redeem_cap ORDER BY 3") == [
        ("MONTH", True, 10_000),
        ("CAMPAIGN", False, 20_000),
    ]
    assert await rows(database, "SELECT category, name_zh, name_en FROM category_name") == [
        ("dining", "餐饮", "Dining")
    ]
    said = "SELECT DISTINCT valid_days, stacks_with, till_code, refund_policy FROM stock"
    assert await rows(database, said) == [(3, ["SHOP"], "ROTATING", "PAID_SHARE")]
    ends = "SELECT DISTINCT to_char(valid_until AT TIME ZONE 'Asia/Shanghai', 'MM-DD HH24:MI:SS') FROM stock ORDER BY 1"
    assert await rows(database, ends) == [("04-25 23:59:59",), ("05-02 23:59:59",)]  # the last claim's third day
    districts = "SELECT DISTINCT partner_no, district FROM stock_district JOIN stock USING (stock_no) ORDER BY 2"
    assert await rows(database, districts) == [(1, "hankou"), (1, "wuchang")]
    shops = "SELECT DISTINCT partner_no, merchant_id FROM stock_merchant JOIN merchant USING (merchant_no)"
    assert sorted(await rows(database, f"{shops} JOIN stock USING (stock_no)")) == [(2, "EMPORIUM"), (2, "NOODLES")]


async def test_the_till_reads_what_the_file_says(database: Database) -> None:
    await database.pool.execute(ENROL)
    answer = await loaded(database, small(*TILL))
    async with database.connection("hanquan_redemption") as till:
        offers = [Offer.of(dict(row)) for row in await till.fetch(sql.load("checkout")["stocks"])]
    first, second = (offer for offer in offers if "_r1_" in offer.stock_id)
    assert {offer.stock_no for offer in offers} == set(answer.stock_nos.values())
    assert (first.category_zh, first.category_en) == ("餐饮", "Dining")
    assert (first.districts, first.merchants) == (frozenset({"hankou", "wuchang"}), frozenset())
    assert (second.districts, len(second.merchants)) == (frozenset(), 2)
    assert (first.stacks_with, first.till_code, first.refund_policy) == (frozenset({"SHOP"}), "ROTATING", "PAID_SHARE")
    assert first.valid_days_after_claim == 3
    for offer in offers:
        parts = split(offer, offer.face_value_fen)
        assert parts.city_fen + parts.platform_fen == offer.funded_fen


async def test_merchants_that_are_not_enrolled_are_named(database: Database) -> None:
    before = await counts(database)
    text = small(*TILL)
    async with database.connection(OPERATOR) as operator:
        answer = await load(operator, read(text), text, now=NOW)
    assert isinstance(answer, NotLoaded)
    assert answer.reason is LoadRefusal.UNKNOWN_MERCHANTS
    assert answer.detail == (
        "scope two-shops names NOODLES, and no such merchant is enrolled; enrol it first (2 merchants in all)"
    )
    assert await counts(database) == before


async def test_a_file_that_says_nothing_about_the_till_means_what_it_always_meant(database: Database) -> None:
    await loaded(database)
    said = "SELECT DISTINCT valid_days, stacks_with, till_code, refund_policy FROM stock"
    assert await rows(database, said) == [(None, ["SHOP", "PLATFORM"], "ANY", "RESTORE")]
    tables = ("stock_district", "stock_merchant", "redeem_cap")
    assert [await rows(database, f"SELECT count(*) FROM {table}") for table in tables] == [[(0,)]] * 3


async def rows(database: Database, query: str) -> list[tuple[object, ...]]:
    return [tuple(row) for row in await database.pool.fetch(query)]


async def test_stocks_can_start_as_drafts(database: Database) -> None:
    async with database.connection(OPERATOR) as operator:
        await load(operator, read(SMALL), SMALL, now=NOW, state="DRAFT")
    assert await rows(database, "SELECT DISTINCT state::text FROM stock") == [("DRAFT",)]


async def test_wuhan_loads(database: Database) -> None:
    document = shipped_document("wuhan-2020").decode()
    campaign: Campaign = read(document)
    answer = await loaded(database, document)
    assert len(answer.stock_nos) == 180
    vouchers, face_fen = (
        await database.pool.fetchrow("SELECT sum(quantity), sum(quantity * face_value_fen)::bigint FROM stock")
    ) or (0, 0)
    assert (vouchers, face_fen) == (campaign.quantity, campaign.total_face_fen)


async def counts(database: Database) -> list[int]:
    tables = ("partner", "campaign", "round", "stock", "transfer", "account")
    return [await database.pool.fetchval(f"SELECT count(*) FROM {table}") for table in tables]
