"""./hanquan settle: paying the merchants."""

from datetime import date
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.table import Table

from kernel.money import FUND_FEN_MAX, parse_yuan
from redemption.settlement import settle as desk_work
from redemption.settlement.answer import Answered
from redemption.settlement.answer import answer as import_answer
from redemption.settlement.batch import Batch, Line, get_batch, get_lines, list_batches
from redemption.settlement.expire import Expired, Returned, ReturnTo, expire_over, return_unused
from redemption.settlement.export import Format, Order, Payer
from redemption.settlement.export import export as make_order
from stack.console import Data, run
from stack.data_folder import DEFAULT
from stack.errors import StackError
from stack.finance import By, Json, desk, granted, plain, read_file, read_sidecar, table, tell, write_with_sidecar, yuan

app = App(
    name="settle", version_flags=(), help="Pay the merchants: propose, approve, send to the bank, book its answer."
)

BatchNo = Annotated[int, Parameter(help="Number of the batch, as `settle list` shows it.")]
PayerName = Annotated[str, Parameter(env_var="HANQUAN_PAYER_NAME", help="Holder of the city's account.")]
PayerAccount = Annotated[str, Parameter(env_var="HANQUAN_PAYER_ACCOUNT", help="The city's account.")]
PayerBank = Annotated[str, Parameter(env_var="HANQUAN_PAYER_BANK", help="The city's bank.")]


@app.command
def propose(campaign: str, day: date, /, *, by: By, json: Json = False, data: Data = DEFAULT) -> None:
    """Close a day and draw up the batch of what merchants are owed at its end.

    Parameters
    ----------
    campaign
        The campaign's id.
    day
        The last business day to pay, such as 2020-04-20; it must be over.
    """

    async def work() -> Batch:
        async with desk(data) as office:
            campaign_no = await office.campaign_no(campaign)
            return granted(await desk_work.propose(office.conn, campaign_no, day, by, office.now))

    _tell_batch(run(work()), json=json)


@app.command
def approve(batch_no: BatchNo, /, *, by: By, json: Json = False, data: Data = DEFAULT) -> None:
    """Release a batch for payment. Someone else than its proposer must do it."""

    async def work() -> Batch:
        async with desk(data) as office:
            return granted(await desk_work.approve(office.conn, batch_no, by, office.now))

    _tell_batch(run(work()), json=json)


@app.command
def reject(batch_no: BatchNo, /, *, by: By, why: str, json: Json = False, data: Data = DEFAULT) -> None:
    """Turn a batch down. No money moves; the next proposal includes what it had."""

    async def work() -> Batch:
        async with desk(data) as office:
            return granted(await desk_work.reject(office.conn, batch_no, by, why, office.now))

    _tell_batch(run(work()), json=json)


@app.command
def export(
    batch_no: BatchNo,
    /,
    *,
    by: By,
    payer_name: PayerName,
    payer_account: PayerAccount,
    payer_bank: PayerBank,
    form: Annotated[
        Format, Parameter(name="--format", help="pain.001.001.09, csv or csv-spreadsheet.")
    ] = Format.PAIN001,
    folder: Annotated[Path, Parameter(name="--to", help="Folder for the file and its .sha256.")] = Path(),
    json: Json = False,
    data: Data = DEFAULT,
) -> None:
    """Write the order to the bank. Written again, it is the same file, byte for byte."""
    payer = Payer(payer_name, payer_account, payer_bank)

    async def work() -> Order:
        async with desk(data) as office:
            order = await make_order(office.conn, batch_no, payer=payer, form=form, by=by, now=office.now)
            return granted(order)

    order = run(work())
    if order is not None:
        write_with_sidecar(folder / order.file_name, order.data)
        names = ("batch_id", "file_name", "line_count", "amount_fen")
        told = {name: getattr(order, name) for name in names} | {"sha256": order.sha256.hex()}
        tell(told, lambda: _order_table(order, folder), json=json)


@app.command
def answer(batch_no: BatchNo, file: Path, /, *, by: By, json: Json = False, data: Data = DEFAULT) -> None:
    """Book the bank's answer: paid lines are settled, rejected ones are owed again. All of the file or nothing.

    Parameters
    ----------
    file
        The bank's CSV; its hash is checked against FILE.sha256 where there is one.
    """
    content, sha256 = read_file(file), read_sidecar(file)

    async def work() -> Answered:
        async with desk(data) as office:
            told = await import_answer(office.conn, batch_no, content, by=by, now=office.now, expected_sha256=sha256)
            return granted(told)

    answered = run(work())
    if answered is not None:
        tell(answered, lambda: _answered_table(answered), json=json)


@app.command
def show(batch_no: BatchNo, /, *, json: Json = False, data: Data = DEFAULT) -> None:
    """Show a batch with every line."""

    async def work() -> tuple[Batch, list[Line]]:
        async with desk(data) as office:
            return granted(await get_batch(office.conn, batch_no)), await get_lines(office.conn, batch_no)

    found = run(work())
    if found is not None:
        batch, lines = found
        tell({"batch": batch, "lines": lines}, lambda: _lines_table(batch, lines), json=json)


