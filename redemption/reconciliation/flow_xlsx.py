"""The flow file for people: the same rows as an Excel workbook, every id and time as text."""

import io
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime

import xlsxwriter
from xlsxwriter.format import Format
from xlsxwriter.worksheet import Worksheet

from kernel.clock import rfc3339
from redemption.reconciliation.flow_file import FLOW, FlowRow
from redemption.settlement.sealed_csv import TRAILER, VERSION

ROWS_MAX = 1_048_576 - 3
"""A worksheet's rows, less title, column names and trailer."""

_WIDTHS = (9, 20, 28, 28, 28, 24, 14, 12, 12, 27)
# A workbook carries its making; a fixed moment makes the same rows the same bytes.
_MADE = datetime(2020, 1, 1, tzinfo=UTC).replace(tzinfo=None)
# Rows go to disk as they come; and no cell is ever taken for a formula or a link.
_OPTIONS = {"constant_memory": True, "strings_to_formulas": False, "strings_to_urls": False}


def write_flow_xlsx(partner_id: str, campaign_id: str, day: date, rows: Iterable[FlowRow]) -> bytes:
    """The bytes of a workbook. Memory grows with its bytes, not with its rows.

    ValueError when there are more rows than a worksheet holds.
    """
    buffer = io.BytesIO()
    book = xlsxwriter.Workbook(buffer, _OPTIONS)
    book.set_properties({"title": f"{partner_id} {campaign_id} {day.isoformat()}", "created": _MADE})
    sheet = book.add_worksheet(day.isoformat())
    text = book.add_format({"num_format": "@"})
    for column, width in enumerate(_WIDTHS):
        sheet.set_column(column, column, width, None if FLOW.columns[column].endswith("_fen") else text)
    _put(sheet, 0, (FLOW.kind, VERSION, partner_id, campaign_id, day.isoformat()), text)
    _put(sheet, 1, FLOW.columns, text)
    count, amount_fen = 0, 0
    for count, row in enumerate(rows, start=1):
        if count > ROWS_MAX:
            raise ValueError(f"a worksheet holds {ROWS_MAX} rows")
        _put(sheet, count + 1, (*row[:9], rfc3339(row.occurred_at)), text)
        amount_fen += row.subsidy_fen
    _put(sheet, count + 2, (TRAILER, count, amount_fen), text)
    book.close()
    return buffer.getvalue()


def _put(sheet: Worksheet, row: int, cells: Sequence[str | int], text: Format) -> None:
    for column, cell in enumerate(cells):
        if isinstance(cell, int):
            sheet.write_number(row, column, cell)
        else:
            sheet.write_string(row, column, cell, text)
