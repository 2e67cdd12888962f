"""The audit room: one snapshot of the database, and the evidence that came from outside of it."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import msgspec

import sql
from kernel.postgres import Connection
from stack.audit.report import SHOWN_MAX

QUERY_TIMEOUT_S = 3_600.0
"""An audit of a whole campaign may read for minutes; a server that hangs still ends it."""

queries = sql.load("audit")


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What the audit is told by others than PostgreSQL. None: nobody told."""

    stock_wins: Mapping[int, int] | None = None
    """Wins by stock number in the claim store, read before the snapshot."""
    stock_wins_after: Mapping[int, int] | None = None
    """The same, read after it; where claims still arrive, the vouchers lie between the two."""
    log_ends: Mapping[int, str] | None = None
    """Last entry of each shard's log, read before the snapshot."""
    demand: Mapping[int, int] | None = None
    """How many people asked for each stock who were allowed to, from the clients' own log."""


class Remark(NamedTuple):
    """A reader should know it: why a statement was skipped, or what was left out."""

    en: str
    zh: str


class Found(NamedTuple):
    """What checking one statement brought to light."""

    examined: int
    violations: int
    shown: tuple[str, ...]
    remark: Remark | None = None


class Skipped(NamedTuple):
    """A statement that could not be checked, and why."""

    remark: Remark


class Room:
    """Where a statement is checked. Not for two tasks at once: it is one connection."""

    def __init__(self, connection: Connection, evidence: Evidence) -> None:
        self.connection = connection
        self.evidence = evidence
        self._counts: dict[str, int] = {}

    async def count(self, query: str, *arguments: object) -> int:
        """What a counting query answers; asked once an audit."""
        if query not in self._counts:
            self._counts[query] = await self.value(query, *arguments)
        return self._counts[query]

    async def value(self, query: str, *arguments: object) -> Any:
        """The one value that a query answers."""
        return await self.connection.fetchval(queries[query], *arguments, timeout=QUERY_TIMEOUT_S)

    async def names(self, query: str) -> list[str]:
        """The first column of a query's rows."""
        rows = await self.connection.fetch(queries[query], timeout=QUERY_TIMEOUT_S)
        return [row[0] for row in rows]

    async def violations(self, query: str, *arguments: object) -> tuple[int, tuple[str, ...]]:
        """How many rows break a statement, and the first SHOWN_MAX of them in words."""
        rows = await self.connection.fetch(queries[query], SHOWN_MAX, *arguments, timeout=QUERY_TIMEOUT_S)
        return (rows[0]["violations"] if rows else 0), tuple(row["what"] for row in rows)


Check = Callable[[Room], Awaitable[Found | Skipped]]
"""Checks one statement in a room."""


def rows(query: str, examined: str) -> Check:
    """The usual check: a query that returns the violating rows, and one that counts the examined."""

    async def check(room: Room) -> Found:
        return Found(await room.count(examined), *await room.violations(query))

    return check