@app.command(name="list")
def list_(campaign: str, /, *, limit: int = 50, json: Json = False, data: Data = DEFAULT) -> None:
    """List a campaign's batches, the newest first."""

    async def work() -> list[Batch]:
        async with desk(data) as office:
            return await list_batches(office.conn, await office.campaign_no(campaign), limit)

    batches = run(work())
    if batches is not None:
        tell(batches, lambda: _batches_table(batches), json=json)


@app.command
def expire(*, json: Json = False, data: Data = DEFAULT) -> None:
    """Take back the money of vouchers that can no longer be used, an hour after their time."""

    async def work() -> list[Expired]:
        async with desk(data) as office:
            return await expire_over(office.conn, office.now)

    expired = run(work())
    if expired is not None:
        tell(expired, lambda: _expired_table(expired), json=json)


@app.command(name="return")
def return_(
    campaign: str,
    amount: Annotated[str, Parameter(help="In yuan, such as 20000 or 20000.50.")],
    to: ReturnTo,
    /,
    *,
    reference: Annotated[str, Parameter(help="Names this return; the same reference is booked once.")],
    by: By,
    json: Json = False,
    data: Data = DEFAULT,
) -> None:
    """Move unused money to the city's fund, or to the campaign's budget for its next round."""
    amount_fen = _fen(amount)

    async def work() -> Returned:
        async with desk(data) as office:
            campaign_no = await office.campaign_no(campaign)
            moved = await return_unused(office.conn, campaign_no, to, amount_fen, by, reference, office.now)
            return granted(moved)

    returned = run(work())
    if returned is not None:
        tell(returned, lambda: _returned_table(returned), json=json)


def _fen(amount: str) -> int:
    try:
        return parse_yuan(amount, FUND_FEN_MAX)
    except ValueError as error:
        raise StackError(str(error)) from None


def _tell_batch(batch: Batch | None, *, json: bool) -> None:
    if batch is not None:
        tell(batch, lambda: _batches_table([batch]), json=json)


def _batches_table(batches: list[Batch]) -> Table:
    made = table(
        "", "batch", "day", "state", "lines >", "to pay, yuan >", "held >", "held, yuan >", "paid, yuan >",
        "sent back, yuan >", "proposed by", "decided by", "remark",
    )  # fmt: skip
    for one in batches:
        made.add_row(
            str(one.batch_no), one.day.isoformat(), one.state, str(one.line_count), yuan(one.amount_fen),
            str(one.held_count), yuan(one.held_fen), yuan(one.paid_fen), yuan(one.rejected_fen),
            plain(one.proposed_by), plain(one.decided_by or "-"), plain(one.why),
        )  # fmt: skip
    return made


def _lines_table(batch: Batch, lines: list[Line]) -> Table:
    made = table(
        f"batch {batch.batch_no} ({batch.batch_id}), {batch.day}, {batch.state}: {batch.line_count} lines, "
        f"{yuan(batch.amount_fen)} yuan; {batch.held_count} held, {yuan(batch.held_fen)} yuan",
        "line", "merchant", "opening >", "settled >", "sent back >", "carried >", "redeemed >", "refunded >",
        "amount >", "account", "state", "remark",
    )  # fmt: skip
    for one in lines:
        made.add_row(
            str(one.line_no), one.merchant_id, yuan(one.opening_fen), yuan(one.settled_fen), yuan(one.voided_fen),
            yuan(one.carried_fen), yuan(one.redeemed_fen), yuan(one.refunded_fen), yuan(one.amount_fen),
            ".." + one.payee_account[-4:], one.state, plain(f"{one.held_code} {one.reason}".strip()),
        )  # fmt: skip
    return made


def _order_table(order: Order, folder: Path) -> Table:
    made = table("", "file", "lines >", "amount, yuan >", "SHA-256")
    made.add_row(
        plain(str(folder / order.file_name)), str(order.line_count), yuan(order.amount_fen), order.sha256.hex()
    )
    return made


def _answered_table(told: Answered) -> Table:
    made = table("", "batch", "state", "paid >", "paid, yuan >", "sent back >", "sent back, yuan >", "remark")
    made.add_row(
        str(told.batch.batch_no), told.batch.state, str(told.paid_count), yuan(told.paid_fen), str(told.rejected_count),
        yuan(told.rejected_fen), "booked before; nothing was booked again" if told.replayed else "",
    )  # fmt: skip
    return made


def _expired_table(expired: list[Expired]) -> Table:
    made = table("", "stock", "unused vouchers taken back >")
    for one in expired:
        made.add_row(one.stock_id, f"{one.voucher_count:,}")
    return made


def _returned_table(told: Returned) -> Table:
    made = table("", "reference", "to", "amount, yuan >", "remark")
    remark = "booked before; nothing was booked again" if told.replayed else ""
    made.add_row(plain(told.reference), told.to, yuan(told.amount_fen), remark)
    return made
