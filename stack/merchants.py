"""What the merchants' commands share: a seat at the books, files, keys that are kept, tables."""

import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple, TypeVar

import asyncpg
from rich.table import Table
from rich.text import Text

from kernel.clock import CITY_ZONE, open_clock
from kernel.errors import Refusal
from kernel.signing import Algorithm, Signer
from redemption.merchants.application import Application, read_application
from redemption.merchants.book import (
    ApplicationRow,
    Change,
    KeyRow,
    Listed,
    MerchantRow,
    PaperRow,
    StoreRow,
    TerminalRow,
)
from redemption.merchants.findings import Finding
from redemption.merchants.keys import KeyAdded, KeyMaterial, public_key_material
from redemption.merchants.office import WHY_LENGTH_MAX, Office
from stack.console import run
from stack.data_folder import DataFolder
from stack.enrol import new_key
from stack.errors import StackError
from stack.finance import plain, read_file, table
from stack.keystore import KeyStore
from stack.operating import ROLE, granted, staff_name
from stack.reach import Reach

COMMAND_TIMEOUT_S = 120.0
"""A register of a whole city is loaded in one go."""
RUNS_OUT_SOON = timedelta(days=30)

Answer = TypeVar("Answer")


@asynccontextmanager
async def office(reach: Reach, by: str) -> AsyncIterator[Office]:
    """An operator at the books of the stack that runs. Raises StackError when the database does not answer."""
    now = open_clock(os.environ.get("HANQUAN_CLOCK_FILE")).now()
    settings = {"application_name": "merchants", "TimeZone": "UTC"}
    try:
        conn = await asyncpg.connect(
            reach.dsn(ROLE), timeout=5, command_timeout=COMMAND_TIMEOUT_S, server_settings=settings
        )
    except (OSError, TimeoutError, asyncpg.PostgresError) as error:
        raise StackError(f"the database does not answer: {error}") from error
    try:
        yield Office(conn=conn, by=staff_name(by), now=now)
    except TimeoutError as error:
        raise StackError("the database did not answer in time; look how it stands before you try again") from error
    finally:
        await conn.close(timeout=5)


def at_work(data: Path, by: str, work: Callable[[Office], Awaitable[Answer | Refusal]]) -> Answer:
    """What a piece of work at the books answers. Raises StackError for a refusal."""

    async def working() -> Answer:
        async with office(Reach(DataFolder(data)), by) as seat:
            return granted(await work(seat))

    answer = run(working())
    if answer is None:
        raise StackError("interrupted; look how it stands before you try again")
    return answer


def tidy_why(why: str) -> str:
    """A reason, as it is kept. Raises StackError when it is too long."""
    if len(why) > WHY_LENGTH_MAX:
        raise StackError(f"a reason has up to {WHY_LENGTH_MAX} characters")
    return why.strip()


def moment(text: str) -> datetime:
    """A day or a time of the city. Raises StackError."""
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        raise StackError(f"a time reads like 2020-05-01 or 2020-05-01T12:00; not {text}") from None
    return read if read.tzinfo else read.replace(tzinfo=CITY_ZONE)


# ---------------------------------------------------------------- files and keys


def open_application(file: Path) -> tuple[Application, list[Finding]]:
    """An application and what cannot be read of it; papers named by `file` lie beside it. Raises StackError."""

    def hash_of(name: str) -> str | None:
        try:
            return hashlib.sha256((file.parent / name).read_bytes()).hexdigest()
        except (OSError, ValueError):
            return None

    return read_application(read_file(file), hash_of)


class MadeKey(NamedTuple):
    """A key for the books, and the secret when it was made here."""

    key: KeyMaterial
    signer: Signer | None

    def keep(self, data: Path, name: str) -> None:
        """Keeps a secret that was made here in keys.json, in the place of the one before."""
        if self.signer is not None:
            KeyStore(data).add({name: self.signer})


def make_key(reach: Reach, merchant_id: str, public_key: Path | None) -> MadeKey:
    """A merchant's public key from its file, or a new secret."""
    if public_key is not None:
        return MadeKey(granted(public_key_material(read_file(public_key))), None)
    made = new_key(bytes.fromhex(reach.secrets.master_key), "merchant", merchant_id, Algorithm.HMAC)
    key = KeyMaterial(serial_no=made.signer.serial_no, algorithm=Algorithm.HMAC, material=made.material)
    return MadeKey(key, made.signer)


