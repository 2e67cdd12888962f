"""Statements about hashes that the program makes and PostgreSQL cannot: rows are streamed through here."""

from collections.abc import AsyncIterator, Sequence
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
    """Every number that a till gave is registered, with what it was sent with."""
    buckets = await room.value("buckets")
    examined, wrong, shown = 0, 0, list[str]()
    async for page in _pages(room, "numbers_to_hash"):
        missing = await _unregistered(room, [_number(*row) for row in page], buckets)
        examined, wrong = examined + len(page), wrong + len(missing)
        shown += [_words(*page[position]) for position in missing[: SHOWN_MAX - len(shown)]]
    return Found(examined, wrong, tuple(shown))


async def _unregistered(room: Room, numbers: Sequence[Number], buckets: int) -> list[int]:
    keys, hashes, vouchers = zip(*numbers, strict=True)
    rows = await room.connection.fetch(
        queries["a3j_numbers_unregistered"],
        [number.bucket(buckets) for number in numbers],
        *(keys, hashes, vouchers),
        timeout=QUERY_TIMEOUT_S,
    )
    return [row["position"] - 1 for row in rows]


def _number(scope: int, merchant_no: int, text: str, voucher_id: int, use: str, order: str, fen: int) -> Number:
    """The registration as it must be; redemption/checkout.py and redemption/refund.py make it."""
    key = number_key(Scope(scope), merchant_no, text)
    match scope:
        case Scope.USE:
            sent = body_hash(voucher_id, order, fen)
        case Scope.ORDER:
            sent = body_hash(number_key(Scope.USE, merchant_no, use), voucher_id)
        case _:
            sent = body_hash(use, fen)
    return Number(key, sent, voucher_id)


def _words(scope: int, merchant_no: int, text: str, voucher_id: int, *_: object) -> str:
    verb = Scope(scope).name.lower()
    return f"merchant {merchant_no}, {verb} number {text}: voucher {voucher_id}"


async def _pages(room: Room, query: str) -> AsyncIterator[list[Any]]:
    cursor = await room.connection.cursor(queries[query], timeout=QUERY_TIMEOUT_S)
    while page := await cursor.fetch(PAGE, timeout=QUERY_TIMEOUT_S):
        yield page
