"""The till's side of the ledger: every statement it makes, each within one bucket.

All transaction policy of the checkout is here. Each method is one transaction, durable when it returns.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import date, datetime
from typing import Any, TypeVar
from uuid import UUID

import asyncpg
import msgspec

import sql
from kernel.postgres import Pool, connected
from redemption.numbers import Number

Item = TypeVar("Item")
Act = Callable[[Sequence[Item], int], Awaitable[None]]

_queries = sql.load("checkout")


class Registered(msgspec.Struct, frozen=True):
    """What a number was first sent with."""

    body_hash: int
    voucher_id: int


class VoucherState(msgspec.Struct, frozen=True, kw_only=True):
    """How a voucher stands, seen by one request. `mine_*`: what this very request did before."""

    stock_no: int | None
    person: UUID | None
    mine_at: datetime | None
    mine_attempt: int | None
    mine_bill_fen: int | None
    mine_subsidy_fen: int | None
    mine_order_no: str | None
    refund_request_no: str | None
    refunded_at: datetime | None
    refund_credit: str | None
    refund_fen: int | None
    last_attempt: int | None
    last_credit: str | None


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """One redemption to book."""

    voucher_id: int
    stock_no: int
    merchant_no: int
    terminal_no: int
    bill_fen: int
    subsidy_fen: int
    use_request_no: str
    order_no: str


class TakeBack(msgspec.Struct, frozen=True, kw_only=True):
    """One refund to book."""

    voucher_id: int
    merchant_no: int
    use_request_no: str
    refund_request_no: str
    refund_fen: int


class Ledger:
    """Statements of the checkout. Raises StoreDown when PostgreSQL did not answer: then the outcome is
    not known, and the same request sent again finds out."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def owners(self, numbers: Iterable[Number], buckets: int) -> dict[UUID, Registered]:
        """Which of these numbers are taken, and by what. One read in each bucket."""
        owners: dict[UUID, Registered] = {}

        async def read(part: Sequence[Number], bucket: int) -> None:
            async with connected(self._pool) as conn:
                rows = await conn.fetch(_queries["registered"], bucket, [number.key for number in part])
            owners.update(map(_owner, rows))

        await each_bucket(numbers, lambda number: number.bucket(buckets), read)
        return owners

    async def take(self, numbers: Sequence[Number], buckets: int) -> dict[UUID, Registered]:
        """Takes the numbers that are free, durably, and tells whose each is now. One transaction in
        each bucket: taking is not undone when what follows is refused."""
        owners: dict[UUID, Registered] = {}

        async def register(part: Sequence[Number], bucket: int) -> None:
            keys, hashes, vouchers = zip(*part, strict=True)
            async with connected(self._pool) as conn:
                rows = await conn.fetch(_queries["register"], bucket, keys, hashes, vouchers)
            owners.update(map(_owner, rows))

        await each_bucket(numbers, lambda number: number.bucket(buckets), register)
        lost = [number for number in numbers if number.key not in owners]
        return owners | await self.owners(lost, buckets)

    async def states(self, asked: Sequence[tuple[int, int, str]], bucket: int) -> list[VoucherState]:
        """For each (voucher_id, merchant_no, use_request_no), in order, how the voucher stands."""
        vouchers, merchants, numbers = zip(*asked, strict=True)
        async with connected(self._pool) as conn:
            rows = await conn.fetch(_queries["voucher_states"], bucket, vouchers, merchants, numbers)
        return [_state(row) for row in rows]

    async def redeem(self, uses: Sequence[Use], bucket: int, now: datetime, day: date) -> list[tuple[str, datetime]]:
        """Books redemptions; for each its outcome (redeem_outcome) and when it was redeemed."""
        columns = _columns(uses)
        async with connected(self._pool) as conn:
            rows = await conn.fetch(_queries["redeem"], bucket, now, day, *columns)
        return [(row["outcome"], row["redeemed_at"]) for row in rows]

    async def refund(
        self, refunds: Sequence[TakeBack], bucket: int, now: datetime, day: date
    ) -> list[tuple[str, str | None, datetime]]:
        """Books refunds; for each its outcome (refund_outcome), where the money went, and when."""
        columns = _columns(refunds)
        async with connected(self._pool) as conn:
            rows = await conn.fetch(_queries["refund"], bucket, now, day, *columns)
        return [(row["outcome"], row["credit"], row["refunded_at"]) for row in rows]


async def each_bucket(items: Iterable[Item], bucket_of_item: Callable[[Item], int], act: Act[Item]) -> None:
    """Runs `act(items, bucket)` for each bucket's items, all buckets at the same time."""
    parts: dict[int, list[Item]] = defaultdict(list)
    for item in items:
        parts[bucket_of_item(item)].append(item)
    await asyncio.gather(*(act(part, bucket) for bucket, part in parts.items()))


def _columns(items: Sequence[msgspec.Struct]) -> list[list[Any]]:
    rows = [msgspec.structs.astuple(item) for item in items]
    return [list(column) for column in zip(*rows, strict=True)]


def _owner(row: asyncpg.Record) -> tuple[UUID, Registered]:
    return row["request_key"], Registered(row["body_hash"], row["voucher_id"])


def _state(row: asyncpg.Record) -> VoucherState:
    return VoucherState(**{field: row[field] for field in VoucherState.__struct_fields__})
