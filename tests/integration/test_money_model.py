"""The ledger's SQL functions against a small pure model of the money, in any order hypothesis thinks of.

After each step every balance is the model's, FUND adds up, and ISSUED is the face of the live vouchers.
What is refused changes nothing, to the byte. One example is one transaction, which is rolled back.
"""

import asyncio
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import sql
from issuer.campaign.load import LoadedCampaign, load, load_city
from kernel.clock import business_day
from kernel.ids import pack_voucher_id
from tests import stores
from tests.city_plan import NOON, SHOPS, a_campaign, a_round, a_stock
from tests.effort import times
from tests.money_model import BUCKETS, DEBT_MAX, FUNDED, QUANTITY, VALID_UNTIL, Model, Voucher

_checkout = sql.load("checkout")
_drain = sql.load("drain")


class Books:
    """The real functions, on one connection."""

    def __init__(self, dsn: str) -> None:
        self._runner = asyncio.Runner()
        self._conn = self.run(lambda: asyncpg.connect(dsn))

    def run(self, work: Callable[[], Any]) -> Any:
        """Runs a coroutine to its end."""

        async def awaited() -> Any:
            return await work()

        return self._runner.run(awaited())

    def fetch(self, query: str, *args: object) -> list[Any]:
        """Rows of a query."""
        rows: list[Any] = self.run(lambda: self._conn.fetch(query, *args))
        return rows

    def execute(self, query: str, *args: object) -> None:
        """A statement."""
        self.run(lambda: self._conn.execute(query, *args))

    def many(self, query: str, rows: Sequence[Sequence[object]]) -> None:
        """A statement for many rows."""
        self.run(lambda: self._conn.executemany(query, rows))

    @contextmanager
    def refused(self, error: type[Exception]) -> Iterator[None]:
        """What is inside fails with this error, and leaves nothing."""
        before = self.state()
        self.execute("SAVEPOINT before")
        with pytest.raises(error):
            yield
        self.execute("ROLLBACK TO before")
        assert self.state() == before

    def state(self) -> str:
        """Every row of money."""
        digest = "SELECT md5(string_agg(t::text, E'\\n' ORDER BY t::text)) AS digest FROM"
        parts = [f"{digest} {name} t" for name in (*TABLES, "account")]
        return str(self.fetch(" UNION ALL ".join(parts)))

    def close(self) -> None:
        self.run(self._conn.close)
        self._runner.close()


TABLES = ("voucher", "redemption", "refund", "transfer", "day_close", "merchant_day")
shops = st.sampled_from([1, 2])
picks = st.integers(0, 10**6)
numbers = st.sampled_from([f"number-{n}" for n in range(9)])


