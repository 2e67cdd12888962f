"""Runs an audit: every statement, in one snapshot that nobody can write in."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from time import perf_counter

import asyncpg
from redis.asyncio import Redis

from kernel.postgres import Connection
from stack.audit import claim_store
from stack.audit.report import AuditReport, StatementReport, Verdict
from stack.audit.room import QUERY_TIMEOUT_S, Evidence, Found, Room, Skipped, queries
from stack.audit.statements import STATEMENTS, Statement

Wins = Callable[[], Awaitable[Mapping[int, int]]]
DAMAGED = (asyncpg.DataCorruptedError, asyncpg.IndexCorruptedError)
"""What PostgreSQL says of a page or an index that cannot be right."""


async def audit(
    connection: Connection,
    *,
    stock_wins: Mapping[int, int] | None = None,
    stock_wins_after: Wins | None = None,
    log_ends: Mapping[int, str] | None = None,
    demand: Mapping[int, int] | None = None,
    on_statement: Callable[[StatementReport], None] = lambda report: None,
) -> AuditReport:
    """Recompute every statement from the immutable rows and report what does not hold.

    connection        outside a transaction; as hanquan_auditor, who may read everything
    stock_wins        wins by stock number in the claim store, read before this call
    stock_wins_after  asked once the snapshot stands; give it where claims still arrive, and the
                      vouchers may lie between the two counts
    log_ends          last entry of each shard's log, read before this call
    demand            by stock number, people who asked and were allowed to, from the clients' log
    on_statement      called after each statement

    One REPEATABLE READ READ ONLY transaction, after the planner was told how many rows there are.
    A statement whose evidence is missing is SKIPPED and says so. Raises what asyncpg raises when
    the database cannot be read.
    """
    started = perf_counter()
    await _inform_planner(connection)
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        taken_at = await Room(connection, Evidence()).value("open_room")
        after = await stock_wins_after() if stock_wins_after else None
        evidence = Evidence(stock_wins=stock_wins, stock_wins_after=after, log_ends=log_ends, demand=demand)
        room = Room(connection, evidence)
        reports = []
        for statement in STATEMENTS:
            reports.append(await _examine(room, statement))
            on_statement(reports[-1])
    return AuditReport(taken_at=taken_at, statements=tuple(reports), elapsed_s=round(perf_counter() - started, 3))


async def _inform_planner(connection: Connection) -> None:
    with suppress(*DAMAGED):  # the statements that read the damaged page say so
        await connection.execute(queries["refresh_statistics"], timeout=QUERY_TIMEOUT_S)


async def audit_city(connection: Connection, valkey: Redis, *, drain_within_s: float = 10.0) -> AuditReport:
    """`audit` with the claim store's evidence, also while claims arrive.

    Waits a while for the drain to catch up with what was won before; whatever it has not drained
    by then is reported. Raises StoreDown when the claim store does not answer.
    """

    async def wins() -> Mapping[int, int]:
        return await claim_store.read_stock_wins(connection, valkey)

    before, log_ends = await wins(), await claim_store.read_log_ends(connection, valkey)
    await claim_store.wait_drained(connection, log_ends, drain_within_s)
    return await audit(connection, stock_wins=before, stock_wins_after=wins, log_ends=log_ends)


async def _examine(room: Room, statement: Statement) -> StatementReport:
    started = perf_counter()
    outcome = await _check(room, statement)
    found = outcome if isinstance(outcome, Found) else Found(0, 0, ())
    return StatementReport(
        id=statement.id,
        sentence_en=statement.en,
        sentence_zh=statement.zh,
        verdict=_verdict(outcome),
        examined=found.examined,
        violations=found.violations,
        shown=found.shown,
        remark_en=outcome.remark.en if outcome.remark else None,
        remark_zh=outcome.remark.zh if outcome.remark else None,
        elapsed_ms=int((perf_counter() - started) * 1000),
    )


async def _check(room: Room, statement: Statement) -> Found | Skipped:
    """Within a savepoint: a damaged page breaks the statements that read it and spares the others."""
    try:
        async with room.connection.transaction():
            return await statement.check(room)
    except DAMAGED as error:
        return Found(0, 1, (f"PostgreSQL cannot read the rows: {error}",))


def _verdict(outcome: Found | Skipped) -> Verdict:
    if isinstance(outcome, Skipped):
        return Verdict.SKIPPED
    return Verdict.BROKEN if outcome.violations else Verdict.HOLDS
