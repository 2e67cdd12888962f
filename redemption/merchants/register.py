"""The register of businesses and the public list of forgers, as they come: CSV files in UTF-8 with a line of names.

    credit_code,name,status,valid_until            status: ACTIVE, REVOKED, CANCELLED, MOVED; valid_until may be empty
    credit_code,reason,listed_on,listed_until      days as 2026-12-31; an entry always ends

A file is taken whole or not at all: every line that cannot be read is named.
"""

import csv
import io
from collections.abc import Callable, Sequence
from datetime import date
from typing import Generic, TypeVar

import msgspec

from redemption.merchants.application import tidy_text
from redemption.merchants.check import Business, Listing, read_day
from redemption.merchants.credit_code import flaw_of, tidy

BYTES_MAX = 512 * 1024 * 1024
BAD_LINES_MAX = 20

STATUS = {"存续": "ACTIVE", "在业": "ACTIVE", "吊销": "REVOKED", "注销": "CANCELLED", "迁出": "MOVED"}
STATUS |= {name: name for name in ("ACTIVE", "REVOKED", "CANCELLED", "MOVED")}
NO_END = {"", "长期", "long-term"}

Entry = TypeVar("Entry", Business, Listing)


class BadFile(msgspec.Struct, frozen=True):
    """Why a file was not taken: up to BAD_LINES_MAX lines in words."""

    complaints: list[str]


class Register(msgspec.Struct, Generic[Entry], frozen=True):
    """The entries of a file; at least one, no code (and day) twice."""

    entries: list[Entry]


class _BadLine(Exception):
    """What is wrong with one line."""


def read_register(data: bytes) -> Register[Business] | BadFile:
    """The register of businesses."""
    return _read(data, ("credit_code", "name", "status", "valid_until"), _business, lambda entry: entry.credit_code)


def read_public_list(data: bytes) -> Register[Listing] | BadFile:
    """The public list."""
    names = ("credit_code", "reason", "listed_on", "listed_until")
    return _read(data, names, _listing, lambda entry: (entry.credit_code, entry.listed_on))


def _read(
    data: bytes, names: tuple[str, ...], make: Callable[[dict[str, str]], Entry], key_of: Callable[[Entry], object]
) -> Register[Entry] | BadFile:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return BadFile([f"byte {error.start} is not UTF-8; save the file as UTF-8"])
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        if set(rows.fieldnames or ()) != set(names):
            return BadFile([f"the first line must be {','.join(names)}"])
        return _read_rows(rows, names, make, key_of)
    except csv.Error as error:
        return BadFile([f"after line {rows.line_num}: {error}"])


def _read_rows(
    rows: "csv.DictReader[str]",
    names: Sequence[str],
    make: Callable[[dict[str, str]], Entry],
    key_of: Callable[[Entry], object],
) -> Register[Entry] | BadFile:
    entries: dict[object, Entry] = {}
    complaints: list[str] = []
    for row in rows:
        try:
            if None in row or any(row[name] is None for name in names):
                raise _BadLine("has more or fewer columns than the first line")
            entry = make({name: tidy_text(row[name]) for name in names})
            if key_of(entry) in entries:
                raise _BadLine(f"{entry.credit_code} is there twice")
            entries[key_of(entry)] = entry
        except _BadLine as bad:
            complaints.append(f"line {rows.line_num}: {bad}")
            if len(complaints) == BAD_LINES_MAX:
                break
    if not entries and not complaints:
        complaints = ["there is no entry"]
    return BadFile(complaints) if complaints else Register(list(entries.values()))


def _business(row: dict[str, str]) -> Business:
    status = STATUS.get(row["status"])
    if status is None:
        raise _BadLine(f"status is one of {', '.join(STATUS)}; not {row['status']!r}")
    until = None if row["valid_until"] in NO_END else _day(row, "valid_until")
    return Business(credit_code=_code(row), name=_name(row, "name", 200), status=status, valid_until=until)


def _listing(row: dict[str, str]) -> Listing:
    listed_on, listed_until = _day(row, "listed_on"), _day(row, "listed_until")
    if listed_until < listed_on:
        raise _BadLine("listed_until is before listed_on")
    reason = _name(row, "reason", 500)
    return Listing(credit_code=_code(row), listed_on=listed_on, listed_until=listed_until, reason=reason)


def _code(row: dict[str, str]) -> str:
    code = tidy(row["credit_code"])
    if (flaw := flaw_of(code)) is not None:
        raise _BadLine(f"{code or 'an empty text'} is no credit code ({flaw})")
    return code


def _day(row: dict[str, str], name: str) -> date:
    day = read_day(row[name])
    if day is None:
        raise _BadLine(f"{name} is a day such as 2026-12-31; not {row[name]!r}")
    return day


def _name(row: dict[str, str], name: str, length_max: int) -> str:
    text = row[name]
    if not (1 <= len(text) <= length_max and text.isprintable()):
        raise _BadLine(f"{name} has 1 to {length_max} printable characters")
    return text
