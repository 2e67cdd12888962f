"""Opens the custodian's seat, looks at every family, and applies what is due."""

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

import asyncpg

from kernel.clock import open_clock
from kernel.errors import Unavailable
from kernel.valkey import open_valkey
from stack.data_folder import DataFolder
from stack.errors import StackError
from stack.operating import staff_name
from stack.reach import Reach
from stack.retention.claim_keys import ClaimKeys
from stack.retention.desk import Advance, Custodian, Done, Family, Line, queries
from stack.retention.gate import Households, Signals, Verdicts
from stack.retention.rows import Callbacks, Cases
from stack.retention.storage import Archive, Numbers, Pack, Unlink
from stack.stores import administrator

ROLE = "hanquan_custodian"
COMMAND_TIMEOUT_S = 60.0

FAMILIES: Sequence[Family] = (
    *(ClaimKeys(), Verdicts(), Households(), Signals(), Cases(), Callbacks()),
    *(Pack(), Archive(), Numbers(), Unlink()),
)
"""In this order: a round is forgotten by the claim store before it is packed, and packed before it is detached."""


@asynccontextmanager
async def custodian(data: Path, by: str = "nobody", export_to: Path | None = None) -> AsyncIterator[Custodian]:
    """A custodian at the stores of the stack that runs in a data folder. Raises StackError when none runs, or when a
    store does not answer; the same command may then be given again."""
    reach, name = Reach(DataFolder(data)), staff_name(by)
    settings = {"application_name": "custodian", "TimeZone": "UTC"}
    conn = await asyncpg.connect(
        reach.dsn(ROLE), timeout=5, command_timeout=COMMAND_TIMEOUT_S, server_settings=settings
    )
    valkey = open_valkey(reach.valkey_url)
    try:
        city = await conn.fetchrow(queries["city"])
        yield Custodian(
            conn=conn,
            owner=lambda: administrator(reach.dsn()),
            valkey=valkey,
            buckets=city["buckets"] if city else 0,
            shards=city["shards"] if city else 0,
            by=name,
            now=open_clock(os.environ.get("HANQUAN_CLOCK_FILE")).now(),
            keep_days={row["family"]: row["keep_days"] for row in await conn.fetch(queries["rules"])},
            export_to=export_to,
        )
    except (Unavailable, TimeoutError) as error:
        raise StackError(f"not finished, give the same command again: {str(error) or type(error).__name__}") from error
    finally:
        await valkey.aclose()
        await conn.close(timeout=5)


async def look(desk: Custodian) -> list[Line]:
    """Every family as it stands."""
    return [await family.look(desk) for family in FAMILIES]


async def apply(desk: Custodian, advance: Callable[[str], Advance]) -> list[Done]:
    """Removes what is due, family by family. `advance` makes what hears of a family's progress."""
    return [await family.apply(desk, advance(type(family).__name__)) for family in FAMILIES]


async def set_rule(desk: Custodian, family: str, keep_days: int, at: datetime) -> None:
    """Changes how long a family is kept. Raises StackError for an unknown family, or a time too short."""
    try:
        kept = await desk.conn.fetchval(queries["set_rule"], family, keep_days, desk.by, at)
    except asyncpg.CheckViolationError:
        rows = await desk.conn.fetch(queries["rules"])
        least = next(row["least_days"] for row in rows if row["family"] == family)
        raise StackError(f"{family} is kept {least} to 36500 days") from None
    if kept is None:
        raise StackError(f"there is no family {family}; there are {', '.join(sorted(desk.keep_days))}")
