"""What the finance office's commands share: its seat at the database, its clock, how it answers."""

import hashlib
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, TypeVar

import asyncpg
import msgspec
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from kernel.clock import Clock, open_clock
from kernel.money import format_yuan
from kernel.postgres import Connection
from redemption.settlement.batch import find_campaign
from redemption.settlement.refusals import Refused
from stack.console import out
from stack.data_folder import DataFolder
from stack.errors import StackError
from stack.reach import Reach

ROLE = "hanquan_finance"
TABLE_WIDTH_MAX = 400

Answer = TypeVar("Answer")

Json = Annotated[bool, Parameter(name="--json", negative=(), help="Answer in JSON, money in fen.")]
By = Annotated[str, Parameter(name="--by", help="Who does it. An approval needs another name than the proposal.")]


@dataclass(frozen=True)
class Desk:
    """One connection with the rights of finance, and the clock of the stack."""

    conn: Connection
    clock: Clock

    @property
    def now(self) -> datetime:
        return self.clock.now()

    async def campaign_no(self, campaign_id: str) -> int:
        """The campaign's number. Raises StackError if there is none."""
        return granted(await find_campaign(self.conn, campaign_id))


@asynccontextmanager
async def desk(data: Path) -> AsyncIterator[Desk]:
    """A seat at the database of the stack that runs in a data folder. Raises StackError when none runs."""
    dsn = Reach(DataFolder(data)).dsn(ROLE)
    conn = await asyncpg.connect(dsn, timeout=5, server_settings={"application_name": "finance", "TimeZone": "UTC"})
    try:
        yield Desk(conn, open_clock(os.environ.get("HANQUAN_CLOCK_FILE")))
    finally:
        await conn.close(timeout=5)


def granted(answer: Answer | Refused) -> Answer:
    """The answer, or the refusal as one line for the user."""
    if isinstance(answer, Refused):
        raise StackError(f"{answer.why}: {answer.detail}")
    return answer


def tell(answer: object, show: Callable[[], object], *, json: bool) -> None:
    """Print an answer as one line of JSON or as a table."""
    if json:
        sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
    else:
        _print(show())


def _print(shown: object) -> None:
    """No amount is ever cut short for a narrow window, and no title folded to a narrow table."""
    wide = Console(width=max(TABLE_WIDTH_MAX, out.width), highlight=False)
    if isinstance(shown, Table) and shown.title:
        wide.print(shown.title, soft_wrap=True)
        shown.title = None
    wide.print(shown)


def table(title: str, *columns: str) -> Table:
    """An aligned table. A column whose name ends in " >" is set to the right."""
    made = Table(title=title or None, box=None, pad_edge=False)
    for column in columns:
        made.add_column(column.removesuffix(" >"), justify="right" if column.endswith(" >") else "left", no_wrap=True)
    return made


def yuan(amount_fen: int | None) -> str:
    """An amount in a table; a dash for none."""
    return "-" if amount_fen is None else format_yuan(amount_fen)


def plain(text: str | None) -> str:
    """Text from outside in a table: brackets are letters, not markup."""
    return (text or "").replace("[", "\\[")


def read_file(path: Path) -> bytes:
    """A file's bytes. Raises StackError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise StackError(f"cannot read {path}: {error.strerror}") from error


def read_sidecar(path: Path) -> bytes | None:
    """The SHA-256 that came beside a file as `<file>.sha256` (what sha256sum writes), or None without one."""
    sidecar = path.with_name(path.name + ".sha256")
    if not sidecar.exists():
        return None
    words = read_file(sidecar).split()
    try:
        digest = bytes.fromhex(words[0].decode("ascii"))
    except (IndexError, ValueError):
        digest = b""
    if len(digest) != hashlib.sha256().digest_size:
        raise StackError(f"{sidecar} does not begin with a SHA-256 in hex")
    return digest


def write_with_sidecar(path: Path, data: bytes) -> None:
    """A file, and its SHA-256 beside it. Raises StackError."""
    try:
        path.write_bytes(data)
        line = f"{hashlib.sha256(data).hexdigest()}  {path.name}\n"
        path.with_name(path.name + ".sha256").write_text(line, encoding="utf-8")
    except OSError as error:
        raise StackError(f"cannot write {path}: {error.strerror}") from error
