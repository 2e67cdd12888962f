"""Statements about hashes that the program makes and PostgreSQL cannot: rows are streamed through here."""

from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from issuer.record import request_key
from kernel.ids import unpack_voucher_id
from kernel.partitions import partition_of
from redemption.numbers import Number, Scope, body_hash, number
from stack.audit.report import SHOWN_MAX
from stack.audit.room import QUERY_TIMEOUT_S, Found, Room, queries

PAGE = 20_000
"""Rows held here at once."""


async def claims_hash_right(room: Room) -> Found:
    """Every voucher lies in its person's partition, and is found under its claim's number."""
    examined, wrong, shown = 0, 0, list[str]()
    async for page in _pages(room, "vouchers_to_hash"):
        faults = [fault for row in page if (fault := _claim_fault(*row))]
        examined, wrong = examined + len(page), wrong + len(faults)
        shown += faults[: SHOWN_MAX - len(shown)]
    return Found(examined, wrong, tuple(shown))


def _claim_fault(voucher_id: int, person: Any, key: int, partner_no: int, out_request_no: str) -> str | None:
    partition = unpack_voucher_id(voucher_id).partition
    if partition != partition_of(person.bytes):
        return f"voucher {voucher_id}: partition {partition} is not that of person {person}"
    if key != request_key(partner_no, out_request_no):
        return f"voucher {voucher_id}: its key is not that of claim {out_request_no}"
    return None


async def numbers_registered(room: Room) -> Found:
    """Every number that a till gave and that no row of its own bucket bears is registered, with what it was sent with.

    Both sides are read in the order of vouchers, so that a page of one needs a page of the other.
    """
    buckets = await room.value("buckets")
    registered = _Registered(room)
    wrong, shown = 0, list[str]()
    async for page in _pages(room, "numbers_given"):
        known = await registered.of_vouchers(page[0]["voucher_id"], page[-1]["voucher_id"])
        missing = [sent for row in page for sent in _numbers(row, buckets) if not known.holds(sent, buckets)]
        wrong += len(missing)
        shown += [_words(sent) for sent in missing[: SHOWN_MAX - len(shown)]]
    return Found(await room.count("examined_numbers"), wrong, tuple(shown))


def _numbers(row: Any, buckets: int) -> list[Number]:
    """The numbers of one row that are registered apart: all of refunds and cancels, and of redemptions and holds those
    whose home is another bucket than the voucher's. As checkout.py, holds.py and refund.py send them."""
    scope, merchant_no, voucher_id = Scope(row["scope"]), row["merchant_no"], row["voucher_id"]
    if scope in (Scope.REFUND, Scope.CANCEL):
        sent_with = (row["of_number"], row["fen"]) if scope is Scope.REFUND else (row["of_number"],)
        return [number(scope, merchant_no, row["number"], body_hash=body_hash(*sent_with), voucher_id=voucher_id)]
    is_confirmed = scope is Scope.USE and row["of_number"] is not None
    about: tuple[object, ...] = (row["of_number"],) if is_confirmed else (voucher_id, row["order_no"], row["fen"])
    sent = number(scope, merchant_no, row["number"], body_hash=body_hash(*about), voucher_id=voucher_id)
    order = number(Scope.ORDER, merchant_no, row["order_no"], voucher_id=voucher_id)
    return [each for each in (sent, order) if each.home(buckets) != row["bucket"]]


class _Known(NamedTuple):
    """Registrations: with the hash of their body, and without, for a payment's number stands for its voucher alone."""

    whole: set[tuple[int, bytes, int, int]]
    bare: set[tuple[int, bytes, int]]

    def holds(self, sent: Number, buckets: int) -> bool:
        home, key = sent.home(buckets), sent.key.bytes
        if sent.scope is Scope.ORDER:
            return (home, key, sent.voucher_id) in self.bare
        return (home, key, sent.body_hash, sent.voucher_id) in self.whole


def _words(sent: Number) -> str:
    return f"merchant {sent.merchant_no}, {sent.scope.lower()} number {sent.text}: voucher {sent.voucher_id}"


_Entry = tuple[int, bytes, int, int]
"""A registration: bucket, key, hash of the body, voucher."""


class _Registered:
    """Registrations, read once in the order of vouchers."""

    def __init__(self, room: Room) -> None:
        self._pages = _pages(room, "numbers_registered")
        self._ahead: list[_Entry] = []

    async def of_vouchers(self, first: int, last: int) -> _Known:
        """Those of the vouchers from `first` to `last`; the next call starts at `last` or later."""
        while not self._ahead or self._ahead[-1][3] <= last:
            page = await anext(self._pages, None)
            if page is None:
                break
            self._ahead += map(tuple, page)
        self._ahead = [entry for entry in self._ahead if entry[3] >= first]
        known = {entry for entry in self._ahead if entry[3] <= last}
        return _Known(known, {(home, key, voucher_id) for home, key, _, voucher_id in known})


async def _pages(room: Room, query: str) -> AsyncIterator[list[Any]]:
    cursor = await room.connection.cursor(queries[query], timeout=QUERY_TIMEOUT_S)
    while page := await cursor.fetch(PAGE, timeout=QUERY_TIMEOUT_S):
        yield page
