"""./hanquan reconcile: our books against what partners and the bank say."""

from datetime import date
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from cyclopts import App, Parameter
from rich.table import Table

from redemption.reconciliation import breaks as break_work
from redemption.reconciliation.breaks import Break
from redemption.reconciliation.flow_file import FlowFile, FlowRow, read_flow_file, write_flow_file
from redemption.reconciliation.flow_xlsx import write_flow_xlsx
from redemption.reconciliation.our_flow import find_partner, our_flow
from redemption.reconciliation.reconcile import BANK_DAYS, TOLERANCE_DAYS, Rules, Run
from redemption.reconciliation.reconcile import reconcile as make_run
from redemption.settlement.answer_csv import BankAnswer, read_answer
from redemption.settlement.refusals import Refused
from stack.console import Data, run
from stack.data_folder import DEFAULT
from stack.errors import StackError
from stack.finance import (
    By,
    Json,
    desk,
    granted,
    plain,
    read_file,
    read_sidecar,
    table,
    tell,
    write_with_sidecar,
    yuan,
)

app = App(
    name="reconcile", version_flags=(), help="Compare our books with partners' flow files and the bank's answers."
)

File = TypeVar("File", FlowFile, BankAnswer)

Look = Literal["csv", "csv-spreadsheet", "xlsx"]

Campaign = Annotated[str, Parameter(help="The campaign's id.")]


@app.command(name="run")
def run_(
    campaign: Campaign,
    day: Annotated[date, Parameter(help="A closed business day, such as 2020-04-20.")],
    /,
    *,
    flows: Annotated[
        tuple[Path, ...],
        Parameter(
            name="--flow", help="A partner's flow file; its hash is checked against FILE.sha256 where there is one."
        ),
    ] = (),
    bank: Annotated[tuple[Path, ...], Parameter(name="--bank", help="A file of the bank, imported or not.")] = (),
    tolerance_days: Annotated[
        int, Parameter(help="Booked this many days apart is late, beyond that missing.")
    ] = TOLERANCE_DAYS,
    bank_days: Annotated[int, Parameter(help="Days after approval within which the bank answers.")] = BANK_DAYS,
    by: By,
    json: Json = False,
    data: Data = DEFAULT,
) -> int:
    """Find every difference of a day. The same files again change nothing.

    The exit status is 0 when no break of the day is open and no file is missing, and 1 otherwise.
    """
    read, banks = [_read_flow(path) for path in flows], [_read_bank(path) for path in bank]
    rules = Rules(tolerance_days=tolerance_days, bank_days=bank_days)

    async def work() -> Run:
        async with desk(data) as office:
            campaign_no = await office.campaign_no(campaign)
            made = await make_run(
                office.conn, campaign_no, day, flows=read, banks=banks, by=by, now=office.now, rules=rules
            )
            return granted(made)

    made = run(work())
    if made is None:
        return 1
    tell(made, lambda: _run_table(made), json=json)
    return 1 if made.totals or made.missing_files else 0


@app.command
def flow(
    campaign: Campaign,
    partner: Annotated[str, Parameter(help="The partner's id.")],
    day: Annotated[date, Parameter(help="A business day, such as 2020-04-20.")],
    /,
    *,
    look: Annotated[Look, Parameter(name="--format", help="csv, csv-spreadsheet or xlsx.")] = "csv",
    folder: Annotated[Path, Parameter(name="--to", help="Folder for the file and its .sha256.")] = Path(),
    data: Data = DEFAULT,
) -> None:
    """Write our side of a partner's flow file, as the partner can fetch it from us."""

    async def work() -> list[FlowRow]:
        async with desk(data) as office:
            partner_no = granted(await find_partner(office.conn, partner))
            return await our_flow(office.conn, await office.campaign_no(campaign), partner_no, day)

    rows = run(work())
    if rows is not None:
        path = folder / f"flow-{partner}-{campaign}-{day.isoformat()}.{'xlsx' if look == 'xlsx' else 'csv'}"
        write_with_sidecar(path, _flow_bytes(look, partner, campaign, day, rows))
        tell({}, lambda: f"{plain(str(path))}: {len(rows)} rows", json=False)


def _flow_bytes(look: Look, partner: str, campaign: str, day: date, rows: list[FlowRow]) -> bytes:
    if look == "xlsx":
        return write_flow_xlsx(partner, campaign, day, rows)
    return write_flow_file(partner, campaign, day, rows, for_spreadsheet=look == "csv-spreadsheet")


@app.command
def breaks(
    campaign: Campaign,
    /,
    *,
    day: date | None = None,
    all_: Annotated[bool, Parameter(name="--all", negative=(), help="Closed ones too.")] = False,
    limit: int = 1_000,
    json: Json = False,
    data: Data = DEFAULT,
) -> None:
    """List breaks, the oldest first."""

    async def work() -> list[Break]:
        async with desk(data) as office:
            campaign_no = await office.campaign_no(campaign)
            return await break_work.list_breaks(
                office.conn, campaign_no, office.now, day=day, open_only=not all_, limit=limit
            )

    found = run(work())
    if found is not None:
        tell(found, lambda: _breaks_table(found), json=json)


@app.command
def close(
    break_no: Annotated[int, Parameter(help="Number of the break, as `reconcile breaks` shows it.")],
    /,
    *,
    why: Annotated[str, Parameter(help="What it turned out to be.")],
    by: By,
    json: Json = False,
    data: Data = DEFAULT,
) -> None:
    """Close a break for good, with a name and a reason."""

    async def work() -> bool:
        async with desk(data) as office:
            granted(await break_work.close_break(office.conn, break_no, by=by, why=why, now=office.now))
            return True

    if run(work()):
        tell({"break_no": break_no, "closed_by": by}, lambda: f"break {break_no} is closed", json=json)


def _read_flow(path: Path) -> FlowFile:
    return _named(path, read_flow_file(read_file(path), read_sidecar(path)))


def _read_bank(path: Path) -> BankAnswer:
    return _named(path, read_answer(read_file(path), read_sidecar(path)))


def _named(path: Path, answer: File | Refused) -> File:
    if isinstance(answer, Refused):
        raise StackError(f"{path}: {answer.why}: {answer.detail}")
    return answer


def _run_table(made: Run) -> Table:
    missing = f"; no file from {', '.join(made.missing_files)}" if made.missing_files else ""
    repeated = ", nothing new" if made.repeated else f", {made.added} new breaks, {made.gone} gone"
    shown = table(
        f"run {made.run_no}, {made.campaign_id}, {made.day}{repeated}{missing}",
        "with", "break", "open >", "ours, yuan >", "theirs, yuan >", "to act",
    )  # fmt: skip
    for total in made.totals:
        money = yuan(total.ours_fen), yuan(total.theirs_fen)
        shown.add_row(total.source, total.kind, str(total.open_count), *money, total.owner)
    return shown


def _breaks_table(found: list[Break]) -> Table:
    shown = table(
        "", "no", "day", "with", "break", "about", "ours, yuan >", "theirs, yuan >", "we say", "they say",
        "days >", "to act", "closed",
    )  # fmt: skip
    for one in found:
        shown.add_row(
            str(one.break_no), one.day.isoformat(), one.partner_id or one.source, one.kind, plain(one.key),
            yuan(one.ours_fen), yuan(one.theirs_fen), plain(one.ours_says or "-"), plain(one.theirs_says or "-"),
            str(one.age_days), one.owner, "" if one.is_open else plain(f"{one.closed_by}: {one.why}"),
        )  # fmt: skip
    return shown
