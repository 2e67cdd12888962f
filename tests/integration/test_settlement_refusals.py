"""What settlement refuses changes nothing at all: every row of every table is compared."""

from collections.abc import AsyncIterator, Callable

import pytest

from redemption.settlement.answer import Answered, answer
from redemption.settlement.answer_csv import AnswerRow, read_answer, write_answer
from redemption.settlement.batch import Batch, get_batch
from redemption.settlement.export import Format, Order, export
from redemption.settlement.refusals import Refused, Why
from redemption.settlement.settle import approve, propose, reject
from tests import stores
from tests.settling import MORNING, PAYER, approved, exported, proposed, told
from tests.town import CAMPAIGN_NO, DAY, FACE_FEN, Town, assert_books, at, build, contents, later

SpoilRows = tuple[Why, Callable[[list[AnswerRow]], list[AnswerRow]]]
SpoilBytes = tuple[Why, Callable[[bytes], bytes]]


@pytest.fixture
async def town(database: stores.Database) -> AsyncIterator[Town]:
    """A town in which nothing was sold yet; its connection is the superuser's."""
    async with database.connection() as conn:
        yield await build(conn)


async def refusal(town: Town, outcome: object, before: dict[str, list[str]]) -> Why:
    assert isinstance(outcome, Refused), outcome
    assert await contents(town.conn) == before
    return outcome.why


async def test_a_day_that_is_not_over_is_not_closed(town: Town) -> None:
    await town.sell(town.merchants[0], DAY)
    before = await contents(town.conn)
    for day in (DAY, later(1)):
        outcome = await propose(town.conn, CAMPAIGN_NO, day, "li.wei", at(DAY, 23, 59))
        assert await refusal(town, outcome, before) is Why.DAY_NOT_OVER


async def test_only_one_batch_may_wait_for_a_decision(town: Town) -> None:
    await town.sell(town.merchants[0], DAY)
    await proposed(town)
    before = await contents(town.conn)
    outcome = await propose(town.conn, CAMPAIGN_NO, DAY, "wang.fang", MORNING)
    assert await refusal(town, outcome, before) is Why.UNDECIDED_BATCH


@pytest.mark.parametrize("by", ["li.wei", "Li.Wei", " li.wei ", "ｌｉ.ｗｅｉ"])
async def test_the_proposer_cannot_approve(town: Town, by: str) -> None:
    await town.sell(town.merchants[0], DAY)
    batch = await proposed(town)
    before = await contents(town.conn)
    assert await refusal(town, await approve(town.conn, batch.batch_no, by, MORNING), before) is Why.SAME_PERSON


@pytest.mark.parametrize("by", ["", "   ", "a\nb\x00", "x" * 65])
async def test_somebody_must_sign(town: Town, by: str) -> None:
    await town.sell(town.merchants[0], DAY)
    batch = await proposed(town)
    before = await contents(town.conn)
    for outcome in (
        await propose(town.conn, CAMPAIGN_NO, DAY, by, MORNING),
        await approve(town.conn, batch.batch_no, by, MORNING),
        await reject(town.conn, batch.batch_no, by, "why", MORNING),
        await export(town.conn, batch.batch_no, payer=PAYER, form=Format.CSV, by=by, now=MORNING),
        await answer(town.conn, batch.batch_no, b"", by=by, now=MORNING),
    ):
        assert await refusal(town, outcome, before) is Why.BAD_NAME


async def test_a_batch_is_decided_once(town: Town) -> None:
    await town.sell(town.merchants[0], DAY)
    batch = await approved(town)
    before = await contents(town.conn)
    for outcome in (
        await approve(town.conn, batch.batch_no, "wang.fang", MORNING),
        await reject(town.conn, batch.batch_no, "wang.fang", "no", MORNING),
    ):
        assert await refusal(town, outcome, before) is Why.ALREADY_DECIDED


