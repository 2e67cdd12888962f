"""Every difference is one break of its kind, whatever comes when, and nothing else is a break."""

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import date

import pytest

from redemption.reconciliation.breaks import Break, close_break, list_breaks
from redemption.reconciliation.flow_file import FlowFile, FlowRow, read_flow_file, write_flow_file
from redemption.reconciliation.our_flow import our_flow
from redemption.reconciliation.reconcile import Run, reconcile
from redemption.settlement.answer import Answered, answer
from redemption.settlement.answer_csv import AnswerRow, BankAnswer, read_answer, write_answer
from redemption.settlement.batch import Batch
from redemption.settlement.refusals import Refused, Why
from redemption.settlement.settle import close_day
from tests import stores
from tests.settling import approved, exported, told
from tests.town import CAMPAIGN, CAMPAIGN_NO, DAY, Town, at, build, contents, later

NOON = at(later(1))
Change = Callable[[list[FlowRow]], list[FlowRow]]


@pytest.fixture
async def town(database: stores.Database) -> AsyncIterator[Town]:
    """A town with six redemptions and a refund of wepay's vouchers on DAY, which is closed."""
    async with database.connection() as conn:
        town = await build(conn)
        sales = await town.sell(1, DAY, 3)
        await town.sell(2, DAY, 3, bucket=1)
        await town.refund(sales[:1], at(DAY, 15))
        await close_day(conn, DAY, NOON)
        yield town


async def flow(town: Town, change: Change = lambda rows: rows, day: date = DAY) -> FlowFile:
    """The partner's file of a day: ours, changed."""
    rows = change(await our_flow(town.conn, CAMPAIGN_NO, 1, day))
    found = read_flow_file(write_flow_file("wepay", CAMPAIGN, day, rows), None)
    assert isinstance(found, FlowFile)
    return found


