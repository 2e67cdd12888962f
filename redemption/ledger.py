"""The till's side of the ledger: every statement it makes, each within one bucket.

All transaction policy of the checkout is here. Each method is one transaction in each bucket it needs, durable when
it returns. Raises StoreDown when PostgreSQL did not answer: then the outcome is not known, and the same request sent
again finds out.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import date, datetime
from operator import itemgetter
from typing import Any, TypeVar
from uuid import UUID

import msgspec

import sql
from kernel.postgres import Pool, connected
from redemption.numbers import Number

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Row = TypeVar("Row", bound=msgspec.Struct)
Act = Callable[[Sequence[Item], int], Awaitable[Sequence[Answer]]]

_queries = sql.load("checkout")


class VoucherState(msgspec.Struct, frozen=True):
    """How a voucher stands, seen by one request. `cap`: the cap (till_outcome) that its use would break; `mine_*`: what
    this very request did before."""

    stock_no: int | None
    person: UUID | None
    claimed_at: datetime | None
    last_attempt: int | None
    last_credit: str | None
    is_held: bool
    last_at: datetime | None
    is_stock_expired: bool
    cap: str | None
    mine_at: datetime | None
    mine_bill_fen: int | None
    mine_order_no: str | None
    mine_expires_at: datetime | None


class HoldState(msgspec.Struct, frozen=True):
    """A hold by its number; all None when there is none. `ended*`: how it ended before its time (hold_outcome), when,
    and under which number; None when it did not."""

    stock_no: int | None
    terminal_no: int | None
    bill_fen: int | None
    subsidy_fen: int | None
    order_no: str | None
    held_at: datetime | None
    expires_at: datetime | None
    person: UUID | None
    claimed_at: datetime | None
    ended: str | None
    ended_at: datetime | None
    ended_by: str | None
    is_past: bool


class UseState(msgspec.Struct, frozen=True):
    """A redemption by its number, and what was given back of it. `mine_*`: by the very refund that asks; `room_fen`:
    how much more of earlier days' sales the merchant may give back, None for a sale of the day itself."""

    stock_no: int | None
    attempt: int | None
    bill_fen: int | None
    subsidy_fen: int | None
    order_no: str | None
    redeemed_at: datetime | None
    person: UUID | None
    claimed_at: datetime | None
    refunds: int
    refunded_fen: int
    back_fen: int
    is_restored: bool | None
    refunded_at: datetime | None
    refund_request_no: str | None
    mine_refund_fen: int | None
    mine_subsidy_fen: int | None
    mine_at: datetime | None
    mine_credit: str | None
    mine_back_fen: int | None
    room_fen: int | None


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """One redemption to book; a hold when `expires_at` is set. `is_*_here`: the number's home is the voucher's."""

    voucher_id: int
    stock_no: int
    merchant_no: int
    terminal_no: int
    bill_fen: int
    subsidy_fen: int
    request_no: str
    order_no: str
    expires_at: datetime | None
    request_key: UUID
    order_key: UUID
    body_hash: int
    is_use_here: bool
    is_order_here: bool
    taken_at: datetime
    taken_on: date
    is_offline: bool


class HoldEnd(msgspec.Struct, frozen=True, kw_only=True):
    """One hold to confirm (`use_request_no`) or to cancel (`cancel_request_no`)."""

    voucher_id: int
    merchant_no: int
    hold_request_no: str
    use_request_no: str | None
    cancel_request_no: str | None
    request_key: UUID
    body_hash: int
    is_use_here: bool


class TakeBack(msgspec.Struct, frozen=True, kw_only=True):
    """One refund to book. `refunds`: how many there were when its amounts were worked out."""

    voucher_id: int
    merchant_no: int
    use_request_no: str
    refund_request_no: str
    refund_fen: int
    subsidy_fen: int
    is_restored: bool
    refunds: int


