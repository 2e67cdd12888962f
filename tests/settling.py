"""Steps of a settlement that went well, for tests that are about something else."""

from datetime import date

from redemption.settlement.answer import Answered, answer
from redemption.settlement.answer_csv import AnswerRow, write_answer
from redemption.settlement.batch import Batch, Line, get_lines
from redemption.settlement.export import Format, Order, Payer, export
from redemption.settlement.settle import approve, propose
from tests.town import CAMPAIGN_NO, DAY, Town, at, later

PAYER = Payer("武汉市商务局", "42001865008000000001", "汉口银行")
MORNING = at(later(1), 9)


async def proposed(town: Town, day: date = DAY, by: str = "li.wei", campaign_no: int = CAMPAIGN_NO) -> Batch:
    batch = await propose(town.conn, campaign_no, day, by, at(later((day - DAY).days + 1), 9))
    assert isinstance(batch, Batch), batch
    return batch


async def approved(town: Town, day: date = DAY) -> Batch:
    batch = await approve(
        town.conn, (await proposed(town, day)).batch_no, "zhang.min", at(later((day - DAY).days + 1), 10)
    )
    assert isinstance(batch, Batch), batch
    return batch


async def exported(town: Town, batch: Batch, form: Format = Format.CSV) -> Order:
    order = await export(town.conn, batch.batch_no, payer=PAYER, form=form, by="li.wei", now=MORNING)
    assert isinstance(order, Order), order
    return order


async def told(town: Town, batch: Batch, rejected: tuple[int, ...] = ()) -> list[AnswerRow]:
    """What a bank would say: every exported line paid but for the rejected ones."""
    lines = [line for line in await get_lines(town.conn, batch.batch_no) if line.state == "SETTLING"]
    return [
        AnswerRow(
            number, line.line_no, line.payee_account, line.amount_fen,
            "REJECTED" if line.line_no in rejected else "PAID",
            later(1), f"B{line.line_no}", "account closed" if line.line_no in rejected else "",
        )
        for number, line in enumerate(lines, start=1)
    ]  # fmt: skip


async def answered(town: Town, batch: Batch, rejected: tuple[int, ...] = ()) -> Answered:
    order = await exported(town, batch)
    data = write_answer(batch.batch_id, order.sha256, await told(town, batch, rejected))
    outcome = await answer(town.conn, batch.batch_no, data, by="li.wei", now=at(later(1), 16))
    assert isinstance(outcome, Answered), outcome
    return outcome


async def lines_of(town: Town, batch: Batch) -> dict[int, Line]:
    return {line.merchant_no: line for line in await get_lines(town.conn, batch.batch_no)}


async def approved_again(town: Town, batch: Batch) -> Batch:
    decided = await approve(town.conn, batch.batch_no, "zhang.min", at(later(1), 10))
    assert isinstance(decided, Batch), decided
    return decided