async def test_what_is_not_there_is_refused(town: Town) -> None:
    before = await contents(town.conn)
    assert isinstance(await get_batch(town.conn, 99), Refused)
    for outcome in (
        await approve(town.conn, 99, "x", MORNING),
        await export(town.conn, 99, payer=PAYER, form=Format.CSV, by="x", now=MORNING),
        await answer(town.conn, 99, write_answer("HQS0000000099", bytes(32), []), by="x", now=MORNING),
    ):
        assert await refusal(town, outcome, before) is Why.UNKNOWN_BATCH
    assert await refusal(town, await reject(town.conn, 99, "x", "  ", MORNING), before) is Why.NO_REASON


async def test_only_an_approved_batch_is_exported_or_answered(town: Town) -> None:
    await town.sell(town.merchants[0], DAY)
    batch = await proposed(town)
    rows = [AnswerRow(1, 1, "62220200000001", FACE_FEN, "PAID", DAY, "B", "")]
    data = write_answer(batch.batch_id, bytes(32), rows)
    before = await contents(town.conn)
    outcome: object = await export(town.conn, batch.batch_no, payer=PAYER, form=Format.CSV, by="x", now=MORNING)
    assert await refusal(town, outcome, before) is Why.NOT_APPROVED
    outcome = await answer(town.conn, batch.batch_no, data, by="x", now=MORNING)
    assert await refusal(town, outcome, before) is Why.NOT_APPROVED


async def test_a_balance_that_its_history_does_not_explain_is_not_paid(town: Town) -> None:
    await town.sell(town.merchants[0], DAY)
    await proposed(town)
    await reject(town.conn, 1, "x", "y", MORNING)
    await town.conn.execute("UPDATE account SET credits_fen = credits_fen + 1 WHERE kind = 'PAYABLE'")
    before = await contents(town.conn)
    outcome = await propose(town.conn, CAMPAIGN_NO, DAY, "li.wei", MORNING)
    assert await refusal(town, outcome, before) is Why.LEDGER_MISMATCH


# ---------------------------------------------------------------- the bank's answer


@pytest.fixture
async def waiting(town: Town) -> tuple[Batch, Order, list[AnswerRow]]:
    """An exported batch of three lines, the first of them held, and an honest answer to it."""
    for merchant in town.merchants:
        await town.sell(merchant, DAY, merchant)
    await town.hold(town.merchants[0])
    batch = await approved(town)
    return batch, await exported(town, batch), await told(town, batch)


Waiting = tuple[Batch, Order, list[AnswerRow]]


async def try_answer(town: Town, batch: Batch, data: bytes, sha256: bytes | None = None) -> Answered | Refused:
    return await answer(town.conn, batch.batch_no, data, by="li.wei", now=MORNING, expected_sha256=sha256)


BAD_ROWS: list[SpoilRows] = [
    (Why.WRONG_AMOUNT, lambda rows: [rows[0]._replace(amount_fen=rows[0].amount_fen - 1), *rows[1:]]),
    (Why.WRONG_PAYEE, lambda rows: [rows[0]._replace(payee_account="62220200000009"), *rows[1:]]),
    (Why.UNKNOWN_LINE, lambda rows: [*rows, rows[0]._replace(line_no=4)]),
    (Why.UNKNOWN_LINE, lambda rows: [*rows, rows[0]._replace(line_no=1)]),  # held
    (Why.DUPLICATE_LINE, lambda rows: [*rows, rows[0]]),
    (Why.DUPLICATE_LINE, lambda rows: [*rows, rows[0]._replace(result="REJECTED", reason="both")]),
]


@pytest.mark.parametrize("case", BAD_ROWS)
async def test_an_answer_that_does_not_fit_its_batch_changes_nothing(
    town: Town, waiting: Waiting, case: SpoilRows
) -> None:
    why, spoil = case
    batch, order, rows = waiting
    before = await contents(town.conn)
    outcome = await try_answer(town, batch, write_answer(batch.batch_id, order.sha256, spoil(rows)))
    assert await refusal(town, outcome, before) is why


