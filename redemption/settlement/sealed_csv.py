"""CSV files that say themselves whether they are whole.

    HANQUAN-FLOW,1,wepay,wuhan-2020,2020-04-20      what it is, version, what it is about
    kind,merchant_id,...,subsidy_fen                names of the columns
    REDEEM,M0001,...,2000                           rows
    TRAILER,1,2000                                  number of rows, sum of the amount column in fen

UTF-8. Two looks with the same content: plain, for programs; and for spreadsheets, with a byte-order mark
(without it Excel shows garbage), CRLF, and a backtick before every cell that is not a number, as in the
bills of WeChat Pay: it keeps long numbers from turning into 1.2E+17 and a shop's name from being run as
a formula. A reader takes both looks.
"""

import csv
import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from redemption.settlement.refusals import Refused, Why

FILE_BYTES_MAX = 256 << 20
VERSION = "1"
TRAILER = "TRAILER"
TEXT_MARK = "`"

_NUMBER = re.compile(r"[0-9]{1,15}")


class Form(NamedTuple):
    """One kind of file. `head` names what its first row tells after the kind and the version."""

    kind: str
    head: tuple[str, ...]
    columns: tuple[str, ...]
    amount: str
    rows_max: int


class Sealed(NamedTuple):
    """The content of a file that is whole. `lines`: the line number that each row starts on, for messages."""

    head: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]
    amount_fen: int
    sha256: bytes


class _Unreadable(Exception):
    """Carries a refusal out of a nested step."""

    def __init__(self, why: Why, detail: str) -> None:
        super().__init__(detail)
        self.refused = Refused(why, detail)


def write_sealed(
    form: Form, head: Sequence[str], rows: Iterable[Sequence[str | int]], *, for_spreadsheet: bool = False
) -> bytes:
    """The bytes of a file: the same input always gives the same bytes. Numbers are given as int."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\r\n" if for_spreadsheet else "\n")
    mark = TEXT_MARK if for_spreadsheet else ""
    amount_at = form.columns.index(form.amount)
    count = amount_fen = 0
    writer.writerow([form.kind, VERSION, *(mark + cell for cell in head)])
    writer.writerow(form.columns)
    for row in rows:
        count += 1
        amount_fen += int(row[amount_at])
        writer.writerow([cell if isinstance(cell, int) else mark + cell for cell in row])
    writer.writerow([TRAILER, count, amount_fen])
    return buffer.getvalue().encode("utf-8-sig" if for_spreadsheet else "utf-8")


def read_sealed(form: Form, data: bytes, expected_sha256: bytes | None) -> Sealed | Refused:
    """A file whose hash (if told), frame and trailer hold; of its cells only the amount is looked at.

    WRONG_HASH, WRONG_TRAILER_COUNT, WRONG_TRAILER_AMOUNT; BAD_FILE, naming the line, for the rest.
    """
    digest = hashlib.sha256(data).digest()
    if expected_sha256 is not None and digest != expected_sha256:
        return Refused(Why.WRONG_HASH, f"the file's SHA-256 is {digest.hex()}, not {expected_sha256.hex()}")
    try:
        rows, lines = _read_rows(data, form.rows_max)
        head = _frame(form, rows, lines)
        trailer, trailer_line = rows.pop(), lines.pop()
        amount_fen = _sum(form, rows[2:], lines[2:])
        _check_trailer(trailer, trailer_line, len(rows) - 2, amount_fen)
    except _Unreadable as error:
        return error.refused
    return Sealed(head, rows[2:], lines[2:], amount_fen, digest)


def number(text: str) -> int:
    """A cell that must be a whole number of up to 15 digits. ValueError otherwise."""
    if _NUMBER.fullmatch(text) is None:
        raise ValueError(f"{text[:40]!r} is not a whole number")
    return int(text)


def _read_rows(data: bytes, rows_max: int) -> tuple[list[list[str]], list[int]]:
    if len(data) > FILE_BYTES_MAX:
        raise _Unreadable(Why.BAD_FILE, f"the file is larger than {FILE_BYTES_MAX >> 20} MiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _Unreadable(Why.BAD_FILE, f"byte {error.start} is not UTF-8") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    line = 1
    try:
        for row in reader:
            rows.append([cell.removeprefix(TEXT_MARK) for cell in row])
            lines.append(line)
            line = reader.line_num + 1
            if len(rows) > rows_max + 3:
                raise _Unreadable(Why.BAD_FILE, f"more than {rows_max} rows")
    except csv.Error as error:
        raise _Unreadable(Why.BAD_FILE, f"line {line}: {error}") from None
    return rows, lines


def _frame(form: Form, rows: list[list[str]], lines: list[int]) -> tuple[str, ...]:
    """What the first row tells. Every row must have its place and its cells."""
    if len(rows) < 3 or rows[-1][:1] != [TRAILER] or len(rows[-1]) != 3:
        raise _Unreadable(Why.BAD_FILE, f"line {lines[-1] if lines else 1}: the file does not end in a trailer")
    if rows[0][:2] != [form.kind, VERSION] or len(rows[0]) != 2 + len(form.head):
        raise _Unreadable(Why.BAD_FILE, f"line 1: expected {form.kind},{VERSION},{','.join(form.head)}")
    if tuple(rows[1]) != form.columns:
        raise _Unreadable(Why.BAD_FILE, f"line {lines[1]}: expected the columns {','.join(form.columns)}")
    for row, line in zip(rows[2:-1], lines[2:-1], strict=True):
        if len(row) != len(form.columns):
            raise _Unreadable(Why.BAD_FILE, f"line {line}: {len(row)} cells, not {len(form.columns)}")
    return tuple(rows[0][2:])


def _sum(form: Form, rows: list[list[str]], lines: list[int]) -> int:
    amount_at = form.columns.index(form.amount)
    amount_fen = 0
    for row, line in zip(rows, lines, strict=True):
        try:
            amount_fen += number(row[amount_at])
        except ValueError as error:
            raise _Unreadable(Why.BAD_FILE, f"line {line}: {form.amount} {error}") from None
    return amount_fen


def _check_trailer(trailer: list[str], line: int, count: int, amount_fen: int) -> None:
    try:
        said_count, said_fen = number(trailer[1]), number(trailer[2])
    except ValueError as error:
        raise _Unreadable(Why.BAD_FILE, f"line {line}: trailer {error}") from None
    if said_count != count:
        raise _Unreadable(Why.WRONG_TRAILER_COUNT, f"the trailer says {said_count} rows, there are {count}")
    if said_fen != amount_fen:
        raise _Unreadable(Why.WRONG_TRAILER_AMOUNT, f"the trailer says {said_fen} fen, the rows add up to {amount_fen}")
