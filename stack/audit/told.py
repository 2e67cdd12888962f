"""Holds what clients were told against the books: see check_client_log."""

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from time import perf_counter
from typing import Any, NamedTuple

import msgspec

from issuer.record import request_key
from kernel.codes import CodeBook
from kernel.partitions import bucket_of, partition_of
from kernel.postgres import Connection
from redemption.numbers import Scope, number_key
from stack.audit.clientlog import ClaimTold, RedeemTold, RefundTold, Told
from stack.audit.report import SHOWN_MAX
from stack.audit.room import Evidence, Room, queries

PAGE = 5_000
"""Records held against the books at once."""
SUCCESSES = ("GRANTED", "REDEEMED", "REFUNDED")


class ClientLogReport(msgspec.Struct, kw_only=True):
    """What became of everything that clients were told. Counts are of records."""

    records: int = 0
    acknowledged: int = 0
    refused: int = 0
    unknown: int = 0
    unknown_carried_out: int = 0
    """Of the unknown, those that turn out to have been carried out."""
    violations: int = 0
    shown: list[str] = msgspec.field(default_factory=list)
    """At most SHOWN_MAX violations, each in words that find it."""
    elapsed_s: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether the books bear out every answer."""
        return not self.violations

    def add(self, what: str) -> None:
        """Count a violation, and show it if it is among the first."""
        self.violations += 1
        if len(self.shown) < SHOWN_MAX:
            self.shown.append(what)


async def check_client_log(
    connection: Connection, records: Iterable[Told] | AsyncIterable[Told], codes: CodeBook
) -> ClientLogReport:
    """Hold every answer that clients were given against the books.

    An acknowledged claim, redemption or refund is there once, as answered. What was refused left
    nothing, unless the same request was sent again and carried out. What a client does not know is
    there once or not at all. Where SOLD_OUT was answered, all vouchers are out.

    connection  outside a transaction, as hanquan_auditor; call it once the drain has caught up
    records     in the order of their answers; read once, PAGE at a time
    codes       turns the codes that clients were told into voucher numbers
    """
    started = perf_counter()
    report = ClientLogReport()
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        checker = _Checker(Room(connection, Evidence()), await _names(connection), codes, report)
        async for page in _pages(records):
            await checker.check(page)
        await checker.finish()
    report.elapsed_s = round(perf_counter() - started, 3)
    return report


class _Stock(NamedTuple):
    stock_no: int
    round_no: int


class _Names(NamedTuple):
    """Our short numbers of the names that clients use."""

    buckets: int
    partners: Mapping[str, int]
    stocks: Mapping[str, _Stock]
    merchants: Mapping[str, int]


class _Entry(NamedTuple):
    """What the books hold for one record's number."""

    times: int
    matches: bool
    """Whether it is what was asked, and, for a success, what was answered."""


