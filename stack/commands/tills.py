"""./hanquan tills: which terminals are locked for invalid codes, and how to let one go."""

import os
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

import asyncpg
import msgspec
from cyclopts import App, Parameter
from redis.asyncio import Redis
from rich.table import Table

import sql
from kernel.clock import CITY_ZONE, from_ms, open_clock, rfc3339, to_ms
from kernel.errors import StoreDown
from kernel.postgres import Connection
from kernel.valkey import open_valkey
from redemption.locks import Terminal, let_go, read_locks, read_record
from stack.console import Data, out, run
from stack.data_folder import DEFAULT, DataFolder
from stack.errors import StackError
from stack.operating import staff_name
from stack.reach import Reach

ROLE = "hanquan_operator"
READ_WITHIN_S = 5.0

_queries = sql.load("tills")

Json = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON.")]

app = App(name="tills", help="Show terminals that are locked for invalid codes; let one go.")


@dataclass(frozen=True)
class _Seat:
    conn: Connection
    valkey: Redis
    now: datetime


class Locked(msgspec.Struct, frozen=True):
    """A locked terminal, by the names people use."""

    terminal: str
    until: str


class Unlocked(msgspec.Struct, frozen=True):
    """One decision of an operator."""

    terminal: str
    at: str
    by: str
    was_locked: bool


@app.command
def locked(*, json: Json = False, data: Data = DEFAULT) -> None:
    """List the terminals that are locked now, and until when."""
    listed = run(_locked(data)) or []
    _show(json, listed, ("terminal", "locked until"), ((one.terminal, _time(one.until)) for one in listed))


@app.command
def unlock(
    terminal: Annotated[str, Parameter(help="MERCHANT/TERMINAL, such as NOODLES/T1; MERCHANT for its own key.")],
    *,
    by: Annotated[str, Parameter(help="Who decided.")],
    data: Data = DEFAULT,
) -> None:
    """Let a terminal send codes again. Stays on record."""
    was_locked = run(_unlock(data, terminal, staff_name(by)))
    if was_locked is None:
        raise StackError("interrupted; give the same command again")
    said = "may send codes again, within a second" if was_locked else "was not locked; its count begins anew"
    out.print(f"{terminal} {said}", markup=False)


@app.command
def unlocked(*, limit: int = 50, json: Json = False, data: Data = DEFAULT) -> None:
    """List whom operators let go, the newest first."""
    listed = run(_unlocked(data, limit)) or []
    rows = ((one.terminal, _time(one.at), one.by, "yes" if one.was_locked else "no") for one in listed)
    _show(json, listed, ("terminal", "at", "by", "was locked"), rows)


async def _locked(data: Path) -> list[Locked]:
    async with _seat(data) as seat:
        locks = await read_locks(seat.valkey, to_ms(seat.now), within_s=READ_WITHIN_S)
        names = await _names(seat.conn, locks.locked)
    ends = sorted(locks.locked.items(), key=lambda lock: (lock[1], lock[0]))
    return [Locked(names.get(terminal, str(terminal)), rfc3339(from_ms(until_ms))) for terminal, until_ms in ends]


async def _unlock(data: Path, name: str, by: str) -> bool:
    merchant_id, _, terminal_id = name.partition("/")
    async with _seat(data) as seat:
        row = await seat.conn.fetchrow(_queries["terminal_named"], merchant_id, terminal_id or None)
        if row is None:
            raise StackError(f"no terminal is called {name}")
        return await let_go(seat.valkey, Terminal(*row), by, to_ms(seat.now))


async def _unlocked(data: Path, limit: int) -> list[Unlocked]:
    async with _seat(data) as seat:
        record = await read_record(seat.valkey, limit)
        names = await _names(seat.conn, (one.terminal for one in record))
    return [
        Unlocked(names.get(one.terminal, str(one.terminal)), rfc3339(from_ms(one.at_ms)), one.by, one.was_locked)
        for one in record
    ]


async def _names(conn: Connection, terminals: Iterable[Terminal]) -> dict[Terminal, str]:
    asked = sorted(set(terminals))
    rows = await conn.fetch(
        _queries["terminal_names"], [one.merchant_no for one in asked], [one.terminal_no for one in asked]
    )
    return {
        Terminal(row["merchant_no"], row["terminal_no"]): "/".join(
            filter(None, (row["merchant_id"], row["terminal_id"]))
        )
        for row in rows
    }


@asynccontextmanager
async def _seat(data: Path) -> AsyncIterator[_Seat]:
    reach = Reach(DataFolder(data))
    valkey = open_valkey(reach.valkey_url, connections=1)
    try:
        conn = await asyncpg.connect(reach.dsn(ROLE), timeout=5, command_timeout=30)
        try:
            yield _Seat(conn, valkey, open_clock(os.environ.get("HANQUAN_CLOCK_FILE")).now())
        finally:
            await conn.close(timeout=5)
    except StoreDown as error:
        raise StackError(f"give the same command again: {error}") from error
    finally:
        await valkey.aclose()


def _show(as_json: bool, listed: object, titles: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    if as_json:
        sys.stdout.write(msgspec.json.encode(listed).decode() + "\n")
        return
    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, no_wrap=True)
    for row in rows:
        table.add_row(*(cell.replace("[", "\\[") for cell in row))
    out.print(table if listed else "none")


def _time(text: str) -> str:
    return f"{datetime.fromisoformat(text).astimezone(CITY_ZONE):%F %T}"
