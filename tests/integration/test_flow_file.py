"""The flow file: written, read back, refused where it is not whole; and our own side of it."""

import csv
import hashlib
import io
from collections.abc import AsyncIterator, Callable
from datetime import datetime

import openpyxl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.clock import CITY_ZONE
from redemption.reconciliation.flow_file import FlowFile, FlowRow, read_flow_file, write_flow_file
from redemption.reconciliation.flow_xlsx import write_flow_xlsx
from redemption.reconciliation.our_flow import find_partner, our_flow
from redemption.settlement.refusals import Refused, Why
from tests import stores
from tests.town import CAMPAIGN, CAMPAIGN_NO, DAY, Town, at, build, later

ROW = FlowRow(
    "REDEEM", "12345678901234567890", "20200420000000000001", "", "CLAIM-000001", "RESTORE-1", "USED", 6_800, 2_000,
    datetime(2020, 4, 20, 12, 1, 2, tzinfo=CITY_ZONE),
)  # fmt: skip
BACK = ROW._replace(kind="REFUND", refund_request_no="20200420000000000002", voucher_state="EFFECTIVE")
PLAIN = write_flow_file("wepay", CAMPAIGN, DAY, [ROW, BACK])


def read(data: bytes, sha256: bytes | None = None) -> FlowFile:
    found = read_flow_file(data, sha256)
    assert isinstance(found, FlowFile), found
    return found


@pytest.mark.parametrize("for_spreadsheet", [False, True])
def test_what_is_written_is_read(for_spreadsheet: bool) -> None:
    data = write_flow_file("wepay", CAMPAIGN, DAY, [ROW, BACK], for_spreadsheet=for_spreadsheet)
    found = read(data, hashlib.sha256(data).digest())
    assert (found.partner_id, found.campaign_id, found.day) == ("wepay", CAMPAIGN, DAY)
    assert (found.rows, found.lines, found.amount_fen) == ([ROW, BACK], [3, 4], 4_000)
    assert found.sha256 == hashlib.sha256(data).digest()


@pytest.mark.parametrize(
    "dress",
    [
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n"),
        lambda data: data.replace(b"12345678901234567890", b'"12345678901234567890"'),
        lambda data: data.rstrip(b"\n"),
    ],
)
def test_dress_does_not_matter(dress: Callable[[bytes], bytes]) -> None:
    assert dress(PLAIN) != PLAIN
    assert read(dress(PLAIN)).rows == [ROW, BACK]


def test_a_file_without_rows_is_whole() -> None:
    assert read(write_flow_file("wepay", CAMPAIGN, DAY, [])).rows == []


def test_repeated_rows_are_read() -> None:
    assert read(write_flow_file("wepay", CAMPAIGN, DAY, [ROW, ROW])).rows == [ROW, ROW]


BAD: list[tuple[Why, str, bytes, bytes]] = [
    (Why.WRONG_TRAILER_COUNT, "the trailer says 3 rows, there are 2", b"TRAILER,2,4000", b"TRAILER,3,4000"),
    (Why.WRONG_TRAILER_AMOUNT, "says 4001 fen, the rows add up to 4000", b"TRAILER,2,4000", b"TRAILER,2,4001"),
    (Why.BAD_FILE, "line 5: trailer '4000.0'", b"TRAILER,2,4000", b"TRAILER,2,4000.0"),
    (Why.BAD_FILE, "does not end in a trailer", b"TRAILER,2,4000\n", b""),
    (Why.BAD_FILE, "does not end in a trailer", b"TRAILER,2,4000\n", b"TRAILER,2,4000\n\n"),
    (Why.BAD_FILE, "line 1: expected HANQUAN-FLOW,1", b"HANQUAN-FLOW,1", b"HANQUAN-FLOW,9"),
    (Why.BAD_FILE, "line 1: '2020-04-31'", b",2020-04-20\n", b",2020-04-31\n"),
    (Why.BAD_FILE, "line 2: expected the columns kind,", b"bill_fen,subsidy_fen", b"subsidy_fen,bill_fen"),
    (Why.BAD_FILE, "line 4: 11 cells, not 10", b"REFUND,", b"REFUND,,"),
    (Why.BAD_FILE, "line 4: subsidy_fen '20.00'", b",6800,2000,2020-04-20T12:01:02+08:00\nT", b",6800,20.00,x\nT"),
    (Why.BAD_FILE, "line 3: '-6800' is not a whole number", b"USED,6800", b"USED,-6800"),
    (Why.BAD_FILE, "line 3: bill_fen and subsidy_fen are above zero", b"USED,6800", b"USED,0"),
    (Why.BAD_FILE, "line 3: 'REDEEM' with voucher_state 'EFFECTIVE'", b"USED", b"EFFECTIVE"),
    (Why.BAD_FILE, "line 4: 'REVERSE' with", b"REFUND", b"REVERSE"),
    (Why.BAD_FILE, "line 4: a refund has a refund_request_no", b"20200420000000000002", b""),
    (Why.BAD_FILE, "line 3: use_request_no '1.2E+17'", b"20200420000000000001", b"1.2E+17"),
    (Why.BAD_FILE, "line 3: merchant_id ''", b"12345678901234567890", b""),
    (Why.BAD_FILE, "line 3: occurred_at '2020-04-20T12:01:02' has no offset", b":02+08:00\nREFUND", b":02\nREFUND"),
    (Why.BAD_FILE, "line 3: Invalid isoformat string", b"2020-04-20T12:01:02+08:00\nREFUND", b"noon\nREFUND"),
    (Why.BAD_FILE, "line 4: unexpected end of data", b"REFUND", b'"REFUND'),
    (Why.BAD_FILE, "byte 0 is not UTF-8", b"HANQUAN-FLOW", b"\xff\xfeHANQUAN-FLOW"),
]


