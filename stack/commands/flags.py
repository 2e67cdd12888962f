"""./hanquan flags: what anti-fraud saw, and what people decide about it."""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated
from uuid import UUID

import asyncpg
import msgspec
from cyclopts import App, Parameter
from rich.console import RenderableType

from antifraud import explain, review
from kernel.clock import open_clock
from kernel.postgres import Connection
from kernel.valkey import open_valkey
from stack.console import Data, out, run
from stack.data_folder import DEFAULT, DataFolder
from stack.errors import StackError
from stack.reach import Reach

READER = "hanquan_auditor"
DECIDER = "hanquan_finance"

Json = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON.")]
By = Annotated[str, Parameter(help="Who decided.")]
Note = Annotated[str, Parameter(help="Why, for the record.")]

app = App(name="flags", help="Show what anti-fraud flagged and why; release a merchant's payments.")


@app.command(name="list")
def list_flags(
    *,
    closed: Annotated[bool, Parameter(negative=(), help="Closed ones, too.")] = False,
    merchant: Annotated[str | None, Parameter(help="Of this merchant only.")] = None,
    limit: int = review.LIMIT,
    json: Json = False,
    data: Data = DEFAULT,
) -> None:
    """List open flags, newest first."""
    flags = run(_read(data, closed_too=closed, merchant_id=merchant, limit=limit)) or []
    _print(flags, explain.flags_table(flags) if flags else "no flags", json)


@app.command
def show(flag_id: int, *, json: Json = False, data: Data = DEFAULT) -> None:
    """Show one flag with its reason."""
    flags = run(_read(data, closed_too=True, flag_id=flag_id, limit=1)) or []
    if not flags:
        raise StackError(f"no flag {flag_id}; see: ./hanquan flags list --closed")
    _print(flags[0], explain.explain(flags[0]), json)


@app.command
def release(merchant_id: str, *, by: By, note: Note, json: Json = False, data: Data = DEFAULT) -> None:
    """Release a merchant's held payments and close its flags as cleared."""
    released = run(_release(data, merchant_id, by, note))
    if released is None:
        raise StackError(f"no merchant {merchant_id}")
    counts = f"{len(released.hold_ids)} holds released, {len(released.flag_ids)} flags closed"
    _print(released, f"{merchant_id}: {counts}", json)


@app.command
def blocks(*, limit: int = review.LIMIT, json: Json = False, data: Data = DEFAULT) -> None:
    """List people whose claims are refused now, and why."""
    found = run(_read_blocks(data, limit)) or []
    _print(found, explain.blocks_table(found) if found else "nobody is blocked", json)


@app.command
def unblock(person: UUID, *, by: By, note: Note, data: Data = DEFAULT) -> None:
    """Let a person claim again before the penalty expires."""
    if not run(_unblock(data, person, by, note)):
        raise StackError(f"nothing stands against {person}")
    out.print(f"{person} may claim again")


async def _read(
    data: Path,
    *,
    closed_too: bool,
    limit: int,
    merchant_id: str | None = None,
    flag_id: int | None = None,
) -> list[review.FlagView]:
    async with _connected(_reach(data), READER) as conn:
        return await review.read_flags(
            conn, closed_too=closed_too, merchant_id=merchant_id, flag_id=flag_id, limit=limit
        )


async def _read_blocks(data: Path, limit: int) -> list[review.BlockView]:
    async with _connected(_reach(data), READER) as conn:
        return await review.read_blocks(conn, _now(), limit)


async def _release(data: Path, merchant_id: str, by: str, note: str) -> review.Released | None:
    async with _connected(_reach(data), DECIDER) as conn:
        return await review.release_merchant(conn, merchant_id, by, note, _now())


async def _unblock(data: Path, person: UUID, by: str, note: str) -> bool:
    reach = _reach(data)
    valkey = open_valkey(reach.valkey_url, connections=1)
    try:
        async with _connected(reach, DECIDER) as conn:
            return await review.lift_block(conn, valkey, person, by, note, _now())
    finally:
        await valkey.aclose()


@asynccontextmanager
async def _connected(reach: Reach, role: str) -> AsyncIterator[Connection]:
    conn = await asyncpg.connect(reach.dsn(role), timeout=5, command_timeout=30)
    try:
        yield conn
    finally:
        await conn.close(timeout=5)


def _reach(data: Path) -> Reach:
    return Reach(DataFolder(data))


def _now() -> datetime:
    """The campaign's time: the same clock as the services'."""
    return open_clock(os.environ.get("HANQUAN_CLOCK_FILE")).now()


def _print(value: object, text: RenderableType, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    else:
        out.print(text)