class _Checker:
    def __init__(self, room: Room, names: _Names, codes: CodeBook, report: ClientLogReport) -> None:
        self._room = room
        self._names = names
        self._codes = codes
        self._report = report
        self._unknown: set[tuple[str, ...]] = set()
        self._suspects: dict[tuple[str, ...], str] = {}
        self._sold_out: set[str] = set()

    async def check(self, page: Sequence[Told]) -> None:
        claims = [one for one in page if isinstance(one, ClaimTold)]
        uses = [one for one in page if isinstance(one, RedeemTold)]
        refunds = [one for one in page if isinstance(one, RefundTold)]
        entries: list[tuple[Told, _Entry]] = [
            *zip(claims, await self._claims(claims), strict=True),
            *zip(uses, await self._redemptions(uses), strict=True),
            *zip(refunds, await self._refunds(refunds), strict=True),
        ]
        for told, entry in entries:
            self._judge(told, entry)
        self._sold_out.update(one.stock_id for one in claims if one.outcome == "SOLD_OUT")

    async def finish(self) -> None:
        """What only the whole log can tell."""
        for what in self._suspects.values():
            self._report.add(what)
        rows = await self._fetch("log_sold_out", sorted(self._sold_out))
        for row in rows:
            self._report.add(
                f"stock {row['stock_id']}: SOLD_OUT was answered, "
                f"but {row['issued']} of {row['quantity']} vouchers are out"
            )

    def _judge(self, told: Told, entry: _Entry) -> None:
        self._report.records += 1
        number = _number(told)
        if entry.times > 1:
            self._report.add(f"{_words(told)}: there {entry.times} times")
        if told.is_unknown:
            self._report.unknown += 1
            self._report.unknown_carried_out += entry.times > 0
            self._unknown.add(number)
            self._suspects.pop(number, None)
        elif told.outcome in SUCCESSES:
            self._report.acknowledged += 1
            self._suspects.pop(number, None)
            if entry.times == 0:
                self._report.add(f"{_words(told)}: not there")
            elif not entry.matches:
                self._report.add(f"{_words(told)}: there, but not as answered")
        else:
            self._report.refused += 1
            if entry.times and entry.matches and number not in self._unknown:
                self._suspects[number] = f"{_words(told)}: there all the same"

    async def _claims(self, claims: Sequence[ClaimTold]) -> list[_Entry]:
        stocks = [self._names.stocks.get(one.stock_id, _Stock(0, 0)) for one in claims]
        partners = [self._names.partners.get(one.partner_id, 0) for one in claims]
        people = [bytes.fromhex(one.person_token) for one in claims]
        rows = await self._fetch(
            "log_claims",
            [bucket_of(partition_of(person), self._names.buckets) for person in people],
            [request_key(no, one.out_request_no) for no, one in zip(partners, claims, strict=True)],
            [one.person_token for one in claims],
            [one.out_request_no for one in claims],
            partners,
            [stock.round_no for stock in stocks],
        )
        return [
            _Entry(row["times"], self._is_as_told(told, stock, row))
            for told, stock, row in zip(claims, stocks, rows, strict=True)
        ]

    def _is_as_told(self, told: ClaimTold, stock: _Stock, row: Any) -> bool:
        if row["stock_no"] != stock.stock_no:
            return False
        code = told.voucher_code
        return code is None or self._codes.decode(code) == row["voucher_id"]

    async def _redemptions(self, uses: Sequence[RedeemTold]) -> list[_Entry]:
        vouchers = [self._codes.decode(one.voucher_code) or 0 for one in uses]
        rows = await self._fetch(
            "log_redemptions",
            vouchers,
            [self._names.merchants.get(one.merchant_id, 0) for one in uses],
            [one.use_request_no for one in uses],
        )
        return [
            _Entry(
                row["times"],
                (one.bill_fen, one.order_no) == (row["bill_fen"], row["order_no"])
                and one.subsidy_fen in (None, row["subsidy_fen"]),
            )
            for one, row in zip(uses, rows, strict=True)
        ]

    async def _refunds(self, refunds: Sequence[RefundTold]) -> list[_Entry]:
        merchants = [self._names.merchants.get(one.merchant_id, 0) for one in refunds]
        keys = [number_key(Scope.REFUND, no, one.refund_request_no) for no, one in zip(merchants, refunds, strict=True)]
        buckets = [bucket_of(partition_of(key.bytes), self._names.buckets) for key in keys]
        numbers = [one.refund_request_no for one in refunds]
        rows = await self._fetch("log_refunds", buckets, keys, merchants, numbers)
        return [
            _Entry(
                row["times"],
                (one.refund_fen, one.use_request_no) == (row["refund_fen"], row["use_request_no"])
                and one.subsidy_fen in (None, row["subsidy_fen"]),
            )
            for one, row in zip(refunds, rows, strict=True)
        ]

    async def _fetch(self, query: str, first: Sequence[object], *others: object) -> list[Any]:
        if not first:
            return []
        return await self._room.connection.fetch(queries[query], first, *others)


def _number(told: Told) -> tuple[str, ...]:
    match told:
        case ClaimTold():
            return ("claim", told.partner_id, told.person_token, told.stock_id, told.out_request_no)
        case RedeemTold():
            return ("redeem", told.merchant_id, told.use_request_no)
        case RefundTold():
            return ("refund", told.merchant_id, told.refund_request_no)


def _words(told: Told) -> str:
    match told:
        case ClaimTold():
            what = f"claim {told.out_request_no} of partner {told.partner_id}, stock {told.stock_id}"
        case RedeemTold():
            what = f"redemption {told.use_request_no} of merchant {told.merchant_id}"
        case RefundTold():
            what = f"refund {told.refund_request_no} of merchant {told.merchant_id}"
    return f"{what}, told {told.outcome}"


async def _names(connection: Connection) -> _Names:
    partners = await connection.fetch(queries["partner_names"])
    stocks = await connection.fetch(queries["stock_names"])
    merchants = await connection.fetch(queries["merchant_names"])
    return _Names(
        buckets=await connection.fetchval(queries["buckets"]),
        partners={row["partner_id"]: row["partner_no"] for row in partners},
        stocks={row["stock_id"]: _Stock(row["stock_no"], row["round_no"]) for row in stocks},
        merchants={row["merchant_id"]: row["merchant_no"] for row in merchants},
    )


async def _pages(records: Iterable[Told] | AsyncIterable[Told]) -> AsyncIterator[list[Told]]:
    page: list[Told] = []
    async for record in _stream(records):
        page.append(record)
        if len(page) == PAGE:
            yield page
            page = []
    if page:
        yield page


async def _stream(records: Iterable[Told] | AsyncIterable[Told]) -> AsyncIterator[Told]:
    if isinstance(records, AsyncIterable):
        async for record in records:
            yield record
    else:
        for record in records:
            yield record
