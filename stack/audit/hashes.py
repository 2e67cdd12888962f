"""Statements about hashes that the program makes and PostgreSQL cannot: rows are streamed through here."""

from collections.abc import AsyncIterator
from typing import Any

from issuer.record import request_key
from kernel.ids import unpack_voucher_id
from kernel.partitions import partition_of
from redemption.numbers import Number, Scope, body_hash, number_key
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
    """Every number that a till gave is registered, with what it was sent with.

    Both sides are read in the order of vouchers, so that a page of one needs a page of the other.
    """
    buckets = await room.value("buckets")
    registered = _Registered(room)
    wrong, shown = 0, list[str]()
    async for page in _pages(room, "numbers_given"):
        known = await registered.of_vouchers(page[0]["voucher_id"], page[-1]["voucher_id"])
        missing = [
            (scope, row)
            for row in page
            for scope, number in _numbers(*row)
            if (number.bucket(buckets), number.key.bytes, *number[1:]) not in known
        ]
        wrong += len(missing)
        shown += [_words(scope, row) for scope, row in missing[: SHOWN_MAX - len(shown)]]
    return Found(await room.count("examined_numbers"), wrong, tuple(shown))


def _numbers(
    voucher_id: int, merchant_no: int, use: str, order: str | None, refund: str | None, fen: int
) -> tuple[tuple[Scope, Number], ...]:
    """The numbers of a redemption or a refund, as redemption/checkout.py and refund.py register them."""
    if refund is not None:
        key = number_key(Scope.REFUND, merchant_no, refund)
        return ((Scope.REFUND, Number(key, body_hash(use, fen), voucher_id)),)
    order = order or ""
    key = number_key(Scope.USE, merchant_no, use)
    order_key = number_key(Scope.ORDER, merchant_no, order)
    return (
        (Scope.USE, Number(key, body_hash(voucher_id, order, fen), voucher_id)),
        (Scope.ORDER, Number(order_key, body_hash(key, voucher_id), voucher_id)),
    )


def _words(scope: Scope, row: Any) -> str:
    column = {Scope.USE: "use_request_no", Scope.ORDER: "order_no", Scope.REFUND: "refund_request_no"}[scope]
    return f"merchant {row['merchant_no']}, {scope.name.lower()} number {row[column]}: voucher {row['voucher_id']}"


_Entry = tuple[int, bytes, int, int]
"""A registration: bucket, key, hash of the body, voucher."""


class _Registered:
    """Registrations, read once in the order of vouchers."""

    def __init__(self, room: Room) -> None:
        self._pages = _pages(room, "numbers_registered")
        self._ahead: list[_Entry] = []

    async def of_vouchers(self, first: int, last: int) -> set[_Entry]:
        """Those of the vouchers from `first` to `last`; the next call starts at `last` or later."""
        while not self._ahead or self._ahead[-1][3] <= last:
            page = await anext(self._pages, None)
            if page is None:
                break
            self._ahead += map(tuple, page)
        self._ahead = [entry for entry in self._ahead if entry[3] >= first]
        return {entry for entry in self._ahead if entry[3] <= last}


async def _pages(room: Room, query: str) -> AsyncIterator[list[Any]]:
    cursor = await room.connection.cursor(queries[query], timeout=QUERY_TIMEOUT_S)
    while page := await cursor.fetch(PAGE, timeout=QUERY_TIMEOUT_S):
        yield page
