"""Amounts at the edge: what a campaign file may name, and what a spreadsheet can hold."""

import io
from datetime import date, datetime

import openpyxl
import pytest

from issuer.campaign.complaints import Code, Complaint
from issuer.campaign.read import Refused, read_campaign
from kernel.clock import CITY_ZONE
from kernel.money import AMOUNT_FEN_MAX, FUND_FEN_MAX
from redemption.reconciliation.flow_file import FlowRow
from redemption.reconciliation.flow_xlsx import write_flow_xlsx
from tests.small_campaign import read, small

ACCOUNT_FEN_MAX = 10**15
"""What an account may hold; the table says so."""


@pytest.mark.parametrize("amount", ["1000000000000", "1000000000000.00"])
def test_the_largest_fund_is_a_trillion_yuan(amount: str) -> None:
    assert read(small(("fund: 1000", f'fund: "{amount}"'))).fund_fen == FUND_FEN_MAX


@pytest.mark.parametrize("amount", ["1000000000000.01", "1000000000001", "5000000000000", "9" * 40])
def test_a_fund_above_the_limit_is_refused_at_the_door(amount: str) -> None:
    complaint = refused(small(("fund: 1000", f'fund: "{amount}"')))
    assert complaint.code == Code.BAD_AMOUNT
    assert "is above the largest amount, 1000000000000 yuan" in str(complaint)


def test_a_face_above_the_largest_amount_is_refused_at_the_door() -> None:
    complaint = refused(small(("face: 20,", 'face: "10000000000.01",')))
    assert complaint.code == Code.BAD_AMOUNT
    assert "is above the largest amount, 10000000000 yuan" in str(complaint)


def refused(text: str) -> Complaint:
    answer = read_campaign(text.encode())
    assert isinstance(answer, Refused)
    [complaint] = answer.complaints
    return complaint


def test_a_spreadsheet_holds_the_largest_sum_to_the_fen() -> None:
    """Cells are doubles: whole up to 2**53, which is nine times the limit of an account."""
    assert 9 * ACCOUNT_FEN_MAX < 2**53
    at = datetime(2020, 4, 23, 12, tzinfo=CITY_ZONE)
    largest = [AMOUNT_FEN_MAX - 1, *[AMOUNT_FEN_MAX] * 999]
    rows = [FlowRow("REDEEM", "NOODLES", f"u{n}", "", "c", "s", "USED", fen, fen, at) for n, fen in enumerate(largest)]
    book = openpyxl.load_workbook(io.BytesIO(write_flow_xlsx("wechat", "grand-0", date(2020, 4, 23), rows)))
    cells = [[cell.value for cell in row] for row in book.active.iter_rows(min_row=3)]
    assert cells[-1][2] == ACCOUNT_FEN_MAX - 1