class Money(RuleBasedStateMachine):
    """Steps on both, compared after each."""

    books: Books
    funds_fen: Mapping[int, int]

    @initialize()
    def begin(self) -> None:
        self.books.execute("BEGIN")
        self.model = Model(self.funds_fen)
        self.serial = 0
        for stock in FUNDED:
            for bucket in range(BUCKETS):
                self.drain(stock, bucket, 2)

    def teardown(self) -> None:
        self.books.execute("ROLLBACK")

    # ------------------------------------------------------------ steps

    @rule(stock=st.sampled_from([1, 2]), bucket=st.sampled_from([0, 1]), count=st.integers(1, 3))
    def drain(self, stock: int, bucket: int, count: int) -> None:
        """A chunk of claims is carried over."""
        model = self.model
        count = min(count, QUANTITY - sum(voucher.stock == stock for voucher in model.vouchers))
        if count == 0 or (bucket, stock) in model.expired:
            return
        fresh = []
        for _ in range(count):
            self.serial += 1
            fresh.append(Voucher(pack_voucher_id(stock, 512 * bucket, self.serial), stock, bucket))
        self.books.many(
            "INSERT INTO voucher (voucher_id, claimed_at, request_key, person, stock_no, bucket, out_request_no)"
            " VALUES ($1, $2, $1, gen_random_uuid(), $3, $4, 'claim-' || $5::text)",
            [(v.voucher_id, model.now, stock, bucket, str(v.voucher_id)) for v in fresh],
        )
        amount_fen = count * FUNDED[stock]
        self.books.execute(
            _drain["post_issue"], bucket, stock, amount_fen, count, b"", f"chunk {self.serial}", model.now
        )
        model.vouchers += fresh
        model.move(stock, amount_fen, (0, stock, 0, "BUDGET"), (bucket, stock, 0, "ISSUED"))

    @rule(some=st.lists(st.tuples(picks, shops, numbers), min_size=1, max_size=4))
    def redeem(self, some: list[tuple[int, int, str]]) -> None:
        """Tills redeem, together."""
        model = self.model
        asked = [(model.vouchers[pick % len(model.vouchers)], shop, number) for pick, shop, number in some]
        asked = [each for each in asked if each[0].bucket == asked[0][0].bucket]
        asked = list({voucher.voucher_id: (voucher, shop, number) for voucher, shop, number in asked}.values())
        before = self.books.state()
        rows = self.books.fetch(
            _checkout["redeem"],
            asked[0][0].bucket,
            model.now,
            business_day(model.now),
            [voucher.voucher_id for voucher, _, _ in asked],
            [voucher.stock for voucher, _, _ in asked],
            [shop for _, shop, _ in asked],
            [shop for _, shop, _ in asked],
            [7_500] * len(asked),
            [FUNDED[voucher.stock] for voucher, _, _ in asked],
            [number for _, _, number in asked],
            [f"order-{number}" for _, _, number in asked],
        )
        expected = [model.redeem(*each) for each in asked]
        assert [row["outcome"] for row in rows] == expected
        assert ("REDEEMED" in expected) == (self.books.state() != before)

    @rule(pick=picks, shop=shops, goes_back=st.booleans())
    def sell(self, pick: int, shop: int, goes_back: bool) -> None:
        """A live voucher is used under a fresh number; perhaps the customer changes their mind."""
        live = [at for at, voucher in enumerate(self.model.vouchers) if voucher.is_live]
        if not live:
            return
        self.serial += 1
        at = live[pick % len(live)]
        self.redeem([(at, shop, f"fresh-{self.serial}")])
        uses = [use for voucher in self.model.vouchers for use in voucher.uses]
        if goes_back and self.model.vouchers[at].uses:
            self.refund([(uses.index(self.model.vouchers[at].uses[-1]), shop, "", f"fresh-{self.serial}")])

    @precondition(lambda self: any(voucher.uses for voucher in self.model.vouchers))
    @rule(some=st.lists(st.tuples(picks, shops, numbers, numbers), min_size=1, max_size=4))
    def refund(self, some: list[tuple[int, int, str, str]]) -> None:
        """Tills refund, together. Most of them ask for what was really redeemed."""
        model = self.model
        uses = [(voucher, use.shop, use.number) for voucher in model.vouchers for use in voucher.uses]
        asked: list[tuple[Voucher, int, str, str]] = []
        for pick, shop, number, refund_no in some:
            wild = (model.vouchers[pick % len(model.vouchers)], shop, number)
            real = wild if number == "number-1" else uses[pick % len(uses)]
            if all(real[0] is not each[0] and real[0].bucket == each[0].bucket for each in asked):
                asked.append((*real, f"back-{refund_no}"))
        before = self.books.state()
        rows = self.books.fetch(
            _checkout["refund"],
            asked[0][0].bucket,
            model.now,
            business_day(model.now),
            [voucher.voucher_id for voucher, *_ in asked],
            [each[1] for each in asked],
            [each[2] for each in asked],
            [each[3] for each in asked],
            [5_500] * len(asked),
        )
        outcomes = [row["outcome"] for row in rows]
        self._follow(asked, outcomes)
        assert ("REFUNDED" in outcomes) == (self.books.state() != before)

    def _follow(self, asked: Sequence[tuple[Voucher, int, str, str]], outcomes: Sequence[str]) -> None:
        """The limit is judged over a batch as a whole, so a batch may be refused a little more than one by one."""
        for each, outcome in zip(asked, outcomes, strict=True):
            if outcome == "OVER_LIMIT" and len(asked) > 1:
                continue
            assert self.model.refund(*each) == outcome

    @rule(hours=st.sampled_from([1, 5, 20, 70]))
    def pass_time(self, hours: int) -> None:
        """Hours go by."""
        self.model.now += timedelta(hours=hours)

    @precondition(lambda self: any(voucher.uses for voucher in self.model.vouchers))
    @rule()
    def settle(self) -> None:
        """The day ends, and everybody is paid."""
        for bucket in range(BUCKETS):
            self.close_day(bucket, 0)
            for campaign in FUNDED:
                for shop in DEBT_MAX:
                    self.pay_out(bucket, campaign, shop)
        self.pass_time(20)

    @precondition(lambda self: any(voucher.uses for voucher in self.model.vouchers))
    @rule(bucket=st.sampled_from([0, 1]), days=st.integers(0, 2))
    def close_day(self, bucket: int, days: int) -> None:
        """A day is closed; one that is closed stays so."""
        model = self.model
        day = business_day(model.now) - timedelta(days=days)
        [row] = self.books.fetch("SELECT close_day($1::smallint, $2, $3) AS closed", bucket, day, model.now)
        assert row["closed"] == (day > model.closed.get(bucket, date.min))
        model.closed[bucket] = max(day, model.closed.get(bucket, date.min))

    @precondition(lambda self: sum(len(voucher.uses) for voucher in self.model.vouchers) > 4)
    @rule(stock=st.sampled_from([1, 2]))
    def grow_old(self, stock: int) -> None:
        """A stock's time is over, and its money goes back."""
        self.model.now = max(self.model.now, VALID_UNTIL + timedelta(hours=1))
        for bucket in range(BUCKETS):
            self.expire(bucket, stock)

    @rule(bucket=st.sampled_from([0, 1]), stock=st.sampled_from([1, 2]))
    def expire(self, bucket: int, stock: int) -> None:
        """A stock runs out; before its time that is an error."""
        model = self.model
        query = "SELECT expire_stock($1::smallint, $2, $3) AS unused"
        if model.now <= VALID_UNTIL:
            with self.books.refused(asyncpg.PostgresError):
                self.books.fetch(query, bucket, stock, model.now)
            return
        live_fen = model.live_fen(bucket, stock)
        [row] = self.books.fetch(query, bucket, stock, model.now)
        assert row["unused"] * FUNDED[stock] == live_fen
        if live_fen:
            model.move(stock, live_fen, (bucket, stock, 0, "ISSUED"), (0, stock, 0, "RETURNED"))
            model.expired.add((bucket, stock))

    @rule(bucket=st.sampled_from([0, 1]), campaign=st.sampled_from([1, 2]), shop=shops)
    def pay_out(self, bucket: int, campaign: int, shop: int) -> None:
        """What closed days owe a shop goes to the bank."""
        rows = self.books.fetch(
            "SELECT credits_fen - debits_fen AS fen FROM account WHERE (bucket, campaign_no, merchant_no) ="
            " ($1::smallint, $2::smallint, $3::integer) AND kind = 'PAYABLE'",
            bucket,
            campaign,
            shop,
        )
        if not rows or rows[0]["fen"] <= 0:
            return
        self.serial += 1
        settling, paid = (0, campaign, shop, "SETTLING"), (0, campaign, 0, "PAID")
        for kind, debit, credit in (
            ("SETTLE_HOLD", (bucket, campaign, shop, "PAYABLE"), settling),
            ("SETTLE_POST", settling, paid),
        ):
            self._transfer(kind, bucket, campaign, shop, debit[3], credit[3], rows[0]["fen"])
            self.model.move(campaign, rows[0]["fen"], debit, credit)

    def _transfer(
        self, kind: str, bucket: int, campaign: int, shop: int, debit: str, credit: str, amount_fen: int
    ) -> None:
        self.serial += 1
        self.books.execute(
            "INSERT INTO transfer (bucket, campaign_no, merchant_no, kind, debit, credit, amount_fen, reference,"
            " booked_at) VALUES ($1, $2, $3, $4::text::transfer_kind, $5::text::account_kind,"
            " $6::text::account_kind, $7, $8, $9)",
            *(bucket, campaign, shop, kind, debit, credit, amount_fen, f"{kind} {self.serial}", self.model.now),
        )

    @rule(campaign=st.sampled_from([1, 2]), shop=shops, table=st.sampled_from(TABLES))
    def break_the_rules(self, campaign: int, shop: int, table: str) -> None:
        """More than there is leaves no account, and what is written stays written."""
        budget_fen = self.model.fen[0, campaign, 0, "BUDGET"]
        with self.books.refused(asyncpg.CheckViolationError):
            self.books.execute(_drain["post_issue"], 0, campaign, budget_fen + 1, 1, b"", "too much", self.model.now)
        with self.books.refused(asyncpg.CheckViolationError):
            self._transfer("SETTLE_POST", 0, campaign, shop, "SETTLING", "PAID", 1)
        if self.books.fetch(f"SELECT FROM {table} LIMIT 1"):
            with self.books.refused(asyncpg.PostgresError):
                self.books.execute(f"DELETE FROM {table}")
            with self.books.refused(asyncpg.PostgresError):
                self.books.execute(f"UPDATE {table} SET bucket = bucket")

    # ------------------------------------------------------------ what always holds

    @invariant()
    def every_balance_is_the_models(self) -> None:
        rows = self.books.fetch("SELECT bucket, campaign_no, merchant_no, kind::text, balance_fen AS fen FROM balance")
        there = {tuple(row)[:4]: row["fen"] for row in rows if row["fen"]}
        ours = {
            account: abs(fen) if account[3] == "CITY_FUND" else fen for account, fen in self.model.fen.items() if fen
        }
        assert there == ours

    @invariant()
    def the_fund_adds_up(self) -> None:
        rows = self.books.fetch(
            "SELECT campaign_no, sum(CASE WHEN kind = 'CITY_FUND' THEN balance_fen ELSE -balance_fen END) AS fen"
            " FROM balance GROUP BY campaign_no"
        )
        assert [(row["campaign_no"], row["fen"]) for row in rows if row["fen"]] == []

    @invariant()
    def issued_is_the_face_of_live_vouchers(self) -> None:
        for bucket in range(BUCKETS):
            for stock in FUNDED:
                assert self.model.fen[bucket, stock, 0, "ISSUED"] == self.model.live_fen(bucket, stock)

    @invariant()
    def no_shop_owes_more_than_it_may(self) -> None:
        for bucket in range(BUCKETS):
            for shop, debt_fen in DEBT_MAX.items():
                assert sum(self.model.fen[bucket, campaign, shop, "PAYABLE"] for campaign in FUNDED) >= -debt_fen


