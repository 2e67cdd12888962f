"""The real thing beside the money model: the checkout's own desks on a real database, over a line that can be cut.

Everything a till asks goes through redemption's desks as the role of the checkout, each statement its own commit. What
finance and the drain do is asked of their SQL functions. Two worlds in one database come one after the other.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import date, datetime
from typing import Any, TypeVar, cast
from uuid import UUID

import asyncpg
import msgspec
from redis.asyncio import Redis

import sql
from antifraud.gate import SignalWriter
from issuer.carry import hash_of
from issuer.record import request_key
from kernel.clock import ManualClock, rfc3339
from kernel.codes import CodeBook
from kernel.errors import Code, Refusal, StoreDown
from kernel.postgres import BY_KEYS, Pool
from kernel.signing import Caller
from kernel.till_codes import TillSeeds
from redemption.catalogue import LiveCatalogue
from redemption.checkout import Till
from redemption.holds import HoldDesk
from redemption.ledger import Ledger
from redemption.lockout import Lockout
from redemption.offline import OfflineDesk
from redemption.refund import RefundDesk
from redemption.till_codes import TillCodes
from redemption.wire import (
    CancelAnswer,
    CancelRequest,
    ConfirmRequest,
    Done,
    HoldAnswer,
    HoldRequest,
    OfflineRedemption,
    RedeemAnswer,
    RedeemRequest,
    RefundAnswer,
    RefundRequest,
)
from tests.money_model import Account, Model
from tests.money_requests import Answer, Cancel, Confirm, Lock, Redeem, Refund, Request
from tests.money_terms import OPENS, TERMS

Result = TypeVar("Result")
CODE_KEYS = {1: bytes(16)}
WRITTEN = (
    "offline_use", "refund", "hold_end", "redemption", "hold", "person_use", "request_number", "callback_event",
    "voucher", "stock_issued", "merchant_day", "day_close", "transfer", "account",
)  # fmt: skip
"""Every table that a step may write."""

_drain = sql.load("drain")

STATE = "SELECT concat_ws(' ', {}) AS digest".format(
    ", ".join(
        f"(SELECT count(*) || ':' || coalesce(sum(hash_record_extended(t, 0)), 0) FROM {name} t)" for name in WRITTEN
    )
)
ATTEMPTS = """
SELECT v.voucher_id, v.stock_no, v.bucket, a.*,
       (SELECT array_agg((f.refund_no, f.refund_request_no, f.refund_fen, f.subsidy_fen, f.credit::text, f.refunded_at,
                          f.booked_on) ORDER BY f.refund_no)
          FROM refund f WHERE (f.voucher_id, f.attempt) = (v.voucher_id, a.attempt)) AS parts
  FROM voucher v
  LEFT JOIN (SELECT voucher_id, attempt, coalesce(r.merchant_no, h.merchant_no), coalesce(r.order_no, h.order_no),
                    coalesce(r.bill_fen, h.bill_fen), h.hold_request_no, h.held_at, h.expires_at,
                    CASE e.outcome WHEN 'CANCELLED' THEN e.request_no END,
                    CASE e.outcome WHEN 'CANCELLED' THEN e.ended_at END,
                    r.use_request_no, r.redeemed_at, r.booked_on, o.voucher_id IS NOT NULL
               FROM redemption r FULL JOIN hold h USING (voucher_id, attempt)
               LEFT JOIN hold_end e USING (voucher_id, attempt)
               LEFT JOIN offline_use o USING (voucher_id, attempt)) a USING (voucher_id)
 ORDER BY v.voucher_id, a.attempt
"""


class Line:
    """One connection in the place of a pool. It can be cut before or after a statement: what was sent is then done or
    not done, and whoever asked cannot know."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._lock = asyncio.Lock()
        self._conn: asyncpg.Connection[asyncpg.Record] | None = None
        self.cut_at: int | None = None
        """Statements until the cut; even: before one, odd: after it."""

    @asynccontextmanager
    async def acquire(self, *, timeout: float) -> AsyncIterator["Line"]:
        async with self._lock:
            if self._conn is None or self._conn.is_closed():
                self._conn = await asyncpg.connect(self._dsn, timeout=timeout, server_settings=dict(BY_KEYS))
            yield self

    async def fetch(self, query: str, *args: object) -> list[asyncpg.Record]:
        return await self._sent("fetch", query, *args)  # type: ignore[no-any-return]

    async def fetchrow(self, query: str, *args: object) -> asyncpg.Record | None:
        return await self._sent("fetchrow", query, *args)  # type: ignore[no-any-return]

    async def fetchval(self, query: str, *args: object) -> Any:
        return await self._sent("fetchval", query, *args)

    async def _sent(self, verb: str, query: str, *args: object) -> Any:
        assert self._conn is not None
        self._cut_here()
        answer = await getattr(self._conn, verb)(query, *args)
        self._cut_here()
        return answer

    def _cut_here(self) -> None:
        if self.cut_at is None:
            return
        self.cut_at -= 1
        if self.cut_at < 0:
            assert self._conn is not None
            self.cut_at = None
            self._conn.terminate()
            raise asyncpg.ConnectionDoesNotExistError("the line was cut")

    async def close(self) -> None:
        if self._conn is not None:
            await self._conn.close()