@pytest.mark.parametrize(("why", "detail", "old", "new"), BAD)
def test_a_file_that_is_not_whole_is_refused(why: Why, detail: str, old: bytes, new: bytes) -> None:
    spoiled = PLAIN.replace(old, new, 1)
    assert spoiled != PLAIN
    refused = read_flow_file(spoiled, None)
    assert isinstance(refused, Refused)
    assert refused.why is why
    assert detail in refused.detail


def test_a_file_with_another_hash_is_refused() -> None:
    refused = read_flow_file(PLAIN.replace(b"6800", b"6801"), hashlib.sha256(PLAIN).digest())
    assert isinstance(refused, Refused)
    assert refused.why is Why.WRONG_HASH


def test_a_quoted_line_break_does_not_shift_line_numbers() -> None:
    spoiled = PLAIN.replace(b"RESTORE-1", b'"RES\nTORE"', 1)
    refused = read_flow_file(spoiled, None)
    assert isinstance(refused, Refused)
    assert refused.detail.startswith("line 3: stock_id")
    moved = PLAIN.replace(b"wepay", b'"we\npay"').replace(b"REFUND", b"REVERSE")
    refused = read_flow_file(moved, None)
    assert isinstance(refused, Refused)
    assert refused.detail.startswith("line 5: 'REVERSE'")


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_or_read_but_never_a_fault(data: bytes) -> None:
    assert isinstance(read_flow_file(data, None), Refused)


@given(st.integers(0, len(PLAIN) - 1), st.integers(1, 255))
def test_one_changed_byte_is_seen_by_the_hash(place: int, change: int) -> None:
    data = bytearray(PLAIN)
    data[place] ^= change
    refused = read_flow_file(bytes(data), hashlib.sha256(PLAIN).digest())
    assert isinstance(refused, Refused)
    assert refused.why is Why.WRONG_HASH


def test_spreadsheet_look_is_safe_in_excel() -> None:
    data = write_flow_file("wepay", CAMPAIGN, DAY, [ROW], for_spreadsheet=True)
    assert data.startswith(b"\xef\xbb\xbf")
    row = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")))[2]
    assert row[1:3] == ["`12345678901234567890", "`20200420000000000001"]
    assert row[7:9] == ["6800", "2000"]


def test_xlsx_has_ids_as_text_and_money_as_numbers() -> None:
    data = write_flow_xlsx("wepay", CAMPAIGN, DAY, [ROW, BACK])
    assert data == write_flow_xlsx("wepay", CAMPAIGN, DAY, [ROW, BACK])
    book = openpyxl.load_workbook(io.BytesIO(data))
    rows = list(book.active.iter_rows(values_only=True))
    book.close()
    assert rows[0][:5] == ("HANQUAN-FLOW", "1", "wepay", CAMPAIGN, "2020-04-20")
    assert rows[2] == (
        "REDEEM", "12345678901234567890", "20200420000000000001", "", "CLAIM-000001", "RESTORE-1", "USED", 6_800,
        2_000, "2020-04-20T12:01:02+08:00",
    )  # fmt: skip
    assert rows[4][:3] == ("TRAILER", 2, 4_000)


# ---------------------------------------------------------------- our own side


@pytest.fixture
async def town(database: stores.Database) -> AsyncIterator[Town]:
    """A town in which nothing was sold yet."""
    async with database.connection() as conn:
        yield await build(conn)


async def test_our_flow_has_a_partners_events_of_a_day_and_no_others(town: Town, database: stores.Database) -> None:
    one = town.merchants[0]
    (sale, _) = await town.sell(one, DAY, 2)
    await town.sell(one, DAY, 1, stock_no=2)  # another partner's
    await town.sell(one, DAY, 1, stock_no=3)  # another campaign's
    await town.sell(one, later(1), 1)
    await town.refund([sale], at(DAY, 15))
    async with database.connection("hanquan_redemption") as conn:
        partner_no = await find_partner(conn, "wepay")
        assert partner_no == 1
        rows = await our_flow(conn, CAMPAIGN_NO, partner_no, DAY)
    assert [row.kind for row in rows] == ["REDEEM", "REDEEM", "REFUND"]
    first, _, refund = rows
    assert first == FlowRow(
        "REDEEM", "M0001", sale.use_request_no, "", f"CLAIM-{sale.voucher_id}", "RESTORE-1", "USED", 6_800, 2_000,
        at(DAY),
    )  # fmt: skip
    assert (refund.use_request_no, refund.voucher_state, refund.subsidy_fen) == (
        sale.use_request_no,
        "EFFECTIVE",
        2_000,
    )
    assert read(write_flow_file("wepay", CAMPAIGN, DAY, rows)).rows == rows


async def test_a_refund_that_loses_the_voucher_says_so(town: Town) -> None:
    sales = await town.sell(town.merchants[0], DAY, 1, stock_no=2)
    await town.refund(sales, at(DAY, 15))
    rows = await our_flow(town.conn, CAMPAIGN_NO, 2, DAY)
    assert [row.voucher_state for row in rows] == ["USED", "RETURNED"]


async def test_an_unknown_partner_is_refused(town: Town) -> None:
    assert await find_partner(town.conn, "nobody") == Refused(Why.UNKNOWN_PARTNER, "there is no partner nobody")
