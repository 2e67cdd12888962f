"""The casebook: flags, holds and blocks in PostgreSQL, and how far the signals are read.

Every write is idempotent, and the position moves in the transaction that writes what was found up to
it: after a crash the same signals are read again, and what is there already stays as it is.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

import msgspec
from prometheus_client import Counter

import sql
from antifraud.finding import Finding, SubjectKind
from antifraud.judge import Cases
from antifraud.reader import START, Position
from antifraud.scores import Block, ScoreRules
from antifraud.signals import STREAM
from kernel.clock import Clock, from_ms, to_ms
from kernel.postgres import ACQUIRE_TIMEOUT_S, Connection, Pool

_queries = sql.load("antifraud")
_flags = Counter("hanquan_flags_opened", "Flags opened", ("detector",))
_holds = Counter("hanquan_merchant_holds_placed", "Merchants whose settlement lines were held")
_blocks = Counter("hanquan_people_blocked", "People whose claims were refused for a while")


class Refused(NamedTuple):
    """A person whose claims are refused until a time. `until_ms` in campaign time."""

    person: str
    until_ms: int


class Casebook:
    """Store facade over sql/queries/antifraud.sql, as the role hanquan_antifraud."""

    def __init__(self, pool: Pool, clock: Clock, rules: ScoreRules) -> None:
        self._pool = pool
        self._clock = clock
        self._rules = rules

    async def position(self) -> Position:
        """Up to where all that was found is written."""
        row = await self._pool.fetchrow(_queries["position"], STREAM, timeout=ACQUIRE_TIMEOUT_S)
        return Position(row["entry_ms"], row["entry_seq"]) if row else START

    async def shards(self) -> int:
        """How many Valkey shards there are; 0 before the city is set up."""
        return await self._pool.fetchval(_queries["shards"]) or 0

    @asynccontextmanager
    async def in_force(self) -> AsyncIterator[list[Refused]]:
        """Everybody who is refused now. Nobody is let off while the block lasts, so a copy is right."""
        async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as conn, conn.transaction():
            await conn.execute(_queries["lock_cases"])
            rows = await conn.fetch(_queries["blocks_in_force"], self._clock.now())
            yield [Refused(row["person"].hex, to_ms(row["expires_at"])) for row in rows]

    async def record(self, cases: Cases, position: Position) -> list[Refused]:
        """Writes cases and position in one transaction; answers who is refused from now on.

        A flag that is open, or was closed after the evidence began, stays the only one; a merchant is
        held and a person refused only where that is new.
        """
        now = self._clock.now()
        async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as conn, conn.transaction():
            if cases:
                await conn.execute(_queries["lock_cases"])
            for finding in cases.findings:
                await self._record_finding(conn, finding, now)
            refused = [await self._record_block(conn, block, now) for block in cases.blocks]
            await conn.execute(_queries["move_position"], STREAM, position.ms, position.seq)
        return [one for one in refused if one is not None]

    async def _record_finding(self, conn: Connection, finding: Finding, now: datetime) -> None:
        flag_id = await conn.fetchval(
            _queries["open_flag"],
            finding.subject_kind,
            _subject(finding),
            finding.detector,
            finding.family,
            finding.points,
            _json(finding.reason),
            from_ms(finding.since_ms),
            now,
        )
        if flag_id is None:
            return
        _flags.labels(finding.detector).inc()
        if finding.subject_kind is SubjectKind.MERCHANT and finding.points >= self._rules.merchant_hold_min:
            reason = finding.reason
            text = f"{reason.zh} {reason.en}"
            if await conn.fetchval(_queries["place_hold"], int(finding.subject), reason.code, text, now):
                _holds.inc()

    async def _record_block(self, conn: Connection, block: Block, now: datetime) -> Refused | None:
        until = now + timedelta(days=self._rules.penalty_days)
        person, since = UUID(block.person), from_ms(block.since_ms)
        placed = await conn.fetchval(
            _queries["open_block"], person, block.points, _json(block.reasons), since, now, until
        )
        if placed is None:
            return None
        _blocks.inc()
        return Refused(block.person, to_ms(until))


def _subject(finding: Finding) -> str:
    return str(UUID(finding.subject)) if finding.subject_kind is SubjectKind.PERSON else finding.subject


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
