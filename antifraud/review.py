"""What a person may read and decide: flags, holds and blocks.

A program flags, holds and refuses for a while; a person closes the case. Every decision stays on
record with who took it and why.
"""

from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
from redis.asyncio import Redis

import sql
from antifraud.finding import Reason
from antifraud.gate import digest_person, shard_tag, unblock_person
from kernel.postgres import Connection

_queries = sql.load("antifraud")

LIMIT = 200


class FlagView(msgspec.Struct, frozen=True, kw_only=True):
    """A flag as a reader sees it. `subject` is named in the words of the outside where it has one."""

    flag_id: int
    subject_kind: str
    subject: str
    merchant_id: str | None
    merchant_name: str | None
    is_held: bool
    detector: str
    family: str
    points: int
    reason: Reason
    seen_from: datetime
    opened_at: datetime
    closed_at: datetime | None
    closed_by: str | None
    outcome: str | None
    note: str | None


class BlockView(msgspec.Struct, frozen=True, kw_only=True):
    """A person who is refused, and why."""

    block_id: int
    person: UUID
    points: int
    reason: tuple[Reason, ...]
    seen_from: datetime
    placed_at: datetime
    expires_at: datetime


class Released(msgspec.Struct, frozen=True):
    """What a release undid."""

    merchant_id: str
    hold_ids: list[int]
    flag_ids: list[int]


async def read_flags(
    conn: Connection,
    *,
    closed_too: bool = False,
    merchant_id: str | None = None,
    flag_id: int | None = None,
    limit: int = LIMIT,
) -> list[FlagView]:
    """Flags, newest first."""
    rows = await conn.fetch(_queries["read_flags"], closed_too, merchant_id, flag_id, limit)
    return [_view(row, FlagView) for row in rows]


async def read_blocks(conn: Connection, at: datetime, limit: int = LIMIT) -> list[BlockView]:
    """People who are refused at a moment, latest first."""
    rows = await conn.fetch(_queries["read_blocks"], at, limit)
    return [_view(row, BlockView) for row in rows]


async def release_merchant(conn: Connection, merchant_id: str, by: str, note: str, at: datetime) -> Released | None:
    """Releases all holds of a merchant and closes its flags as CLEARED, in one transaction.

    The same evidence will not hold the merchant again. None: no such merchant. Needs hanquan_finance.
    """
    async with conn.transaction():
        merchant_no = await conn.fetchval(_queries["merchant_no"], merchant_id)
        if merchant_no is None:
            return None
        await conn.execute(_queries["lock_cases"])
        holds = await conn.fetch(_queries["release_holds"], merchant_no, by, note, at)
        flags = await conn.fetch(_queries["close_flags"], "merchant", str(merchant_no), at, by, "CLEARED", note)
    return Released(merchant_id, [row["hold_id"] for row in holds], [row["flag_id"] for row in flags])


async def lift_block(conn: Connection, valkey: Redis, person: UUID, by: str, note: str, at: datetime) -> bool:
    """Lets a person claim again, at once; False when nothing stood against them. Needs hanquan_finance.

    The block list is cleared before the commit: if that fails, nothing is lifted and the caller sees
    the fault; if the commit fails, the worker's next copy restores the block.
    """
    async with conn.transaction():
        await conn.execute(_queries["lock_cases"])
        lifted = await conn.fetch(_queries["lift_blocks"], person, at, by, note)
        shards: int = await conn.fetchval(_queries["shards"]) or 0
        for shard in range(shards):
            await unblock_person(valkey, shard_tag(shard), digest_person(person.bytes))
    return bool(lifted)


def _view(row: asyncpg.Record, kind: type[Any]) -> Any:
    fields = dict(row) | {"reason": msgspec.json.decode(row["reason"])}
    return msgspec.convert(fields, kind)
