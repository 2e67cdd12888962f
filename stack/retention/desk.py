"""What every family of retention works with: the custodian's seat at the stores, and the words for what it found."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import msgspec
from redis.asyncio import Redis

import sql
from kernel.postgres import Connection

queries = sql.load("retention")

Advance = Callable[[int, int], None]
"""Hears how much of one thing is done, and of how much."""
Owner = Callable[[], AbstractAsyncContextManager[Any]]
"""Opens a connection as the owner of the tables."""


class Custodian(msgspec.Struct, frozen=True, kw_only=True):
    """Whoever carries retention out. `now` in campaign time; `conn` is hanquan_custodian's and theirs alone.

    owner      only packing needs it: PostgreSQL lets nobody else do that
    export_to  folder for what is detached; None: no export
    """

    conn: Connection
    owner: Owner
    valkey: Redis
    buckets: int
    shards: int
    by: str
    now: datetime
    keep_days: Mapping[str, int]
    export_to: Path | None = None

    def edge(self, family: str) -> datetime:
        """What is older than this is past its time."""
        return self.now - timedelta(days=self.keep_days[family])


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One family as it stands.

    items    how many of `unit` there are; `due` of them are past their time
    oldest   when the oldest became old
    blocked  why something that is due cannot be done yet
    """

    family: str
    where: str
    rule: str
    unit: str
    items: int = 0
    oldest: datetime | None = None
    due: int = 0
    blocked: Sequence[str] = ()


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What was done to one family."""

    family: str
    unit: str
    items: int = 0
    bytes_saved: int = 0
    blocked: Sequence[str] = ()


class Family(Protocol):
    """A family of rows or keys that are kept equally long."""

    async def look(self, desk: Custodian) -> Line:
        """How it stands; changes nothing."""
        ...

    async def apply(self, desk: Custodian, advance: Advance) -> Done:
        """Removes what is due. Broken off anywhere it is taken up again by the next call."""
        ...


class RoundRow(msgspec.Struct, frozen=True, kw_only=True):
    """A round, when it and its campaign end, and the steps that are done."""

    round_no: int
    campaign_no: int
    name: str
    closes_at: datetime
    campaign_ends_at: datetime
    is_capped: bool
    done: Sequence[str]


async def rounds(desk: Custodian) -> list[RoundRow]:
    """Every round, those that ended first in front."""
    return [RoundRow(**dict(row)) for row in await desk.conn.fetch(queries["rounds"])]


async def begin(desk: Custodian, round_no: int, step: str, part: str = "") -> None:
    """Writes down that a step begins; again changes nothing."""
    await desk.conn.execute(queries["begin_step"], round_no, step, part, desk.by, desk.now)


async def end(
    desk: Custodian, round_no: int, step: str, part: str = "", items: int = 0, before: int = 0, after: int = 0
) -> None:
    """And that it is done."""
    await desk.conn.execute(queries["end_step"], round_no, step, part, desk.now, items, before, after)