class City:
    """A database with the campaigns, and who asks it. One event loop of its own, so that hypothesis can call it."""

    def __init__(self, dsn: str, till_dsn: str) -> None:
        self._runner = asyncio.Runner()
        self.clock = ManualClock(OPENS)
        self.line = Line(till_dsn)
        self.office = self.run(asyncpg.connect(dsn))
        self.codes = CodeBook(CODE_KEYS)
        self.run(self._open())

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Runs a coroutine to its end."""
        return self._runner.run(work)

    async def _open(self) -> None:
        pool = cast(Pool, self.line)
        catalogue, ledger = LiveCatalogue(pool, self.clock), Ledger(pool)
        await catalogue.refresh()
        nobody_guesses = Redis(port=1)  # wrong codes are counted there, and a signal goes there: neither happens here
        signals = SignalWriter(nobody_guesses, queue_max=0)
        till_codes, lockout = TillCodes(self.codes, TillSeeds(CODE_KEYS)), Lockout(nobody_guesses, self.clock)
        self.till = Till(ledger, catalogue, self.codes, till_codes, lockout, self.clock, signals)
        self.offline = OfflineDesk(self.till, self.clock)
        self.holds = HoldDesk(ledger, catalogue, self.codes, self.clock, signals)
        self.refunds = RefundDesk(ledger, catalogue, self.clock, signals)

    def close(self) -> None:
        self.run(self.line.close())
        self.run(self.office.close())
        self._runner.close()

    # ------------------------------------------------------------ tills

    def ask(self, requests: Sequence[Request], now: datetime) -> list[Answer | None]:
        """The answers to requests that arrive together; None where the outcome is not known."""
        self.clock.set(now)
        return self.run(self._ask(requests))

    async def _ask(self, requests: Sequence[Request]) -> list[Answer | None]:
        return await asyncio.gather(*(self._one(request) for request in requests))

    async def _one(self, request: Request) -> Answer | None:
        caller = Caller(kind="merchant", holder_id="", holder_no=request.shop, terminal_no=request.shop)
        try:
            return _read(await self._sent(caller, request))
        except StoreDown:
            return None

    def _sent(self, caller: Caller, request: Request) -> Coroutine[Any, Any, Done | Refusal]:
        match request:
            case Redeem(_, number, voucher_id, order, bill_fen, None):
                code = self.codes.encode(voucher_id)
                return self.till.redeem(caller, RedeemRequest(number, code, order, bill_fen))
            case Redeem(_, number, voucher_id, order, bill_fen, datetime() as taken_at):
                code = self.codes.encode(voucher_id)
                return self._upload(caller, OfflineRedemption(number, code, order, bill_fen, taken_at))
            case Lock(_, number, voucher_id, order, bill_fen, ttl_s):
                code = self.codes.encode(voucher_id)
                return self.till.hold(caller, HoldRequest(number, code, order, bill_fen, ttl_s))
            case Confirm(_, number, hold_number):
                return self.holds.confirm(caller, ConfirmRequest(number, hold_number))
            case Cancel(_, number, hold_number):
                return self.holds.cancel(caller, CancelRequest(number, hold_number))
            case Refund(_, number, use_number, cash_fen):
                return self.refunds.refund(caller, RefundRequest(number, use_number, cash_fen))
        raise TypeError(request)

    async def _upload(self, caller: Caller, redemption: OfflineRedemption) -> Done | Refusal:
        [told] = await self.offline.upload(caller, [msgspec.Raw(msgspec.json.encode(redemption))])
        if isinstance(told, Refusal) and told.code is Code.SYSTEM_BUSY:
            raise StoreDown(told.detail)
        return told

    # ------------------------------------------------------------ finance and the drain

    def fetch(self, query: str, *args: object) -> list[Any]:
        """Rows of a query, as the owner."""
        return cast(list[Any], self.run(self.office.fetch(query, *args)))

    def execute(self, query: str, *args: object) -> None:
        """A statement, as the owner."""
        self.run(self.office.execute(query, *args))

    def transfer(
        self, kind: str, where: tuple[int, int, int], debit: str, credit: str, fen: int, name: str, at: datetime
    ) -> None:
        """A movement that is a row of `transfer`. `where`: bucket, campaign_no, merchant_no."""
        self.execute(
            "INSERT INTO transfer (bucket, campaign_no, merchant_no, kind, debit, credit, amount_fen, reference,"
            " booked_at) VALUES ($1, $2, $3, $4::text::transfer_kind, $5::text::account_kind,"
            " $6::text::account_kind, $7, $8, $9)",
            *(*where, kind, debit, credit, fen, name, at),
        )

    def drain(self, stock: int, bucket: int, claims: Sequence[tuple[int, UUID, str]], at: datetime, log: int) -> None:
        """A chunk of claims (voucher_id, person, number) is carried over, as the drain does."""
        terms = TERMS[stock]

        async def carry() -> None:
            async with self.office.transaction():
                await self.office.execute(
                    "INSERT INTO voucher"
                    " (voucher_id, claimed_at, request_key, person, stock_no, bucket, out_request_no)"
                    " SELECT v, $4, k, p, $5, $6, n"
                    " FROM unnest($1::bigint[], $2::integer[], $3::uuid[], $7::text[]) a(v, k, p, n)",
                    [voucher_id for voucher_id, _, _ in claims],
                    [request_key(terms.partner, number) for _, _, number in claims],
                    [person for _, person, _ in claims],
                    *(at, stock, bucket),
                    [number for _, _, number in claims],
                )
                name, ids = f"shard 0 log {log}-0 campaign {terms.campaign}", [each[0] for each in claims]
                amount_fen = len(ids) * terms.funded_fen
                await self.office.execute(
                    _drain["post_issue"], bucket, terms.campaign, amount_fen, len(ids), hash_of(ids), name, at
                )
                await self.office.execute(_drain["add_issued"], 0, [stock], [len(ids)])

        self.run(carry())

    def close_day(self, bucket: int, day: date, now: datetime) -> bool:
        return bool(self.fetch("SELECT close_day($1::smallint, $2, $3) AS closed", bucket, day, now)[0]["closed"])

    def expire(self, bucket: int, stock: int, now: datetime) -> int:
        return int(self.fetch("SELECT expire_stock($1::smallint, $2, $3) AS unused", bucket, stock, now)[0]["unused"])

    # ------------------------------------------------------------ what there is

    def state(self) -> str:
        """A digest of every row that a step may write: 64 bits of each, added up, and how many they are."""
        return str(self.fetch(STATE)[0]["digest"])

    def balances(self) -> dict[Account, int]:
        """Every balance as the city reads it."""
        rows = self.fetch(
            "SELECT bucket, campaign_no, merchant_no, kind::text, balance_fen FROM balance WHERE balance_fen <> 0"
        )
        return {(bucket, campaign, shop, kind): fen for bucket, campaign, shop, kind, fen in map(tuple, rows)}

    def attempts(self) -> list[tuple[Any, ...]]:
        """Every voucher with every hold, use and refund of it."""
        return [tuple(row) for row in self.fetch(ATTEMPTS)]

    def begin(self, funds_fen: Mapping[int, int]) -> None:
        """A world anew: everything that steps wrote is gone, and the funds are there."""
        self.execute("SET session_replication_role = replica")
        self.execute(";".join(f"DELETE FROM {name}" for name in WRITTEN))
        self.execute("SET session_replication_role = origin")
        for campaign, fund_fen in funds_fen.items():
            self.transfer("FUND", (0, campaign, 0), "CITY_FUND", "BUDGET", fund_fen, f"fund {campaign}", OPENS)

    def vacuum(self) -> None:
        """Rows of earlier worlds are given back."""
        self.execute(f"VACUUM (TRUNCATE, ANALYZE false) {', '.join(WRITTEN)}")


def attempts_of(model: Model) -> list[tuple[Any, ...]]:
    """The model's side of City.attempts."""
    rows: list[tuple[Any, ...]] = []
    for voucher in sorted(model.vouchers.values(), key=lambda each: each.voucher_id):
        known = (voucher.voucher_id, voucher.stock, voucher.bucket)
        if not voucher.attempts:
            rows.append((*known, *[None] * 15))
        for each in voucher.attempts:
            parts = [
                (turn, p.number, p.cash_fen, p.subsidy_fen, p.credit, p.at, p.booked_on)
                for turn, p in enumerate(each.parts, start=1)
            ]
            rows.append(
                (*known, voucher.voucher_id, each.attempt, each.shop, each.order, each.bill_fen,
                 each.hold_number, each.held_at, each.expires_at, *(each.cancel or (None, None)),
                 each.use_number, each.used_at, each.booked_on if each.use_number else None,
                 each.is_offline, parts or None)
            )  # fmt: skip
    return rows


def _read(told: Done | Refusal) -> Answer:
    """What was told, as the model says it."""
    if isinstance(told, Refusal):
        return Answer(told.rule or told.code.value)
    facts: tuple[Any, ...]
    match told.answer:
        case RedeemAnswer(redeemed_at=at):
            facts = (at,)
        case HoldAnswer(held_at=at, expires_at=until):
            facts = (at, until)
        case CancelAnswer(state=state, ended_at=at):
            facts = (state, at)
        case RefundAnswer(voucher_state=state, subsidy_fen=fen, refunded_at=at):
            facts = (state, fen, at)
    return Answer("REPLAYED" if told.replayed else "DONE", facts)


def worded(answer: Answer) -> Answer:
    """An answer of the model with its moments as tills read them."""
    return answer._replace(facts=tuple(rfc3339(each) if isinstance(each, datetime) else each for each in answer.facts))
