"""The storage of rounds that are over: packed, detached into the archive, and at last unlinked from people."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import asyncpg

from kernel.postgres import Connection
from stack.retention.desk import Advance, Custodian, Done, Line, RoundRow, begin, end, queries, rounds
from stack.retention.export import export

LONG_S = 3_600.0
"""Reading or copying a round of millions."""
TRIES_MAX = 20
RETRY_S = 0.5
PAGE = 5_000
LOCKED = "somebody reads or vacuums its tables; the next run tries again"


class Pack:
    """Indexes of rounds in which nothing is written any more: random inserts left them some two thirds full. Vouchers
    once all of them are in the books, what tills write once the campaign is over."""

    async def look(self, desk: Custodian) -> Line:
        due = await _to_pack(desk)
        return Line(
            family="indexes",
            where="PostgreSQL indexes of rounds",
            rule="packed once nothing is written to them any more",
            unit="tables",
            items=sum(1 for one in await rounds(desk) if "ARCHIVE" not in one.done),
            due=len(due),
        )

    async def apply(self, desk: Custodian, advance: Advance) -> Done:
        due, saved = await _to_pack(desk), 0
        for number, (round_no, table) in enumerate(due, start=1):
            saved += await _pack(desk, round_no, table)
            advance(number, len(due))
        return Done(family="indexes", unit="tables", items=len(due), bytes_saved=saved)


async def _to_pack(desk: Custodian) -> list[tuple[int, str]]:
    due = []
    for one in await rounds(desk):
        if "CLAIM_KEYS" not in one.done or "ARCHIVE" in one.done:
            continue
        for row in await desk.conn.fetch(queries["storage"], one.round_no):
            is_over = row["parent"] == "voucher" or one.campaign_ends_at <= desk.now
            if is_over and f"PACK{row['parent']}" not in one.done:
                due.append((one.round_no, row["parent"]))
    return due


async def _pack(desk: Custodian, round_no: int, table: str) -> int:
    """The bytes that it saved. Readers and writers go on meanwhile."""
    part = f"{table}_r{round_no}"
    await begin(desk, round_no, "PACK", table)
    before = await _index_bytes(desk, round_no, table)
    async with desk.owner() as owner:
        await pack_indexes(owner, part)
    after = await _index_bytes(desk, round_no, table)
    await end(desk, round_no, "PACK", table, 1, before, after)
    return before - after


async def pack_indexes(owner: Connection, table: str) -> None:
    """Builds the indexes of one table anew, as tight as they can be. An interrupted one leaves them as they were."""
    for query in ("drop_broken_indexes", "pack_statements"):
        for row in await owner.fetch(queries[query], table):
            await owner.execute(row[0], timeout=LONG_S)


async def _index_bytes(desk: Custodian, round_no: int, table: str) -> int:
    rows = await desk.conn.fetch(queries["storage"], round_no)
    return sum(row["index_bytes"] for row in rows if row["parent"] == table)


class Archive:
    """Detaches rounds: the tables that tills use stay as small as what is still good."""

    async def look(self, desk: Custodian) -> Line:
        here = [one for one in await rounds(desk) if "ARCHIVE" not in one.done]
        due = [one for one in here if one.campaign_ends_at < desk.edge("round_storage")]
        blocked = [f"{one.name}: {why}" for one in due if (why := await _blocked_by(desk, one))]
        return Line(
            family="round_storage",
            where="PostgreSQL tables of rounds",
            rule=f"detached {desk.keep_days['round_storage']} days after the campaign's last voucher ran out",
            unit="rounds",
            items=len(here),
            oldest=min((one.campaign_ends_at for one in here), default=None),
            due=len(due),
            blocked=blocked,
        )

    async def apply(self, desk: Custodian, advance: Advance) -> Done:
        moved, blocked = 0, list[str]()
        due = [
            one
            for one in await rounds(desk)
            if "ARCHIVE" not in one.done and one.campaign_ends_at < desk.edge("round_storage")
        ]
        for number, one in enumerate(due, start=1):
            why = await _blocked_by(desk, one) or await _archive(desk, one)
            moved += why is None
            blocked += [f"{one.name}: {why}"] if why else []
            advance(number, len(due))
        return Done(family="round_storage", unit="rounds", items=moved, blocked=blocked)


async def _blocked_by(desk: Custodian, round_: RoundRow) -> str | None:
    why: str | None = await desk.conn.fetchval(queries["archive_blocked_by"], round_.round_no, desk.now, timeout=LONG_S)
    return why


async def _archive(desk: Custodian, round_: RoundRow) -> str | None:
    """Detaches a round; why not, when it cannot be. Nobody waits longer than 300 ms for it."""
    digest = await export(desk, round_.round_no, desk.export_to) if desk.export_to else None
    for is_checked in (False, True):
        if await _patiently(desk.conn.execute, "bound_round", round_.round_no, is_checked) is None:
            return LOCKED
    row = await _patiently(desk.conn.fetchrow, "archive_round", round_.round_no, desk.by, desk.now, digest)
    return LOCKED if row is None else row["refusal"]


class Numbers:
    """Tills' numbers of rounds in the archive: they follow, page by page."""

    async def look(self, desk: Custodian) -> Line:
        due = await self._due(desk)
        return Line(
            family="till_numbers",
            where="PostgreSQL request_number, person_use",
            rule="go into the archive with their round",
            unit="rounds",
            items=sum(1 for one in await rounds(desk) if "NUMBERS" not in one.done),
            due=len(due),
        )

    async def apply(self, desk: Custodian, advance: Advance) -> Done:
        due = await self._due(desk)
        for number, round_no in enumerate(due, start=1):
            await begin(desk, round_no, "NUMBERS")
            await desk.conn.execute(queries["archive_person_use"], round_no, timeout=LONG_S)
            moved = sum([await _move_numbers(desk, round_no, bucket) for bucket in range(desk.buckets)])
            await end(desk, round_no, "NUMBERS", items=moved)
            advance(number, len(due))
        return Done(family="till_numbers", unit="rounds", items=len(due))

    async def _due(self, desk: Custodian) -> list[int]:
        return [one.round_no for one in await rounds(desk) if "ARCHIVE" in one.done and "NUMBERS" not in one.done]