class Ledger:
    """Statements of the checkout."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    # ------------------------------------------------------------ numbers, each in its home bucket

    async def taken(self, numbers: Sequence[Number], oldest: int, buckets: int) -> list[bool]:
        """Which numbers stand for something else than what they were sent with. Only looks."""
        return await self._taken_by("taken", numbers, oldest, buckets)

    async def register(self, numbers: Sequence[Number], oldest: int, buckets: int) -> list[bool]:
        """Registers numbers for vouchers of other buckets; which of them stood for something else already.
        Registering is not undone when what follows is refused."""
        return await self._taken_by("register", numbers, oldest, buckets)

    async def _taken_by(self, query: str, numbers: Sequence[Number], oldest: int, buckets: int) -> list[bool]:
        async def ask(part: Sequence[Number], bucket: int) -> list[bool]:
            scopes, keys, hashes, vouchers, merchants, texts, _ = zip(*part, strict=True)
            async with connected(self._pool) as conn:
                rows = await conn.fetch(
                    _queries[query], bucket, oldest, scopes, keys, hashes, vouchers, merchants, texts
                )
            items = {row["item"] for row in rows}
            return [item in items for item in range(1, len(part) + 1)]

        return await each_bucket(numbers, lambda number: number.home(buckets), ask)

    async def find(self, numbers: Sequence[Number], buckets: int) -> list[int | None]:
        """The vouchers that numbers stand for."""

        async def ask(part: Sequence[Number], bucket: int) -> list[int | None]:
            scopes, keys, _, _, merchants, texts, _ = zip(*part, strict=True)
            async with connected(self._pool) as conn:
                rows = await conn.fetch(_queries["find"], bucket, scopes, keys, merchants, texts)
            found = {row["item"]: row["voucher_id"] for row in rows}
            return [found[item] for item in range(1, len(part) + 1)]

        return await each_bucket(numbers, lambda number: number.home(buckets), ask)

    # ------------------------------------------------------------ vouchers, each in its bucket

    async def states(
        self, asked: Sequence[tuple[int, int, str, bool, date]], bucket: int, now: datetime
    ) -> list[VoucherState]:
        """For each (voucher_id, merchant_no, request_no, is_hold, day), in order, how the voucher stands."""
        vouchers = [voucher_id for voucher_id, *_ in asked]
        ends = min(vouchers, default=0), max(vouchers, default=0)
        return await self._read(VoucherState, "voucher_states", bucket, *_turned(asked), now, *ends)

    async def hold_states(self, asked: Sequence[tuple[int, int, str]], bucket: int) -> list[HoldState]:
        """For each (voucher_id, merchant_no, hold_request_no), in order, the hold."""
        return await self._read(HoldState, "hold_states", bucket, *_turned(asked))

    async def use_states(self, asked: Sequence[tuple[int, int, str, str]], bucket: int, day: date) -> list[UseState]:
        """For each (voucher_id, merchant_no, use_request_no, refund_request_no), in order, the redemption as it stands
        on a day."""
        return await self._read(UseState, "use_states", bucket, *_turned(asked), day)

    async def redeem(
        self, uses: Sequence[Use], bucket: int, now: datetime, oldest: int
    ) -> list[tuple[str, datetime, datetime | None]]:
        """Books redemptions and holds; for each its outcome (till_outcome), its moment, and until when it holds."""
        columns = _turned([msgspec.structs.astuple(use) for use in uses])
        async with connected(self._pool) as conn:
            rows = await conn.fetch(_queries["redeem"], bucket, now, oldest, *columns)
        return [(row["outcome"], row["booked_at"], row["expires_at"]) for row in rows]

    async def end_holds(
        self, ends: Sequence[HoldEnd], bucket: int, now: datetime, day: date, oldest: int
    ) -> list[tuple[str, datetime | None]]:
        """Confirms and cancels; for each its outcome (till_outcome), and when the hold ended."""
        columns = _turned([msgspec.structs.astuple(end) for end in ends])
        async with connected(self._pool) as conn:
            rows = await conn.fetch(_queries["end_holds"], bucket, now, day, oldest, *columns)
        return [(row["outcome"], row["ended_at"]) for row in rows]

    async def refund(
        self, refunds: Sequence[TakeBack], bucket: int, now: datetime, day: date
    ) -> list[tuple[str, str | None, int | None, datetime]]:
        """Books refunds; for each its outcome (till_outcome), where the money went, how much of it, and when."""
        columns = _turned([msgspec.structs.astuple(refund) for refund in refunds])
        async with connected(self._pool) as conn:
            rows = await conn.fetch(_queries["refund"], bucket, now, day, *columns)
        return [(row["outcome"], row["credit"], row["subsidy_fen"], row["refunded_at"]) for row in rows]

    async def uses_of_voucher(
        self, voucher_id: int, merchant_no: int, bucket: int
    ) -> list[tuple[str | None, str | None]]:
        """(use_request_no, hold_request_no) of what a merchant did with a voucher, one of them None; newest first."""
        async with connected(self._pool) as conn:
            rows = await conn.fetch(_queries["uses_of_voucher"], bucket, voucher_id, merchant_no)
        return [(row["use_request_no"], row["hold_request_no"]) for row in rows]

    async def _read(self, shape: type[Row], query: str, *arguments: object) -> list[Row]:
        async with connected(self._pool) as conn:
            rows = await conn.fetch(_queries[query], *arguments)
        fields = itemgetter(*shape.__struct_fields__)
        return [shape(*fields(row)) for row in rows]


async def each_bucket(
    items: Iterable[Item], bucket_of_item: Callable[[Item], int], act: Act[Item, Answer]
) -> list[Answer]:
    """Runs `act(items, bucket)` for each bucket's items, all buckets at the same time; answers in the items' order."""
    parts: dict[int, list[tuple[int, Item]]] = defaultdict(list)
    for place, item in enumerate(items):
        parts[bucket_of_item(item)].append((place, item))
    told = await asyncio.gather(*(act([item for _, item in part], bucket) for bucket, part in parts.items()))
    answers: dict[int, Answer] = {}
    for part, its_answers in zip(parts.values(), told, strict=True):
        answers.update(zip((place for place, _ in part), its_answers, strict=True))
    return [answers[place] for place in range(len(answers))]


def _turned(rows: Sequence[tuple[Any, ...]]) -> list[Sequence[Any]]:
    """Columns in place of rows. One of nothing but None or False goes empty, which PostgreSQL reads as nulls: most of
    what a batch might say (a hold, an upload) most batches do not, and each item that is sent costs."""
    return [() if _says_nothing(column) else column for column in zip(*rows, strict=True)]


def _says_nothing(column: tuple[Any, ...]) -> bool:
    first = column[0]
    return (first is None or first is False) and column.count(first) == len(column)