async def run(town: Town, *flows: FlowFile, banks: Sequence[BankAnswer] = (), day: date = DAY, hours: int = 0) -> Run:
    made = await reconcile(
        town.conn,
        CAMPAIGN_NO,
        day,
        flows=flows,
        banks=banks,
        by="li.wei",
        now=at(later(1 + hours // 24), 12 + hours % 12),
    )
    assert isinstance(made, Run), made
    return made


async def breaks(town: Town, *, open_only: bool = True) -> list[Break]:
    return await list_breaks(town.conn, CAMPAIGN_NO, NOON, open_only=open_only)


async def kinds(town: Town, *, open_only: bool = True) -> list[str]:
    return [one.kind for one in await breaks(town, open_only=open_only)]


async def test_equal_books_have_no_breaks(town: Town) -> None:
    made = await run(town, await flow(town))
    assert (made.repeated, made.added, made.gone, made.totals, made.missing_files) == (False, 0, 0, [], [])


DIFFERENCES: list[tuple[str, Change]] = [
    ("MISSING_THERE", lambda rows: rows[1:]),
    ("MISSING_HERE", lambda rows: [*rows, rows[0]._replace(use_request_no="SOMEWHERE-ELSE")]),
    ("MISSING_HERE", lambda rows: [*rows, rows[0]._replace(merchant_id="NOBODY")]),
    ("AMOUNT", lambda rows: [rows[0]._replace(subsidy_fen=1_999), *rows[1:]]),
    ("AMOUNT", lambda rows: [rows[0]._replace(bill_fen=6_801), *rows[1:]]),
    ("AMOUNT", lambda rows: [rows[0]._replace(bill_fen=1, stock_id="OTHER", out_request_no="OTHER-CLAIM"), *rows[1:]]),
    ("STATE", lambda rows: [*rows[:-1], rows[-1]._replace(voucher_state="RETURNED")]),
    ("STATE", lambda rows: [rows[0]._replace(out_request_no="OTHER-CLAIM"), *rows[1:]]),
    ("DUPLICATE", lambda rows: [*rows, rows[2]]),
    ("DUPLICATE", lambda rows: [*rows, rows[2]._replace(subsidy_fen=1)]),
]


@pytest.mark.parametrize(("kind", "change"), DIFFERENCES)
async def test_one_difference_is_one_break(town: Town, kind: str, change: Change) -> None:
    made = await run(town, await flow(town, change))
    assert (await kinds(town), made.added) == ([kind], 1)


async def test_a_break_says_what_both_sides_say(town: Town) -> None:
    await run(town, await flow(town, lambda rows: [rows[0]._replace(subsidy_fen=1_500), *rows[1:]]))
    (found,) = await breaks(town)
    assert (found.source, found.partner_id, found.owner, found.day) == ("PARTNER", "wepay", "CITY", DAY)
    assert (found.ours_fen, found.theirs_fen, found.age_days) == (2_000, 1_500, 1)
    assert found.key.startswith("REDEEM M0001 USE-")
    assert found.ours_says is not None
    assert found.ours_says.startswith("USED, bill 6800 fen, stock RESTORE-1, claim CLAIM-")


async def test_many_differences_are_told_apart(town: Town) -> None:
    def change(rows: list[FlowRow]) -> list[FlowRow]:
        spoiled = [rows[1]._replace(subsidy_fen=1), rows[2]._replace(out_request_no="OTHER-CLAIM"), *rows[3:]]
        return [*spoiled, rows[3], rows[3], rows[4]._replace(use_request_no="NOT-OURS")]

    await run(town, await flow(town, change))
    found = Counter(await kinds(town))
    assert found == {"MISSING_THERE": 1, "AMOUNT": 1, "STATE": 1, "DUPLICATE": 2, "MISSING_HERE": 1}


async def test_the_same_run_twice_changes_nothing(town: Town) -> None:
    file = await flow(town, lambda rows: rows[1:])
    first = await run(town, file)
    before = await contents(town.conn)
    second = await run(town, file, hours=5)
    assert await contents(town.conn) == before
    assert (second.repeated, second.run_no, second.totals) == (True, first.run_no, first.totals)


async def test_a_corrected_file_closes_its_breaks_and_a_wrong_one_brings_them_back(town: Town) -> None:
    wrong, right = await flow(town, lambda rows: rows[1:]), await flow(town)
    await run(town, wrong)
    made = await run(town, right)
    assert (made.added, made.gone, await kinds(town)) == (0, 1, [])
    (closed,) = await breaks(town, open_only=False)
    assert (closed.cause, closed.is_open) == ("GONE", False)
    made = await run(town, wrong)
    assert (made.added, made.repeated, await kinds(town)) == (1, False, ["MISSING_THERE"])
    assert (await run(town, wrong)).repeated


async def test_what_a_person_closed_stays_closed_until_it_changes(town: Town) -> None:
    await run(town, await flow(town, lambda rows: [rows[0]._replace(subsidy_fen=1), *rows[1:]]))
    (found,) = await breaks(town)
    assert await close_break(town.conn, found.break_no, by="li.wei", why="typed wrong, agreed", now=NOON) is None
    again = await run(town, await flow(town, lambda rows: [rows[0]._replace(subsidy_fen=1), *rows[1:-1], rows[-1]]))
    assert (again.repeated, await kinds(town)) == (True, [])
    await run(town, await flow(town, lambda rows: [rows[0]._replace(subsidy_fen=2), *rows[1:]]))
    assert await kinds(town) == ["AMOUNT"]


async def test_closing_is_signed_and_done_once(town: Town) -> None:
    await run(town, await flow(town, lambda rows: rows[1:]))
    (found,) = await breaks(town)
    for number, by, why, refused in (
        (found.break_no, " ", "why", Why.BAD_NAME),
        (found.break_no, "li.wei", " ", Why.NO_REASON),
        (found.break_no + 1, "li.wei", "why", Why.UNKNOWN_BREAK),
    ):
        outcome = await close_break(town.conn, number, by=by, why=why, now=NOON)
        assert isinstance(outcome, Refused)
        assert outcome.why is refused
    await close_break(town.conn, found.break_no, by="li.wei", why="why", now=at(later(3)))
    outcome = await close_break(town.conn, found.break_no, by="wang", why="why", now=NOON)
    assert isinstance(outcome, Refused)
    assert outcome.why is Why.ALREADY_CLOSED
    (closed,) = await breaks(town, open_only=False)
    assert (closed.closed_by, closed.why, closed.age_days) == ("li.wei", "why", 3)


# ---------------------------------------------------------------- days that do not agree


async def two_days(town: Town) -> tuple[list[FlowRow], list[FlowRow]]:
    """Our rows of DAY and of the day after, both closed."""
    await town.sell(3, later(1), 2)
    await close_day(town.conn, later(1), at(later(2)))
    return await our_flow(town.conn, CAMPAIGN_NO, 1, DAY), await our_flow(town.conn, CAMPAIGN_NO, 1, later(1))


async def file_of(rows: list[FlowRow], day: date) -> FlowFile:
    found = read_flow_file(write_flow_file("wepay", CAMPAIGN, day, rows), None)
    assert isinstance(found, FlowFile)
    return found


@pytest.mark.parametrize("later_first", [False, True])
async def test_a_row_on_another_day_is_late_in_whatever_order_files_come(town: Town, later_first: bool) -> None:
    first, second = await two_days(town)
    files = [(DAY, await file_of(first[1:], DAY)), (later(1), await file_of([*second, first[0]], later(1)))]
    for day, file in reversed(files) if later_first else files:
        await run(town, file, day=day, hours=24)
    (found,) = await breaks(town)
    assert (found.kind, found.ours_day, found.theirs_day, found.owner) == ("LATE", DAY, later(1), "PARTNER")
    everything = await kinds(town, open_only=False)
    assert Counter(everything)["LATE"] == 1
    assert all(kind in ("LATE", "MISSING_THERE") for kind in everything)


async def test_a_row_booked_there_a_day_early_is_late_too(town: Town) -> None:
    first, second = await two_days(town)
    await run(town, await file_of([*first, second[0]], DAY), hours=24)
    await run(town, await file_of(second[1:], later(1)), day=later(1), hours=24)
    assert await kinds(town) == ["LATE"]


async def test_a_row_on_both_days_is_a_duplicate(town: Town) -> None:
    first, second = await two_days(town)
    await run(town, await file_of(first, DAY), hours=24)
    await run(town, await file_of([*second, first[0]], later(1)), day=later(1), hours=24)
    (found,) = await breaks(town)
    assert (found.kind, found.day) == ("DUPLICATE", later(1))


async def test_a_late_row_with_another_amount_is_one_break(town: Town) -> None:
    first, second = await two_days(town)
    await run(town, await file_of(first[1:], DAY), hours=24)
    late = first[0]._replace(subsidy_fen=1)
    await run(town, await file_of([*second, late], later(1)), day=later(1), hours=24)
    assert await kinds(town) == ["AMOUNT"]


async def test_beyond_the_tolerance_it_is_missing_on_both_sides(town: Town) -> None:
    first, _ = await two_days(town)
    await close_day(town.conn, later(2), at(later(3)))
    await run(town, await file_of(first[1:], DAY), hours=48)
    await run(town, await file_of([first[0]], later(2)), day=later(2), hours=48)
    assert sorted(await kinds(town)) == ["MISSING_HERE", "MISSING_THERE"]


async def test_any_order_of_files_ends_in_the_same_breaks(town: Town, database: stores.Database) -> None:
    first, second = await two_days(town)
    await town.sell(3, later(2), 2)
    await close_day(town.conn, later(2), at(later(3)))
    third = await our_flow(town.conn, CAMPAIGN_NO, 1, later(2))
    wrong = [
        (DAY, await file_of([*first[2:], second[1]], DAY)),
        (later(1), await file_of([first[0], first[0], second[0], third[0]], later(1))),
        (later(2), await file_of([third[1]._replace(subsidy_fen=7), second[0], first[1]], later(2))),
        (DAY, await file_of(first[1:], DAY)),
    ]
    seen = set()
    for seed in range(6):
        order = wrong[:]
        random.Random(seed).shuffle(order)
        for day, file in [*order, wrong[3]]:  # the corrected file of the first day is the last of it
            await run(town, file, day=day, hours=48)
        seen.add(tuple(sorted((b.kind, b.key, str(b.day), b.theirs_fen) for b in await breaks(town))))
    assert len(seen) == 1
    found = Counter(kind for kind, *_ in seen.pop())
    assert found == {"LATE": 2, "DUPLICATE": 3, "AMOUNT": 1, "MISSING_THERE": 1}


async def test_a_partner_without_a_file_is_named(town: Town) -> None:
    await town.sell(1, later(1), 1, stock_no=2)
    await close_day(town.conn, later(1), at(later(2)))
    made = await run(town, day=later(1), hours=24)
    assert (made.missing_files, made.totals) == (["alipal"], [])


# ---------------------------------------------------------------- what is refused


async def test_files_that_do_not_belong_are_refused_and_nothing_is_kept(town: Town) -> None:
    rows = await our_flow(town.conn, CAMPAIGN_NO, 1, DAY)
    file = await file_of(rows, DAY)
    bank = BankAnswer("HQS0000000099", bytes(32), [], 0, bytes(32))
    before = await contents(town.conn)
    for flows, banks, day, by, why in (
        ([file._replace(campaign_id="other-2020")], [], DAY, "li.wei", Why.WRONG_CAMPAIGN),
        ([file._replace(day=later(5))], [], DAY, "li.wei", Why.WRONG_DAY),
        ([file._replace(partner_id="nobody")], [], DAY, "li.wei", Why.UNKNOWN_PARTNER),
        ([file, file], [], DAY, "li.wei", Why.TWO_FILES),
        ([file._replace(day=later(1))], [], later(1), "li.wei", Why.DAY_NOT_OVER),
        ([file], [bank], DAY, "li.wei", Why.UNKNOWN_BATCH),
        ([file], [], DAY, "", Why.BAD_NAME),
    ):
        outcome = await reconcile(town.conn, CAMPAIGN_NO, day, flows=flows, banks=banks, by=by, now=NOON)
        assert isinstance(outcome, Refused)
        assert outcome.why is why
        assert await contents(town.conn) == before
    unknown = await reconcile(town.conn, 9, DAY, flows=[], by="li.wei", now=NOON)
    assert isinstance(unknown, Refused)
    assert unknown.why is Why.UNKNOWN_CAMPAIGN


async def test_finance_can_do_it_with_its_own_rights(town: Town, database: stores.Database) -> None:
    async with database.connection("hanquan_finance") as conn:
        finance = replace(town, conn=conn)
        await run(finance, await flow(finance, lambda rows: rows[1:]))
        (found,) = await breaks(finance)
        assert await close_break(conn, found.break_no, by="li.wei", why="agreed", now=NOON) is None


# ---------------------------------------------------------------- the bank


async def bank_file(town: Town, batch: Batch, rows: list[AnswerRow]) -> BankAnswer:
    order = await exported(town, batch)
    read = read_answer(write_answer(batch.batch_id, order.sha256, rows))
    assert isinstance(read, BankAnswer)
    return read


BankChange = Callable[[list[AnswerRow]], list[AnswerRow]]
BANK_DIFFERENCES: list[tuple[str, str, BankChange]] = [
    ("MISSING_HERE", "CITY", lambda rows: [*rows, rows[0]._replace(line_no=9)]),
    ("AMOUNT", "CITY", lambda rows: [rows[0]._replace(amount_fen=1), *rows[1:]]),
    ("STATE", "CITY", lambda rows: [rows[0]._replace(payee_account="1111"), *rows[1:]]),
    ("STATE", "CITY", lambda rows: [rows[0]._replace(result="REJECTED", reason="no"), *rows[1:]]),
    ("DUPLICATE", "BANK", lambda rows: [*rows, rows[0]]),
    ("LATE", "BANK", lambda rows: [rows[0]._replace(booked_on=later(4)), *rows[1:]]),
]


@pytest.mark.parametrize(("kind", "owner", "change"), BANK_DIFFERENCES)
async def test_one_difference_with_the_bank_is_one_break(town: Town, kind: str, owner: str, change: BankChange) -> None:
    batch = await approved(town)
    rows = await told(town, batch)
    order = await exported(town, batch)
    booked = await answer(town.conn, batch.batch_no, write_answer(batch.batch_id, order.sha256, rows), by="x", now=NOON)
    assert isinstance(booked, Answered)
    await run(town, await flow(town), banks=[await bank_file(town, batch, change(rows))])
    (found,) = await breaks(town)
    assert (found.source, found.kind, found.owner, found.day) == ("BANK", kind, owner, DAY)
    assert found.key.startswith(f"{batch.batch_id}/")


async def test_a_payment_of_a_held_line_is_a_break(town: Town) -> None:
    await town.hold(1)
    batch = await approved(town)
    rows = await told(town, batch)
    paid = rows[0]._replace(line_no=1, payee_account="62220200000001", amount_fen=4_000)
    await run(town, banks=[await bank_file(town, batch, [*rows, paid])])
    assert [(one.kind, one.theirs_fen) for one in await breaks(town) if one.kind != "STATE"] == [
        ("MISSING_HERE", 4_000)
    ]


async def test_a_line_without_an_answer_is_missing_there_after_its_time(town: Town) -> None:
    batch = await approved(town)
    await exported(town, batch)
    made = await run(town, await flow(town))
    assert made.totals == []
    made = await run(town, hours=72)
    assert [(one.source, one.kind, one.owner, one.open_count) for one in made.totals] == [
        ("BANK", "MISSING_THERE", "BANK", 2)
    ]
    order = await exported(town, batch)
    data = write_answer(batch.batch_id, order.sha256, await told(town, batch))
    assert isinstance(await answer(town.conn, batch.batch_no, data, by="x", now=at(later(4))), Answered)
    made = await run(town, hours=72)
    assert (made.gone, made.totals) == (2, [])


async def test_an_answer_that_was_not_imported_is_a_state(town: Town) -> None:
    batch = await approved(town)
    await run(town, banks=[await bank_file(town, batch, await told(town, batch))])
    assert await kinds(town) == ["STATE", "STATE"]
    order = await exported(town, batch)
    data = write_answer(batch.batch_id, order.sha256, await told(town, batch))
    imported = await answer(town.conn, batch.batch_no, data, by="x", now=NOON)
    assert isinstance(imported, Answered)
    assert not imported.replayed
    await run(town)
    assert await kinds(town) == []