async def _move_numbers(desk: Custodian, round_no: int, bucket: int) -> int:
    after, moved = UUID(int=0), 0
    while True:
        row = await desk.conn.fetchrow(queries["archive_numbers"], round_no, bucket, after, PAGE)
        assert row is not None
        if row["last"] is None:
            return moved
        after, moved = row["last"], moved + row["moved"]


class Unlink:
    """Rounds in the archive whose rows nobody needs to find by person any more."""

    async def look(self, desk: Custodian) -> Line:
        there = [one for one in await rounds(desk) if "ARCHIVE" in one.done and "UNLINK" not in one.done]
        return Line(
            family="person_link",
            where="PostgreSQL archive",
            rule=f"ended {desk.keep_days['person_link']} days after the last voucher ran out; the money stays",
            unit="rounds",
            items=len(there),
            oldest=min((one.campaign_ends_at for one in there), default=None),
            due=sum(1 for one in there if one.campaign_ends_at < desk.edge("person_link")),
        )

    async def apply(self, desk: Custodian, advance: Advance) -> Done:
        done, blocked = 0, list[str]()
        for one in await rounds(desk):
            is_there = "NUMBERS" in one.done and "UNLINK" not in one.done
            if is_there and one.campaign_ends_at < desk.edge("person_link"):
                why = await _unlink(desk, one.round_no)
                done += why is None
                blocked += [f"{one.name}: {why}"] if why else []
                advance(done, done)
        return Done(family="person_link", unit="rounds", items=done, blocked=blocked)


async def _unlink(desk: Custodian, round_no: int) -> str | None:
    row = await _patiently(desk.conn.fetchrow, "unlink_round", round_no, desk.by, desk.now)
    return LOCKED if row is None else row["refusal"]


async def _patiently(ask: Callable[..., Awaitable[Any]], query: str, *args: object) -> Any:
    """What was asked, or None when others held its locks all the time."""
    for _ in range(TRIES_MAX):
        try:
            return await ask(queries[query], *args, timeout=LONG_S)
        except asyncpg.LockNotAvailableError:
            await asyncio.sleep(RETRY_S)
    return None
