"""A copy of everything that is stored about a person."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import msgspec

import sql
from kernel.clock import rfc3339
from stack.privacy import holdings
from stack.privacy.holdings import Person, person_of
from stack.retention.desk import Custodian

queries = sql.load("privacy")
READ_TIMEOUT_S = 600.0
"""Rows in the archive are found without an index."""


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """What is stored about a person, under the names of where it is stored.

    books    PostgreSQL: by table, the rows as they stand; stocks and merchants with their names
    memory   Valkey: by what it is
    nowhere  what people ask for and nobody keeps
    """

    person_token: str
    made_at: str
    books: Mapping[str, Sequence[Mapping[str, Any]]]
    memory: Mapping[str, Any]
    nowhere: Sequence[str]


NOT_KEPT = (
    "names, phone and document numbers, addresses: partners have them, the city has a keyed token",
    "claims that were refused: only as signals, and only as long as these last",
    "lists that vouchers were granted to: their hash is kept, the vouchers say who has one",
)


async def export(desk: Custodian, token: str) -> Export:
    """Reads the books in one snapshot, then Valkey. Changes nothing."""
    person = person_of(token, desk.buckets, desk.shards)
    async with desk.conn.transaction(isolation="repeatable_read", readonly=True):
        books = await read_books(desk, person)
    return Export(
        person_token=token,
        made_at=rfc3339(desk.now),
        books=books,
        memory=await _memory(desk, person),
        nowhere=NOT_KEPT,
    )


async def vouchers_of(desk: Custodian, person: Person) -> list[int]:
    """The numbers of a person's vouchers, also of rounds in the archive."""
    args = UUID(bytes=person.token), person.bucket, person.partition
    rows = await desk.conn.fetch(queries["person_vouchers"], *args, timeout=READ_TIMEOUT_S)
    return [row["voucher_id"] for row in rows]


async def read_books(desk: Custodian, person: Person) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """By table, every row about a person."""
    args = UUID(bytes=person.token), person.bucket, await vouchers_of(desk, person)
    books: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in await desk.conn.fetch(queries["person_rows"], *args, timeout=READ_TIMEOUT_S):
        books[row["place"]].append(msgspec.json.decode(row["item"]))
    return await _named(desk, books)


async def _named(desk: Custodian, books: Mapping[str, list[dict[str, Any]]]) -> Mapping[str, list[dict[str, Any]]]:
    rows = [row for table in books.values() for row in table]
    stocks = {row["stock_no"] for row in rows if row.get("stock_no") is not None}
    merchants = {row["merchant_no"] for row in rows if row.get("merchant_no") is not None}
    stock = {row[0]: dict(row) for row in await desk.conn.fetch(queries["stocks"], list(stocks))}
    shop = {row[0]: dict(row) for row in await desk.conn.fetch(queries["merchants"], list(merchants))}
    return {
        table: [row | stock.get(row.get("stock_no", 0), {}) | shop.get(row.get("merchant_no", 0), {}) for row in rows]
        for table, rows in books.items()
    }


async def _memory(desk: Custodian, person: Person) -> Mapping[str, Any]:
    return {
        "remembered_claims": await holdings.remembered_claims(desk, person),
        "face_claimed": await holdings.face_sums(desk, person),
        "gate_verdict": await holdings.verdict(desk, person),
        "households": await holdings.households(desk, person),
        "signals": await holdings.signals(desk, person),
    }
