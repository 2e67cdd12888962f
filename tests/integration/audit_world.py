"""A small honest city with a bit of everything, made through the real code: what the audit must pass.

Four days of April 2020. People 0 to 14 hold vouchers of stock DINING, 10 to 15 of MALL, 0 to 4 of
OTHER (another partner's), 20 to 25 of SECOND (round two). Merchant HELD is on hold; REFUNDER owes
the city a refund that came after its settlement.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TypeVar

import msgspec

import sql
from issuer.carry import hash_of
from issuer.record import request_key
from kernel.clock import business_day
from kernel.ids import pack_voucher_id
from kernel.partitions import bucket_of, partition_of
from kernel.postgres import Connection, Pool
from redemption.ledger import HoldEnd, Ledger, TakeBack, Use, each_bucket
from redemption.numbers import Number, Scope, body_hash
from redemption.numbers import number as till_number
from redemption.reconciliation.flow_file import read_flow_file, write_flow_file
from redemption.reconciliation.our_flow import our_flow
from redemption.reconciliation.reconcile import reconcile
from redemption.settlement import settle
from redemption.settlement.answer import answer
from redemption.settlement.answer_csv import AnswerRow, write_answer
from redemption.settlement.batch import get_lines
from redemption.settlement.expire import ReturnTo, expire_over, return_unused
from redemption.settlement.export import Format, Payer, export
from redemption.settlement.refusals import Refused

BUCKETS = 2
CAMPAIGN = 1
FACE_FEN, FUNDED_FEN, BILL_FEN = 2_000, 1_800, 6_500
DAY_1, DAY_2, DAY_3 = date(2020, 4, 19), date(2020, 4, 20), date(2020, 4, 21)
PAYER = Payer("City of Wuhan", "420100000001", "Bank of the City")

Answer = TypeVar("Answer")


def at(day: int, hour: int, minute: int = 0) -> datetime:
    """A moment of April 2020, UTC; the city is eight hours ahead."""
    return datetime(2020, 4, day, hour, minute, tzinfo=UTC)


@dataclass(frozen=True)
class Stock:
    """A stock of the world, with what its tills need."""

    stock_no: int
    round_no: int
    partner_no: int
    merchant_no: int


DINING = Stock(1, 1, 1, 1)
MALL = Stock(2, 1, 1, 2)
OTHER = Stock(3, 1, 2, 3)
SECOND = Stock(4, 2, 1, 1)
HELD, REFUNDER = 3, 4
STOCKS = (DINING, MALL, OTHER, SECOND)
PACK, IN_A_PACK = 1, 25
"""A pack of one voucher of the last stock, and who claimed it."""


def person(number: int) -> bytes:
    """The token of the world's person of that number."""
    return hashlib.blake2b(b"person %d" % number, digest_size=16).digest()


def claim_no(stock: Stock, number: int) -> str:
    """The request number under which a person claimed."""
    return f"claim-{stock.stock_no}-{number}"


def voucher_of(stock: Stock, number: int) -> int:
    """The voucher of a person. Serials run over a round; each stock has its own hundred."""
    serial = 100 * stock.stock_no + number + 1
    return pack_voucher_id(stock.round_no, partition_of(person(number)), serial)


def bucket(voucher_id: int) -> int:
    """Where a voucher lies."""
    return bucket_of(voucher_id >> 28 & 1023, BUCKETS)


async def build(pool: Pool) -> None:
    """Fill an empty database with the world."""
    async with pool.acquire(timeout=5) as connection:
        await found(connection)
        await _issue(connection, at(19, 4, 5), "1-0", {DINING: range(15), MALL: range(10, 16)})
        await _issue(connection, at(19, 4, 6), "2-0", {OTHER: range(5)})
    till = _Till(pool)
    await _first_days(pool, till)
    async with pool.acquire(timeout=5) as connection:
        await _settle(connection)
        await _issue(connection, at(26, 4, 5), "9-0", {SECOND: range(20, 26)})
        await _end_first_round(connection)
    await till.redeem(SECOND, range(20, 23), at(26, 5))
    await till.refund(SECOND, [20], at(26, 6))


