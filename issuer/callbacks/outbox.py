"""The outbox: events wait here, in PostgreSQL, from the moment of the fact until they are delivered or given up.

Claims are written down by the drain (`add_claimed`), uses, refunds and expiries by the database's own functions
(redeem_batch, refund_batch, expire_stock). All in the transaction of the fact, and only for who subscribed.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

import asyncpg
import msgspec
import structlog

import sql
from issuer.callbacks.envelope import CallbackKey
from issuer.callbacks.event import Back, Event, EventKey, Kind, Use, Voucher
from kernel.clock import Clock
from kernel.errors import Broken
from kernel.postgres import Connection, Pool, connected
from kernel.sealing import unseal

_queries = sql.load("callbacks")
log = structlog.get_logger()


# ---------------------------------------------------------------- writing down


async def stocks_told_of_claims(conn: Connection) -> frozenset[int]:
    """Numbers of the stocks whose claims are to be told; empty as a rule. Asked once a chunk."""
    return frozenset(row["stock_no"] for row in await conn.fetch(_queries["stocks_told_of_claims"]))


async def add_claimed(conn: Connection, claims: Collection[tuple[int, int, int, datetime]]) -> None:
    """Writes down events of claims (bucket, voucher_id, stock_no, claimed_at), in the caller's transaction,
    which adds the vouchers too. Claims of stocks that nobody is told of must be left out before."""
    if claims:
        columns = zip(*claims, strict=True)
        await conn.execute(_queries["add_claimed"], *map(list, columns))


# ---------------------------------------------------------------- sending


class Subscription(msgspec.Struct, frozen=True, kw_only=True):
    """Where and how one partner is told."""

    partner_no: int
    partner_id: str
    url: str
    may_be_private: bool
    retry_after_s: tuple[int, ...]
    key: CallbackKey


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of an attempt: delivered, or to be tried again, or given up; exactly one of the times is set."""

    event: Event
    delivered_at: datetime | None = None
    next_at: datetime | None = None
    died_at: datetime | None = None
    error: str | None = None


class Leased(msgspec.Struct, frozen=True):
    """Events to send now, and how many rows were moved for that: those behind others were put off."""

    events: list[Event]
    moved: int


class Outbox:
    """The sender's side. Each method is one transaction; StoreDown when PostgreSQL does not answer."""

    def __init__(self, pool: Pool, master_key: bytes, clock: Clock) -> None:
        self._pool = pool
        self._master_key = master_key
        self._clock = clock

    async def ready(self) -> None:
        """Raises when the store does not answer."""
        async with connected(self._pool) as conn:
            await conn.execute(_queries["ready"])

    async def subscriptions(self) -> list[Subscription]:
        """Everybody to be told now. A partner whose key does not open is left out, and the log says so."""
        async with connected(self._pool) as conn:
            rows = await conn.fetch(_queries["subscriptions"], self._clock.now())
        opened = [_try_open(row, self._master_key) for row in rows]
        return [subscription for subscription in opened if subscription is not None]

    async def due_buckets(self, partner_no: int) -> list[int]:
        """Buckets with events to send now."""
        async with connected(self._pool) as conn:
            rows = await conn.fetch(_queries["due_buckets"], partner_no, self._clock.now())
        return [row["bucket"] for row in rows]

    async def first_due(self, partner_no: int) -> datetime | None:
        """When the next event is due, or since when it has been; None when none waits."""
        async with connected(self._pool) as conn:
            moment: datetime | None = await conn.fetchval(_queries["first_due"], partner_no)
        return moment

    async def lease(self, partner_no: int, bucket: int, until: datetime, limit: int) -> Leased:
        """Takes events that are due, at most one of each voucher and never one with an earlier one waiting.
        They are the caller's until `until`; then they are due again."""
        now = self._clock.now()
        async with connected(self._pool) as conn, conn.transaction():
            held = await conn.fetch(_queries["hold_due"], partner_no, bucket, now, limit)
            keys = [[row[name] for row in held] for name in ("voucher_id", "attempt", "kind", "part")]
            rows = await conn.fetch(_queries["lease"], bucket, now, until, *keys)
        return Leased([_event(row) for row in rows if row["is_free"]], len(rows))

    async def mark(self, outcomes: Sequence[Outcome]) -> None:
        """Writes down what came of attempts, and lets the events behind settled ones go. One transaction a bucket."""
        parts: dict[int, list[Outcome]] = defaultdict(list)
        for outcome in sorted(outcomes, key=lambda each: each.event.key):
            parts[outcome.event.bucket].append(outcome)
        for bucket, part in parts.items():
            async with connected(self._pool) as conn, conn.transaction():
                await conn.execute(_queries["mark"], bucket, *_columns(part))
                settled = [each.event.key.voucher_id for each in part if each.next_at is None]
                await conn.execute(_queries["wake"], bucket, settled, self._clock.now())

    async def unfold(self, limit: int) -> bool:
        """Writes down the events of the next part of a booked expiry; False when there was none."""
        async with connected(self._pool) as conn, conn.transaction():
            row = await conn.fetchrow(_queries["open_expiry"])
            if row is None:
                return False
            await conn.execute(_queries["unfold"], row["bucket"], row["stock_no"], self._clock.now(), limit)
            return True


def _try_open(row: asyncpg.Record, master_key: bytes) -> Subscription | None:
    try:
        return _subscription(row, master_key)
    except (Broken, ValueError):  # the other partners must not wait for it
        log.exception("callback_key_not_opened", serial_no=row["serial_no"])
        return None


def _subscription(row: asyncpg.Record, master_key: bytes) -> Subscription:
    material = unseal(master_key, row["key_material"], row["serial_no"])
    return Subscription(
        partner_no=row["partner_no"],
        partner_id=row["partner_id"],
        url=row["url"],
        may_be_private=row["may_be_private"],
        retry_after_s=tuple(row["retry_after_s"]),
        key=CallbackKey.of(row["serial_no"], material),
    )


def _key(row: asyncpg.Record) -> EventKey:
    return EventKey(row["voucher_id"], row["attempt"], Kind(row["kind"]), row["part"])


def _event(row: asyncpg.Record) -> Event:
    return Event(
        key=_key(row),
        bucket=row["bucket"],
        tries=row["tries"],
        happened_at=row["happened_at"],
        voucher=_part(row, Voucher, "stock_id"),
        use=_part(row, Use, "merchant_id"),
        back=_part(row, Back, "refund_request_no"),
    )


def _part(row: asyncpg.Record, kind: Any, told_by: str) -> Any:
    return None if row[told_by] is None else kind(**{field: row[field] for field in kind.__struct_fields__})


def _columns(part: Sequence[Outcome]) -> list[list[object]]:
    rows = [
        (
            *each.event.key[:2],
            each.event.key.kind.value,
            each.event.tries,
            each.next_at,
            each.delivered_at,
            each.died_at,
            each.error,
            each.event.key.part,
        )
        for each in part
    ]
    return [list(column) for column in zip(*rows, strict=True)]