async def _found(database: stores.Database) -> dict[int, int]:
    """The city, both campaigns and the shops; the funds by campaign number."""
    campaigns = [
        a_campaign("restoring", a_round("r1", NOON, a_stock("restoring", quantity=QUANTITY))),
        a_campaign(
            "returning",
            a_round("r1", NOON, a_stock("returning", quantity=QUANTITY, funded_fen=FUNDED[2])),
            policy="RETURN_TO_BUDGET",
            shop_bp=2_000,
        ),
    ]
    funds_fen = {}
    async with database.connection("hanquan_operator") as conn:
        await load_city(conn, BUCKETS, 1)
        for number, campaign in enumerate(campaigns, start=1):
            loaded = await load(conn, campaign, "", now=datetime.now(UTC))
            assert isinstance(loaded, LoadedCampaign)
            assert (loaded.campaign_no, *loaded.stock_nos.values()) == (number, number)
            funds_fen[number] = campaign.fund_fen
    await database.pool.executemany(
        "INSERT INTO merchant (merchant_id, name, category, district, payee_name, payee_account, payee_bank,"
        " refund_debt_fen_max) VALUES ($1, $1, 'dining', 'x', $1, '62220000', 'bank', $2)",
        list(zip(SHOPS, DEBT_MAX.values(), strict=False)),
    )
    return funds_fen