def _good(answer: Answer | Refused) -> Answer:
    assert not isinstance(answer, Refused), answer
    return answer


async def found(connection: Connection, shards: int = 1) -> None:
    """A city with its partners, merchants, rounds and stocks, and nothing claimed yet."""
    await connection.execute("INSERT INTO city (buckets, shards) VALUES ($1, $2)", BUCKETS, shards)
    await connection.execute(
        "INSERT INTO partner (partner_id, name_zh, name_en) VALUES ('pay-a', '甲', 'A'), ('pay-b', '乙', 'B')"
    )
    await connection.execute(
        "INSERT INTO merchant (merchant_id, name, category, district, payee_name, payee_account, payee_bank)"
        " SELECT 'shop-' || n, 'Shop ' || n, (ARRAY['DINING', 'MALL', 'DINING', 'DINING'])[n], 'Jianghan',"
        " 'Payee ' || n, '62220000000' || n, 'Bank' FROM generate_series(1, 4) n"
    )
    await connection.execute(
        "INSERT INTO terminal (merchant_no, terminal_id) SELECT n, 'till' FROM generate_series(1, 4) n"
    )
    await connection.execute(
        "INSERT INTO campaign (campaign_id, title_zh, title_en, fund_fen, document, loaded_at)"
        " VALUES ('wuhan-2020', '武汉', 'Wuhan', 1000000, 'campaign: wuhan-2020', $1)",
        at(1, 0),
    )
    await connection.execute("INSERT INTO redeem_cap VALUES (1, 'CAMPAIGN', false, 1000000)")
    for number, day in ((1, 19), (2, 26)):
        await connection.execute(
            "INSERT INTO round VALUES ($1, 1, $2, $3, $4, 200000, 2, 9)", number, f"r{number}", at(day, 4), at(day, 10)
        )
        await connection.execute("SELECT open_round_storage($1)", number)
    for stock in STOCKS:
        await _found_stock(connection, stock)
    await connection.execute(
        "INSERT INTO pack (pack_id, round_no, partner_no) VALUES ('pack-1', 2, $1)", SECOND.partner_no
    )
    await connection.execute("INSERT INTO pack_item VALUES ($1, $2, 1)", PACK, SECOND.stock_no)
    await _operate(connection)
    await connection.execute(
        "INSERT INTO transfer (bucket, campaign_no, kind, debit, credit, amount_fen, reference, booked_at)"
        " VALUES (0, 1, 'FUND', 'CITY_FUND', 'BUDGET', 900000, 'decision 7', $1)",
        at(1, 0),
    )
    await connection.execute(
        "INSERT INTO merchant_hold (merchant_no, reason_code, reason, placed_at) VALUES ($1, 'TEMPO', 'too quick', $2)",
        HELD,
        at(19, 12),
    )


async def _found_stock(connection: Connection, stock: Stock) -> None:
    day = 19 if stock.round_no == 1 else 26
    await connection.execute(
        "INSERT INTO stock (stock_id, round_no, partner_no, category, quantity, face_value_fen,"
        " transaction_minimum_fen, city_bp, platform_bp, merchant_bp, funded_fen, valid_from, valid_until,"
        " refund_policy, state)"
        " VALUES ($1, $2, $3, $4, 15, $5, 6000, 9000, 0, 1000, $6, $7, $8, $9, 'SCHEDULED')",
        f"stock-{stock.stock_no}",
        stock.round_no,
        stock.partner_no,
        "MALL" if stock == MALL else "DINING",
        FACE_FEN,
        FUNDED_FEN,
        at(day, 4),
        at(day, 4) + timedelta(days=4),
        "RETURN_TO_BUDGET" if stock == MALL else "RESTORE",
    )


