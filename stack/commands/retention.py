"""./hanquan retention: what is kept for how long, and the removal of what is past its time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from kernel.clock import CITY_ZONE
from stack.console import Data, err, run
from stack.data_folder import DEFAULT
from stack.errors import StackError
from stack.finance import plain, table, tell
from stack.retention.desk import Advance, Done, Line
from stack.retention.run import apply as apply_all
from stack.retention.run import custodian, look, set_rule

app = App(name="retention", version_flags=(), help="Show what is kept for how long; remove what is past its time.")

By = Annotated[str, Parameter(name="--by", help="Who does it; stands in the books.")]
Json = Annotated[bool, Parameter(name="--json", negative=(), help="Answer in JSON.")]
Export = Annotated[Path | None, Parameter(help="Write rounds to CSV files in this folder before they are detached.")]


@app.default
def retention(
    *,
    apply: Annotated[bool, Parameter(name="--apply", negative=(), help="Remove what is due.")] = False,
    by: By = "",
    export: Export = None,
    json: Json = False,
    data: Data = DEFAULT,
) -> int:
    """Show every family of rows and keys with its rule and what is due; with --apply carry it out.

    Works beside a running stack in small steps; Ctrl-C breaks it off anywhere, and the next run goes on. The exit
    status is 0 when nothing that is due was held up by something else.
    """
    if not apply:
        lines = run(_look(data))
        if lines is None:
            return 130
        tell(lines, lambda: _lines(lines), json=json)
        return int(any(line.blocked for line in lines))
    if not by:
        raise StackError("say who does it: --by NAME")
    done = run(_apply(data, by, export))
    if done is None:
        return 130
    tell(done, lambda: _done(done), json=json)
    return int(any(one.blocked for one in done))


@app.command(name="set")
def set_(family: str, days: int, /, *, by: By, data: Data = DEFAULT) -> None:
    """Change how many days a family is kept; `./hanquan retention rules` names them."""
    run(_set(data, family, days, by))


@app.command
def rules(*, json: Json = False, data: Data = DEFAULT) -> None:
    """Show how many days each family is kept."""
    kept = run(_rules(data))
    if kept is not None:
        tell(kept, lambda: _rule_table(kept), json=json)


async def _look(data: Path) -> list[Line]:
    async with custodian(data) as desk:
        return await look(desk)


async def _apply(data: Path, by: str, export: Path | None) -> list[Done]:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    async with custodian(data, by, export) as desk:
        with Progress(*columns, console=err, disable=not err.is_terminal) as bars:
            return await apply_all(desk, lambda name: _bar(bars, name))


def _bar(bars: Progress, name: str) -> Advance:
    task = bars.add_task(name, total=None)
    return lambda done, total: bars.update(task, completed=done, total=total)


async def _set(data: Path, family: str, days: int, by: str) -> None:
    async with custodian(data, by) as desk:
        await set_rule(desk, family, days, desk.now)


async def _rules(data: Path) -> dict[str, int]:
    async with custodian(data) as desk:
        return dict(desk.keep_days)


def _lines(lines: Sequence[Line]) -> Table:
    shown = table("", "family", "where", "items >", "oldest", "due >", "kept")
    for line in lines:
        oldest = "-" if line.oldest is None else f"{line.oldest.astimezone(CITY_ZONE):%Y-%m-%d}"
        shown.add_row(line.family, plain(line.where), f"{line.items:,} {line.unit}", oldest, f"{line.due:,}", line.rule)
        for why in line.blocked:
            shown.add_row("", f"[yellow]held up[/yellow] {plain(why)}")
    return shown


def _done(done: Sequence[Done]) -> Table:
    shown = table("", "family", "removed >", "bytes saved >")
    for one in done:
        shown.add_row(one.family, f"{one.items:,} {one.unit}", f"{one.bytes_saved:,}" if one.bytes_saved else "")
        for why in one.blocked:
            shown.add_row("", f"[yellow]held up[/yellow] {plain(why)}")
    return shown


def _rule_table(kept: dict[str, int]) -> Table:
    shown = table("", "family", "days >")
    for family, days in kept.items():
        shown.add_row(family, str(days))
    return shown
