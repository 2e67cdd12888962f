"""Random weeks of selling, refunding, settling, holding, expiring: the books against a small model of the money.

The model knows no SQL: it keeps sums by account and lists of what happened. After each step every
account must hold what the model says, the balances must recompute from the postings, and a step that was
refused must have left every row as it was.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernel.postgres import Connection
from redemption.settlement.answer import Answered, answer
from redemption.settlement.answer_csv import AnswerRow, write_answer
from redemption.settlement.batch import Batch, get_lines
from redemption.settlement.expire import EXPIRY_GRACE, Returned, ReturnTo, expire_over, return_unused
from redemption.settlement.refusals import Refused, Why
from redemption.settlement.settle import approve, propose, reject
from tests import stores
from tests.effort import times
from tests.settling import exported
from tests.town import CAMPAIGN_NO, DAY, FACE_FEN, FUND_FEN, VALID_DAYS, Sale, Town, assert_books, at, build, contents
from tests.town import later as day_after

MERCHANTS, BUCKETS = 3, 2
DEBT_FEN_MAX = 3 * FACE_FEN


@dataclass
class Sold:
    """A sale in the model."""

    sale: Sale
    stock_no: int
    day: date
    refunded_on: date | None = None


@dataclass
class Drawn:
    """A batch in the model: shares by merchant and bucket."""

    batch: Batch
    shares: dict[int, Counter[int]]
    held: set[int]
    state: str = "PROPOSED"
    answers: dict[int, str] = field(default_factory=dict)


class Model:
    """The money as it must be. `payable` is by (merchant, bucket); `closed_*` leave out days still open."""

    def __init__(self) -> None:
        self.city_fund = self.budget = FUND_FEN
        self.issued: Counter[int] = Counter()
        self.payable: Counter[tuple[int, int]] = Counter()
        self.settling: Counter[int] = Counter()
        self.paid = self.returned = 0
        self.unused: Counter[tuple[int, int]] = Counter()
        self.expired: set[tuple[int, int]] = set()
        self.sold: list[Sold] = []
        self.to_returned: list[tuple[date, int]] = []
        self.moved_returned = 0
        self.drawn: list[Drawn] = []
        self.holds: dict[int, int] = {}
        self.closed: date | None = None
        self.settled: Counter[tuple[int, int]] = Counter()

    def booking_day(self, today: date) -> date:
        return max(today, self.closed + timedelta(days=1)) if self.closed else today

    def is_closed(self, day: date) -> bool:
        return self.closed is not None and day <= self.closed

    def closed_payable(self) -> Counter[tuple[int, int]]:
        owed: Counter[tuple[int, int]] = Counter()
        for one in self.sold:
            place = one.sale.merchant_no, one.sale.bucket
            owed[place] += FACE_FEN * self.is_closed(one.day)
            owed[place] -= FACE_FEN * (one.refunded_on is not None and self.is_closed(one.refunded_on))
        owed.subtract(self.settled)
        return owed

    def closed_returned(self) -> int:
        return self.moved_returned + sum(fen for day, fen in self.to_returned if self.is_closed(day))

    def refund_room_fen(self, merchant_no: int, bucket: int) -> int:
        pending = sum(
            FACE_FEN for one in self.sold
            if (one.sale.merchant_no, one.sale.bucket) == (merchant_no, bucket)
            and one.refunded_on and not self.is_closed(one.refunded_on) and one.day < one.refunded_on
        )  # fmt: skip
        return DEBT_FEN_MAX + min(0, self.closed_payable()[merchant_no, bucket]) - pending

    def accounts(self) -> dict[tuple[str, int, int], int]:
        """Every account that holds something: (kind, merchant, bucket) -> fen."""
        found = {("CITY_FUND", 0, 0): self.city_fund, ("BUDGET", 0, 0): self.budget, ("PAID", 0, 0): self.paid}
        found["RETURNED", 0, 0] = self.returned
        found |= {("ISSUED", 0, bucket): fen for bucket, fen in self.issued.items()}
        found |= {("PAYABLE", merchant, bucket): fen for (merchant, bucket), fen in self.payable.items()}
        found |= {("SETTLING", merchant, 0): fen for merchant, fen in self.settling.items()}
        return {account: fen for account, fen in found.items() if fen}


class World:
    """The real books and the model, side by side. Each step returns why it was refused, or None."""

    def __init__(self, town: Town) -> None:
        self.town, self.model, self.now = town, Model(), at(DAY, 8)
        self.returns = iter(range(1_000))

    @property
    def conn(self) -> Connection:
        return self.town.conn

    @property
    def today(self) -> date:
        return DAY + (self.now - at(DAY, 0)) // timedelta(days=1) * timedelta(days=1)

    async def days(self, count: int) -> None:
        self.now += timedelta(days=count)

    async def sell(self, merchant_no: int, bucket: int, stock_no: int, count: int) -> None:
        if self.now > at(day_after(VALID_DAYS)):
            return
        model, day = self.model, self.model.booking_day(self.today)
        ids = await self.town.issue(count + 1, stock_no=stock_no, bucket=bucket)  # one stays unused
        sales = await self.town.redeem(ids[1:], merchant_no, self.now, bucket=bucket, stock_no=stock_no)
        assert {sale.outcome for sale in sales} == {"DONE"}
        model.budget -= FACE_FEN * (count + 1)
        model.issued[bucket] += FACE_FEN
        model.unused[stock_no, bucket] += 1
        model.payable[merchant_no, bucket] += FACE_FEN * count
        model.sold += [Sold(sale, stock_no, day) for sale in sales]

    async def refund(self, which: int) -> str | None:
        model = self.model
        if not model.sold:
            return None
        one = model.sold[which % len(model.sold)]
        place = one.sale.merchant_no, one.sale.bucket
        (outcome,) = await self.town.refund([one.sale], self.now)
        if one.refunded_on is not None:
            assert outcome == "ALREADY_REFUNDED"
            return outcome
        if one.day < model.booking_day(self.today) and model.refund_room_fen(*place) < FACE_FEN:
            assert outcome == "OVER_LIMIT"
            return outcome
        assert outcome == "REFUNDED"
        one.refunded_on = model.booking_day(self.today)
        model.payable[place] -= FACE_FEN
        if one.stock_no == 1 and self.now < at(day_after(VALID_DAYS)):
            model.issued[place[1]] += FACE_FEN
            model.unused[1, place[1]] += 1
        else:
            model.returned += FACE_FEN
            model.to_returned.append((one.refunded_on, FACE_FEN))
        return None

    async def hold(self, merchant_no: int) -> None:
        if merchant_no not in self.model.holds:
            self.model.holds[merchant_no] = await self.town.hold(merchant_no)

    async def release(self, merchant_no: int) -> None:
        if merchant_no in self.model.holds:
            await self.town.release(self.model.holds.pop(merchant_no))

    async def propose(self) -> Why | None:
        model, day = self.model, self.today - timedelta(days=1)
        outcome = await propose(self.conn, CAMPAIGN_NO, day, "li.wei", self.now)
        model.closed = max(model.closed or day, day)
        shares: dict[int, Counter[int]] = {}
        for (merchant, bucket), fen in model.closed_payable().items():
            shares.setdefault(merchant, Counter())[bucket] += fen
        shares = {merchant: parts for merchant, parts in shares.items() if sum(parts.values()) > 0}
        if model.drawn and model.drawn[-1].state == "PROPOSED":
            return self._refused(outcome, Why.UNDECIDED_BATCH)
        if not set(shares) - set(model.holds):
            return self._refused(outcome, Why.NOTHING_TO_PAY)
        assert isinstance(outcome, Batch), outcome
        lines = await get_lines(self.conn, outcome.batch_no)
        assert {line.merchant_no: line.amount_fen for line in lines} == {m: sum(p.values()) for m, p in shares.items()}
        model.drawn.append(Drawn(outcome, shares, set(model.holds) & set(shares)))
        return None

    async def approve(self, by: str) -> Why | None:
        model = self.model
        if not model.drawn:
            return None
        drawn = model.drawn[-1]
        outcome = await approve(self.conn, drawn.batch.batch_no, by, self.now)
        if drawn.state != "PROPOSED":
            return self._refused(outcome, Why.ALREADY_DECIDED)
        if by == "li.wei":
            return self._refused(outcome, Why.SAME_PERSON)
        assert isinstance(outcome, Batch), outcome
        drawn.state = "APPROVED"
        drawn.held |= set(model.holds) & set(drawn.shares)
        for merchant, parts in drawn.shares.items():
            if merchant not in drawn.held:
                self._move(merchant, parts, 1)
        return None

    def _move(self, merchant: int, parts: Counter[int], sign: int) -> None:
        """PAYABLE -> SETTLING, or back with -1."""
        self.model.settling[merchant] += sign * sum(parts.values())
        for bucket, fen in parts.items():
            self.model.payable[merchant, bucket] -= sign * fen
            self.model.settled[merchant, bucket] += sign * fen

    async def reject(self) -> Why | None:
        if not self.model.drawn:
            return None
        drawn = self.model.drawn[-1]
        outcome = await reject(self.conn, drawn.batch.batch_no, "li.wei", "no", self.now)
        if drawn.state != "PROPOSED":
            return self._refused(outcome, Why.ALREADY_DECIDED)
        assert isinstance(outcome, Batch)
        drawn.state = "REJECTED"
        return None

    async def answer(self, which: int, results: list[str | None]) -> Why | None:
        """The bank answers some lines of some approved batch; what was answered before is refused whole."""
        drawn = [one for one in self.model.drawn if one.state == "APPROVED" and set(one.shares) - one.held]
        if not drawn:
            return None
        one = drawn[which % len(drawn)]
        order = await exported(self.town, one.batch)
        rows: list[AnswerRow] = []
        said: dict[int, str] = {}
        for line, result in zip(await get_lines(self.conn, one.batch.batch_no), results, strict=False):
            if result and line.merchant_no not in one.held:
                said[line.merchant_no] = result
                rows.append(
                    AnswerRow(
                        len(rows) + 1, line.line_no, line.payee_account, line.amount_fen, result, self.today, "B", "x"
                    )
                )
        # A reference of its own makes each file another file.
        rows = [row._replace(bank_reference=f"B{next(self.returns)}") for row in rows]
        data = write_answer(one.batch.batch_id, order.sha256, rows)
        before = await contents(self.conn)
        outcome = await answer(self.conn, one.batch.batch_no, data, by="li.wei", now=self.now)
        if set(said) & set(one.answers):
            assert await contents(self.conn) == before
            return self._refused(outcome, Why.ALREADY_ANSWERED)
        assert isinstance(outcome, Answered), outcome
        one.answers |= said
        for merchant, result in said.items():
            fen = sum(one.shares[merchant].values())
            if result == "REJECTED":
                self._move(merchant, one.shares[merchant], -1)
            else:
                self.model.settling[merchant] -= fen
                self.model.paid += fen
        return None

    async def expire(self) -> None:
        model = self.model
        await expire_over(self.conn, self.now)
        if self.now < at(day_after(VALID_DAYS)) + EXPIRY_GRACE:
            return
        for (_, bucket), count in model.unused.items():
            model.issued[bucket] -= count * FACE_FEN
            model.returned += count * FACE_FEN
            model.moved_returned += count * FACE_FEN
        model.unused.clear()

    async def give_back(self, amount_fen: int, to: ReturnTo) -> Why | None:
        model = self.model
        reference = f"return {next(self.returns)}"
        outcome = await return_unused(self.conn, CAMPAIGN_NO, to, amount_fen, "li.wei", reference, self.now)
        if amount_fen > model.closed_returned():
            return self._refused(outcome, Why.NOT_ENOUGH)
        assert isinstance(outcome, Returned), outcome
        model.returned -= amount_fen
        model.moved_returned -= amount_fen
        model.city_fund -= amount_fen * (to is ReturnTo.CITY_FUND)
        model.budget += amount_fen * (to is ReturnTo.BUDGET)
        return None

    @staticmethod
    def _refused(outcome: object, why: Why) -> Why:
        assert isinstance(outcome, Refused), outcome
        assert outcome.why is why
        return why

    async def check(self) -> None:
        rows = await self.conn.fetch(
            "SELECT kind::text, merchant_no, bucket, balance_fen FROM balance"
            " WHERE campaign_no = 1 AND balance_fen <> 0"
        )
        held = {(row["kind"], row["merchant_no"], row["bucket"]): row["balance_fen"] for row in rows}
        assert held == self.model.accounts()
        await assert_books(self.conn)


MERCHANT, BUCKET = st.integers(1, MERCHANTS), st.integers(0, BUCKETS - 1)
RESULT = st.sampled_from(["PAID", "PAID", "REJECTED", None])
STEPS = st.one_of(
    st.tuples(st.just("sell"), MERCHANT, BUCKET, st.integers(1, 2), st.integers(1, 4)),
    st.tuples(st.just("refund"), st.integers(0, 30)),
    st.tuples(st.just("refund"), st.integers(0, 30)),
    st.tuples(st.just("days"), st.sampled_from([1, 1, 1, 2, 16])),
    st.tuples(st.just("hold"), MERCHANT),
    st.tuples(st.just("release"), MERCHANT),
    st.tuples(st.just("propose")),
    st.tuples(st.just("approve"), st.sampled_from(["zhang.min", "zhang.min", "li.wei"])),
    st.tuples(st.just("reject")),
    st.tuples(st.just("answer"), st.integers(0, 3), st.lists(RESULT, min_size=3, max_size=3)),
    st.tuples(st.just("expire")),
    st.tuples(st.just("give_back"), st.integers(1, 6).map(lambda n: n * FACE_FEN), st.sampled_from(list(ReturnTo))),
)
# Scenes get somewhere that single random steps seldom reach: paid batches, debts, expiry, returned money.
PAID = [("days", 1), ("propose",), ("approve", "zhang.min"), ("answer", 0, ["PAID"] * 3)]
REFUNDS = [("refund", which) for which in range(8)]
SCENES = st.one_of(
    STEPS.map(lambda step: [step]),
    STEPS.map(lambda step: [step]),
    st.just(PAID),
    st.just(PAID[:3]),
    st.just([*PAID, *REFUNDS]),
    st.just([("sell", 1, 0, 1, 1), ("sell", 2, 1, 1, 1), ("hold", 1), *PAID, ("release", 1)]),
    st.just([("days", 1), ("propose",), ("approve", "li.wei")]),
    st.permutations(REFUNDS),
    st.just(
        [("days", 16), ("days", 16), ("expire",), ("days", 1), ("propose",), ("give_back", FACE_FEN, ReturnTo.BUDGET)]
    ),
)
PROGRAMS = st.lists(SCENES, min_size=4, max_size=16)

MAY_CLOSE_A_DAY = "propose"


def unrolled(program: list[Any]) -> Iterator[Any]:
    for part in program:
        yield from part


@pytest.mark.timeout(300)
@settings(
    max_examples=times(10, 30), deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
@given(program=PROGRAMS)
async def test_books_and_model_agree_after_every_step(cluster: stores.Cluster, program: list[Any]) -> None:
    async with stores.database(cluster) as database, database.connection() as conn:
        world = World(await build(conn, buckets=BUCKETS, merchants=MERCHANTS, debt_fen_max=DEBT_FEN_MAX))
        for name, *arguments in unrolled([[("sell", 1, 0, 1, 4), ("sell", 1, 1, 1, 2)], *program]):
            before = await contents(conn)
            refused = await getattr(world, name)(*arguments)
            if refused and name not in (MAY_CLOSE_A_DAY, "answer"):
                assert await contents(conn) == before
            await world.check()


def test_the_model_can_disagree() -> None:
    model = Model()
    model.payable[1, 0] = 1
    assert model.accounts() != Model().accounts()