async def _operate(connection: Connection) -> None:
    """What operators did: a stock submitted, approved and enlarged, and a round rolled over that left nothing."""
    await connection.execute(
        "INSERT INTO stock_move (stock_no, verb, from_state, to_state, moved_by, why, moved_at)"
        " VALUES ($1, 'SUBMIT', 'DRAFT', 'AUDIT', 'Li Na', '', $2),"
        " ($1, 'APPROVE', 'AUDIT', 'SCHEDULED', 'Wang Wei', '', $2)",
        MALL.stock_no,
        at(1, 1),
    )
    await connection.execute(
        "INSERT INTO stock_edit (stock_no, current_quantity, target_quantity, state, asked_by, why, asked_at, done_at)"
        " SELECT stock_no, quantity - 5, quantity, 'DONE', 'Li Na', 'more', $2, $2 FROM stock WHERE stock_no = $1",
        MALL.stock_no,
        at(1, 2),
    )
    await connection.execute(
        "INSERT INTO rollover (from_round_no, to_round_no, carried_fen, returned_fen, rolled_by, why, rolled_at)"
        " VALUES (1, 2, 0, 0, 'Li Na', '', $1)",
        at(25, 1),
    )


async def _issue(connection: Connection, moment: datetime, log_end: str, people: dict[Stock, range]) -> None:
    """What the drain does with one chunk of its log."""
    rows = [
        (
            voucher_of(stock, number),
            moment,
            request_key(stock.partner_no, claim_no(stock, number)),
            person(number).hex(),
            stock.stock_no,
            bucket(voucher_of(stock, number)),
            claim_no(stock, number),
            PACK if (stock, number) == (SECOND, IN_A_PACK) else None,
        )
        for stock, numbers in people.items()
        for number in numbers
    ]
    drain = sql.load("drain")
    await connection.executemany("INSERT INTO voucher VALUES ($1, $2, $3, $4, $5, $6, $7, $8)", rows)
    for one in range(BUCKETS):
        chunk = [row[0] for row in rows if row[5] == one]
        reference = f"shard 0 log {log_end} campaign {CAMPAIGN}"
        money = len(chunk) * FUNDED_FEN
        await connection.execute(
            drain["post_issue"], one, CAMPAIGN, money, len(chunk), hash_of(chunk), reference, moment
        )
    stock_nos = sorted(stock.stock_no for stock in people)
    issued = {stock.stock_no: len(numbers) for stock, numbers in people.items()}
    await connection.execute(drain["add_issued"], 0, stock_nos, [issued[no] for no in stock_nos])
    await connection.execute(drain["start_position"], 0)
    position = await connection.fetchval(drain["position"], 0)
    assert await connection.fetchval(drain["move_position"], 0, position, log_end) is not None