# ---------------------------------------------------------------- tables


def time_of(when: datetime | None) -> str:
    """A time of the city in a table."""
    return "-" if when is None else f"{when.astimezone(CITY_ZONE):%F %T}"


def findings_table(findings: Sequence[Finding], of: str = "") -> Table:
    """Findings in both languages. `of`: what the title begins with."""
    title = f"{of}{len(findings)} finding{'' if len(findings) == 1 else 's'}"
    made = table(title, "code", "where", "说明", "in English")
    for one in findings:
        made.add_row(one.code, plain(one.where), plain(one.zh), plain(one.en))
    return made


def list_table(rows: Sequence[Listed], now: datetime) -> Table:
    """Merchants and applicants; a paper that ran out or soon will is marked."""
    made = table("", "merchant", "standing", "stores >", "terminals >", "papers until", "name")
    for one in rows:
        until = "-" if one.papers_until is None else str(one.papers_until)
        if one.papers_until is not None and one.papers_until <= (now + RUNS_OUT_SOON).astimezone(CITY_ZONE).date():
            until += " !"
        made.add_row(one.merchant_id, one.standing, str(one.stores), str(one.terminals), until, plain(one.name))
    return made


def key_line(added: KeyAdded) -> str:
    """What became of a key, in words."""
    who = f"{added.merchant_id}/{added.terminal_id}"
    line = f"{who} signs with serial_no {added.serial_no} until {time_of(added.not_after)}"
    if added.old_serial_no is not None:
        line += f"; {added.old_serial_no} until {time_of(added.old_not_after)}"
    return line


def head(merchant: MerchantRow | None, applications: Sequence[ApplicationRow]) -> Text:
    """A merchant's name and standing, and a line for each application."""
    lines = [] if merchant is None else [f"{merchant.merchant_id}  {merchant.name}: {standing_of(merchant)}"]
    for one in applications:
        decided = "" if one.decided_by is None else f" by {one.decided_by} {time_of(one.decided_at)}"
        why = f": {one.why}" if one.why else ""
        sent = f"sent by {one.sent_by} {time_of(one.sent_at)}"
        lines.append(f"application {one.application_no}: {sent}, {one.state}{decided}{why}")
    return Text("\n".join(lines))


def standing_of(merchant: MerchantRow) -> str:
    """How a merchant stands, in words."""
    if not merchant.suspended:
        return "ACTIVE"
    until = "" if merchant.suspended_until is None else f" until {time_of(merchant.suspended_until)}"
    return f"SUSPENDED{until}" + (f" ({merchant.suspended_why})" if merchant.suspended_why else "")


def papers_table(papers: Sequence[PaperRow]) -> Table:
    """Papers of an application."""
    made = table("", "paper", "number", "valid from", "until", "SHA-256")
    for one in papers:
        until = "long-term" if one.valid_until is None else str(one.valid_until)
        made.add_row(one.kind, plain(one.number), str(one.valid_from), until, one.sha256[:16] + "...")
    return made


def stores_table(stores: Sequence[StoreRow]) -> Table:
    """Shops."""
    made = table("", "store", "standing", "category", "district", "address")
    for one in stores:
        made.add_row(one.store_id, _standing(one.suspended), one.category, plain(one.district), plain(one.address))
    return made


def terminals_table(terminals: Sequence[TerminalRow], keys: Sequence[KeyRow]) -> Table:
    """Tills, one line a key."""
    made = table("", "terminal", "store", "standing", "key", "algorithm", "until")
    for one in terminals:
        own = [
            (key.serial_no, key.algorithm, time_of(key.not_after)) for key in keys if key.terminal_no == one.terminal_no
        ]
        for key in own or [("none", "-", "-")]:
            made.add_row(one.terminal_id, one.store_id or "-", _standing(one.suspended), *key)
    return made


def changes_table(changes: Sequence[Change]) -> Table:
    """What was done, and by whom."""
    made = table("", "when", "what", "to", "by", "until", "why")
    for one in changes:
        until = time_of(one.until)
        made.add_row(time_of(one.changed_at), one.verb, one.what, plain(one.changed_by), until, plain(one.why))
    return made


def _standing(suspended: bool) -> str:
    return "SUSPENDED" if suspended else "ACTIVE"
