"""./hanquan privacy: what a person may ask about themselves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import App, Parameter
from rich.console import Group
from rich.table import Table
from rich.text import Text

from kernel.ids import TOKEN
from stack.console import Data, run
from stack.data_folder import DEFAULT, DataFolder
from stack.errors import StackError
from stack.finance import plain, table, tell
from stack.privacy.erase import Erasure
from stack.privacy.erase import erase as erase_person
from stack.privacy.export import Export
from stack.privacy.export import export as export_person
from stack.reach import Reach
from stack.retention.run import custodian

app = App(name="privacy", version_flags=(), help="Export what is stored about a person; erase what may go.")

PersonToken = Annotated[
    str, Parameter(name="--person", help="The person's token, 32 hex digits; - reads it from standard input.")
]
Json = Annotated[bool, Parameter(name="--json", negative=(), help="Answer in JSON, money in fen.")]


@app.command
def export(*, person: PersonToken, json: Json = False, data: Data = DEFAULT) -> None:
    """Print everything that is stored about a person."""
    answer = run(_export(data, _token(person)))
    if answer is not None:
        tell(answer, lambda: _shown(answer), json=json)


@app.command
def erase(
    *,
    person: PersonToken,
    by: Annotated[str, Parameter(help="Who does it.")],
    why: Annotated[str, Parameter(help="On whose request; name nobody. It stands in the books.")],
    dry_run: Annotated[bool, Parameter(negative=(), help="Only say what would be removed.")] = False,
    json: Json = False,
    data: Data = DEFAULT,
) -> None:
    """Remove what is stored about a person and may go, and say what stays, why, and until when."""
    answer = run(_erase(data, _token(person), by, why, dry_run))
    if answer is not None:
        tell(answer, lambda: _told(answer), json=json)


def _token(text: str) -> str:
    """A token on the command line stands in the shell's history; - is for whoever minds."""
    if text == "-":
        text = input().strip()
    if not TOKEN.fullmatch(text):
        raise StackError("--person wants a token: 32 small hex digits")
    return text


async def _export(data: Path, token: str) -> Export:
    async with custodian(data) as desk:
        _check_city(desk.buckets)
        return await export_person(desk, token)


async def _erase(data: Path, token: str, by: str, why: str, dry_run: bool) -> Erasure:
    master_key = bytes.fromhex(Reach(DataFolder(data)).secrets.master_key)
    async with custodian(data, by) as desk:
        _check_city(desk.buckets)
        return await erase_person(desk, token, why, master_key, is_dry_run=dry_run)


def _check_city(buckets: int) -> None:
    if not buckets:
        raise StackError("there is no city yet; load a campaign first")


# ---------------------------------------------------------------- what a person reads


def _shown(answer: Export) -> Group:
    parts: list[Table | Text] = [Text(f"What is stored about {answer.person_token}, {answer.made_at}")]
    memory = {name: _list(held) for name, held in msgspec.to_builtins(answer.memory).items()}
    for name, rows in {**answer.books, **memory}.items():
        parts.append(Text(f"\n{name} ({len(rows)})", style="bold"))
        parts += [_rows(rows)] if rows else []
    parts.append(Text("\nNot kept: " + "; ".join(answer.nowhere)))
    return Group(*parts)


def _list(held: Any) -> Sequence[Mapping[str, Any]]:
    return held if isinstance(held, list) else [] if held is None else [{"is": held}]


def _rows(rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "person"))
    shown = table("", *columns)
    for row in rows:
        shown.add_row(*(plain(_word(row.get(name))) for name in columns))
    return shown


def _word(value: Any) -> str:
    return (
        "" if value is None else msgspec.json.encode(value).decode() if isinstance(value, dict | list) else str(value)
    )


def _told(answer: Erasure) -> Group:
    removed = table("", "would be removed" if answer.is_dry_run else "removed", "rows >")
    for what, count in answer.removed.items():
        removed.add_row(what, str(count))
    kept = table("", "kept", "until", "why")
    for one in answer.kept:
        kept.add_row(one.what, one.until or "-", plain(one.ground))
    parts: list[Table | Text] = [removed, Text(""), kept]
    if answer.earlier:
        parts.append(Text(f"\nerased before: {', '.join(answer.earlier)}"))
    if answer.erasure_no is not None:
        parts.append(Text(f"\nerasure {answer.erasure_no}"))
    return Group(*parts)