class _Till:
    """Tills of the world: numbers are taken and money is booked as the checkout does it."""

    def __init__(self, pool: Pool) -> None:
        self._ledger = Ledger(pool)

    async def redeem(
        self, stock: Stock, people: Sequence[int], moment: datetime, *, merchant_no: int = 0, again: str = ""
    ) -> None:
        uses = [use_of(stock, number, moment, merchant_no, again) for number in people]
        numbers = [sent for use in uses for sent in numbers_of(use) if sent.home(BUCKETS) != bucket(use.voucher_id)]
        assert not any(await self._ledger.register(numbers, 0, BUCKETS))

        async def book(part: Sequence[Use], in_bucket: int) -> list[str]:
            return [outcome for outcome, _, _ in await self._ledger.redeem(part, in_bucket, moment, 0)]

        assert {*await each_bucket(uses, lambda use: bucket(use.voucher_id), book)} == {"DONE"}

    async def refund(self, stock: Stock, people: Sequence[int], moment: datetime, *, merchant_no: int = 0) -> None:
        backs = [refund_of(use_of(stock, number, moment, merchant_no), stock) for number in people]
        assert not any(await self._ledger.register([refund_number(back) for back in backs], 0, BUCKETS))

        async def book(part: Sequence[TakeBack], in_bucket: int) -> list[str]:
            booked = await self._ledger.refund(part, in_bucket, moment, business_day(moment))
            return [outcome for outcome, _, _, _ in booked]

        assert {*await each_bucket(backs, lambda back: bucket(back.voucher_id), book)} == {"DONE"}

    async def hold(self, stock: Stock, person_no: int, moment: datetime, *, is_confirmed: bool) -> None:
        """Holds a voucher, and ends the hold a minute later."""
        used = use_of(stock, person_no, moment)
        home, later = bucket(used.voucher_id), moment + timedelta(minutes=1)
        hold_no, use_no, stop_no = f"hold-{person_no}", used.request_no, f"cancel-{person_no}"
        held, scope = till_number(Scope.HOLD, used.merchant_no, hold_no), Scope.USE if is_confirmed else Scope.CANCEL
        ended = till_number(scope, used.merchant_no, use_no if is_confirmed else stop_no)
        hashes = used.body_hash, body_hash(hold_no)
        numbers = [
            sent._replace(body_hash=hashed, voucher_id=used.voucher_id)
            for sent, hashed in ((held, hashes[0]), (numbers_of(used)[1], 0), (ended, hashes[1]))
            if sent.home(BUCKETS) != home or sent.scope is Scope.CANCEL
        ]
        assert not any(await self._ledger.register(numbers, 0, BUCKETS))
        wish = msgspec.structs.replace(
            used, request_no=hold_no, request_key=held.key, expires_at=later + timedelta(hours=1)
        )
        wish = msgspec.structs.replace(wish, is_use_here=held.home(BUCKETS) == home)
        assert [each[0] for each in await self._ledger.redeem([wish], home, moment, 0)] == ["DONE"]
        end = HoldEnd(
            voucher_id=used.voucher_id,
            merchant_no=used.merchant_no,
            hold_request_no=hold_no,
            use_request_no=use_no if is_confirmed else None,
            cancel_request_no=None if is_confirmed else stop_no,
            request_key=ended.key,
            body_hash=hashes[1],
            is_use_here=is_confirmed and ended.home(BUCKETS) == home,
        )
        told = await self._ledger.end_holds([end], home, later, business_day(later), 0)
        assert [outcome for outcome, _ in told] == ["DONE"]


def use_of(stock: Stock, person_no: int, moment: datetime, merchant_no: int = 0, again: str = "") -> Use:
    """A person's voucher at the till of the stock's usual merchant, or of another."""
    merchant, voucher_id = merchant_no or stock.merchant_no, voucher_of(stock, person_no)
    use_no = f"use-{stock.stock_no}-{person_no}{again}"
    order_no = f"order-{stock.stock_no}-{person_no}{again}"
    use, order = till_number(Scope.USE, merchant, use_no), till_number(Scope.ORDER, merchant, order_no)
    return Use(
        voucher_id=voucher_id,
        stock_no=stock.stock_no,
        merchant_no=merchant,
        terminal_no=merchant,
        bill_fen=BILL_FEN,
        subsidy_fen=FUNDED_FEN,
        request_no=use_no,
        order_no=order_no,
        expires_at=None,
        request_key=use.key,
        order_key=order.key,
        body_hash=body_hash(voucher_id, order_no, BILL_FEN),
        is_use_here=use.home(BUCKETS) == bucket(voucher_id),
        is_order_here=order.home(BUCKETS) == bucket(voucher_id),
        taken_at=moment,
        taken_on=business_day(moment),
        is_offline=False,
    )


def numbers_of(use: Use) -> list[Number]:
    """What a redemption is sent with."""
    merchant_no, voucher_id = use.merchant_no, use.voucher_id
    return [
        till_number(Scope.USE, merchant_no, use.request_no, body_hash=use.body_hash, voucher_id=voucher_id),
        till_number(Scope.ORDER, merchant_no, use.order_no, voucher_id=voucher_id),
    ]