BAD_BYTES: list[SpoilBytes] = [
    (Why.WRONG_TRAILER_COUNT, lambda data: data.replace(b"TRAILER,2,", b"TRAILER,3,")),
    (Why.WRONG_TRAILER_AMOUNT, lambda data: data.replace(b"TRAILER,2,1", b"TRAILER,2,2")),
    (Why.BAD_FILE, lambda data: data[: data.rindex(b"TRAILER")]),
    (Why.BAD_FILE, lambda data: data.replace(b"PAID", b"DONE", 1)),
    (Why.BAD_FILE, lambda data: data.replace(b",PAID,", b",REJECTED,", 1)),
    (Why.BAD_FILE, lambda data: data.replace(b"HANQUAN-ANSWER,1", b"HANQUAN-ANSWER,2")),
    (Why.BAD_FILE, lambda data: b"\xff\xfe" + data),
    (Why.BAD_FILE, lambda data: data.replace(b",4000,", b",4e3,")),
    (Why.WRONG_BATCH, lambda data: data.replace(b"HQS0000000001", b"HQS0000000002")),
    (Why.WRONG_ORDER_HASH, lambda data: data.replace(data.split(b",")[3][:8], b"00000000", 1)),
    (Why.BAD_FILE, lambda data: b""),
]


@pytest.mark.parametrize("case", BAD_BYTES)
async def test_an_answer_that_is_not_whole_changes_nothing(town: Town, waiting: Waiting, case: SpoilBytes) -> None:
    why, spoil = case
    batch, order, rows = waiting
    data = write_answer(batch.batch_id, order.sha256, rows)
    assert spoil(data) != data
    before = await contents(town.conn)
    assert await refusal(town, await try_answer(town, batch, spoil(data)), before) is why


async def test_an_answer_with_another_hash_than_told_changes_nothing(town: Town, waiting: Waiting) -> None:
    batch, order, rows = waiting
    data = write_answer(batch.batch_id, order.sha256, rows)
    before = await contents(town.conn)
    assert await refusal(town, await try_answer(town, batch, data, bytes(32)), before) is Why.WRONG_HASH


async def test_the_same_answer_twice_books_once(town: Town, waiting: Waiting) -> None:
    batch, order, rows = waiting
    data = write_answer(batch.batch_id, order.sha256, rows)
    first = await try_answer(town, batch, data)
    before = await contents(town.conn)
    second = await try_answer(town, batch, data)
    assert await contents(town.conn) == before
    assert isinstance(first, Answered)
    assert isinstance(second, Answered)
    assert (first.replayed, second.replayed, first.paid_fen) == (False, True, second.paid_fen)
    await assert_books(town.conn)


async def test_another_file_for_an_answered_line_is_refused(town: Town, waiting: Waiting) -> None:
    batch, order, rows = waiting
    part = await try_answer(town, batch, write_answer(batch.batch_id, order.sha256, rows[:1]))
    assert isinstance(part, Answered)
    assert (part.paid_count, part.batch.state) == (1, "EXPORTED")
    before = await contents(town.conn)
    outcome = await try_answer(town, batch, write_answer(batch.batch_id, order.sha256, rows))
    assert await refusal(town, outcome, before) is Why.ALREADY_ANSWERED
    rest = await try_answer(town, batch, write_answer(batch.batch_id, order.sha256, rows[1:]))
    assert isinstance(rest, Answered)
    assert rest.batch.state == "ANSWERED"
    await assert_books(town.conn)


async def test_an_answer_is_read_as_it_was_written(town: Town, waiting: Waiting) -> None:
    batch, order, rows = waiting
    answer_file = read_answer(write_answer(batch.batch_id, order.sha256, rows))
    assert not isinstance(answer_file, Refused)
    assert answer_file.rows == rows
    assert answer_file.order_sha256 == order.sha256