async def play(database: stores.Database, change: str = "SELECT") -> None:
    """Plays all examples; `change` breaks the ledger first."""
    funds_fen = await _found(database)
    await database.pool.execute(change)

    def run() -> None:
        books = Books(database.dsn())
        machine = type("Machine", (Money,), {"books": books, "funds_fen": funds_fen})
        try:
            run_state_machine_as_test(machine, settings=FULL if change == "SELECT" else UNTIL_IT_FAILS)
        finally:
            books.close()

    await asyncio.to_thread(run)


async def test_the_books_are_the_models(database: stores.Database) -> None:
    await play(database)


BROKEN = {
    "money is not posted": "ALTER TABLE transfer DISABLE TRIGGER post_to_accounts",
    "rows change": "ALTER TABLE redemption DISABLE TRIGGER append_only",
    "accounts are overdrawn": "ALTER TABLE account DROP CONSTRAINT not_overdrawn",
    "debts have no limit": "CREATE OR REPLACE FUNCTION refund_room_fen(p_bucket smallint, p_merchant_no integer,"
    " p_first_open date) RETURNS bigint LANGUAGE sql STABLE AS 'SELECT 1000000::bigint'",
    "days reopen": "CREATE OR REPLACE FUNCTION first_open_day(p_bucket smallint, p_day date)"
    " RETURNS date LANGUAGE sql STABLE AS 'SELECT p_day'",
}


@pytest.mark.parametrize("what", BROKEN)
async def test_control_a_broken_ledger_is_found(database: stores.Database, what: str) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception, asyncpg.PostgresError, ExceptionGroup)) as found:
        await play(database, BROKEN[what])
    assert "state = Machine()" in "".join(traceback.format_exception(found.value)), "it was found by playing"


FULL = settings(
    max_examples=times(25, 50),
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
)
UNTIL_IT_FAILS = settings(FULL, phases=[Phase.generate], max_examples=200, print_blob=False)