def refund_of(use: Use, stock: Stock) -> TakeBack:
    """The refund of a redemption, in full."""
    return TakeBack(
        voucher_id=use.voucher_id,
        merchant_no=use.merchant_no,
        use_request_no=use.request_no,
        refund_request_no=use.request_no.replace("use", "refund"),
        refund_fen=use.bill_fen - FACE_FEN,
        subsidy_fen=use.subsidy_fen,
        is_restored=stock != MALL,
        refunds=0,
    )


def refund_number(back: TakeBack) -> Number:
    """What a refund registers."""
    sent = body_hash(back.use_request_no, back.refund_fen)
    return till_number(
        Scope.REFUND, back.merchant_no, back.refund_request_no, body_hash=sent, voucher_id=back.voucher_id
    )


async def _first_days(pool: Pool, till: _Till) -> None:
    await till.redeem(DINING, range(6), at(19, 5))
    await till.redeem(DINING, [6, 7], at(19, 5, 30), merchant_no=REFUNDER)
    await till.redeem(MALL, range(10, 14), at(19, 6))
    await till.redeem(OTHER, range(3), at(19, 7))
    await till.refund(DINING, [0], at(19, 8))
    await till.refund(MALL, [10], at(19, 9))
    async with pool.acquire(timeout=5) as connection:
        await _settle_first_day(connection)
    await till.redeem(DINING, [0], at(20, 5), again="-again")
    await till.refund(DINING, [6, 7], at(20, 6), merchant_no=REFUNDER)
    await till.hold(MALL, 14, at(20, 7), is_confirmed=True)
    await till.hold(MALL, 15, at(20, 7), is_confirmed=False)


async def _settle_first_day(connection: Connection) -> None:
    """Day one: proposed, approved, sent to the bank; one line comes back."""
    batch = _good(await settle.propose(connection, CAMPAIGN, DAY_1, "li", at(19, 17)))
    _good(await settle.approve(connection, batch.batch_no, "wang", at(19, 18)))
    order = _good(await export(connection, batch.batch_no, payer=PAYER, form=Format.CSV, by="wang", now=at(19, 19)))
    lines = [line for line in await get_lines(connection, batch.batch_no) if line.state == "SETTLING"]
    rows = [
        AnswerRow(
            row_no,
            line.line_no,
            line.payee_account,
            line.amount_fen,
            "REJECTED" if line.merchant_no == MALL.merchant_no else "PAID",
            DAY_2,
            f"bank-{row_no}",
            "account closed" if line.merchant_no == MALL.merchant_no else "",
        )
        for row_no, line in enumerate(lines, start=1)
    ]
    file = write_answer(order.batch_id, order.sha256, rows)
    _good(await answer(connection, batch.batch_no, file, by="li", now=at(20, 1)))


async def _settle(connection: Connection) -> None:
    """Day two: turned down. Day three: approved, and on its way."""
    turned_down = _good(await settle.propose(connection, CAMPAIGN, DAY_2, "li", at(20, 17)))
    _good(await settle.reject(connection, turned_down.batch_no, "zhao", "a typing error", at(20, 18)))
    on_its_way = _good(await settle.propose(connection, CAMPAIGN, DAY_3, "wang", at(21, 17)))
    _good(await settle.approve(connection, on_its_way.batch_no, "li", at(21, 18)))
    rows = await our_flow(connection, CAMPAIGN, 1, DAY_1)
    flow = _good(read_flow_file(write_flow_file("pay-a", "wuhan-2020", DAY_1, rows), None))
    _good(await reconcile(connection, CAMPAIGN, DAY_1, flows=[flow], by="zhao", now=at(21, 19)))


async def _end_first_round(connection: Connection) -> None:
    """Unused vouchers of round one expire; their money goes where it is ordered."""
    assert await expire_over(connection, at(26, 4, 30), timedelta(hours=1))
    for to, reference in ((ReturnTo.CITY_FUND, "minutes 12"), (ReturnTo.BUDGET, "minutes 13")):
        _good(await return_unused(connection, CAMPAIGN, to, 1_000, "zhao", reference, at(26, 4, 40)))
