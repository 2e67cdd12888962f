"""A list of people: a file with one person token a line."""

import re
from collections.abc import Iterator
from hashlib import sha256

import msgspec

PEOPLE_MAX = 1_000_000
FILE_BYTES_MAX = 64 * 1024 * 1024
"""More than a million lines can have."""
SHOWN_MAX = 50
"""Bad lines that are told; whoever has more mends these first."""

_HEADER = re.compile(r'"?person_token"?', re.IGNORECASE)
_TOKEN = re.compile(r'("?)(?P<token>[0-9a-f]{32})\1')
_LINE_END = re.compile("\r\n|\r|\n")


class People(msgspec.Struct, frozen=True):
    """Who is on a list, in its order, each once.

    sha256   of the file
    people   16-byte tokens
    twice    lines that name somebody who stood on an earlier line
    """

    sha256: bytes
    people: tuple[bytes, ...]
    twice: int


class BadLine(msgspec.Struct, frozen=True):
    """A line, counted from 1, that is no token, and what is wrong with it."""

    line: int
    message: str


class BadList(msgspec.Struct, frozen=True):
    """A file that is no list of people. `lines` are the first of `count`."""

    lines: tuple[BadLine, ...]
    count: int


def read_people(data: bytes) -> People | BadList:
    """The people in a file: UTF-8, one token of 32 lowercase hex digits a line, and perhaps a first line that says
    person_token. Empty lines are passed over. One bad line makes the whole list bad."""
    if len(data) > FILE_BYTES_MAX:
        return _bad(f"the file has {len(data):,} bytes; a list has at most {FILE_BYTES_MAX:,}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        return _bad(f'byte {data[error.start]:#04x} is not UTF-8; save the file again and choose "UTF-8"', line)
    people: dict[bytes, None] = {}
    bad: list[BadLine] = []
    tokens = 0
    for number, word in _words(text):
        found = _TOKEN.fullmatch(word)
        if found is None:
            bad.append(BadLine(number, _advice(word)))
        else:
            people[bytes.fromhex(found["token"])] = None
            tokens += 1
    if bad:
        return BadList(tuple(bad[:SHOWN_MAX]), len(bad))
    if not 1 <= tokens <= PEOPLE_MAX:
        return _bad(f"the list names {tokens:,} people; it may name 1 to {PEOPLE_MAX:,}")
    return People(sha256=sha256(data).digest(), people=tuple(people), twice=tokens - len(people))


def _words(text: str) -> Iterator[tuple[int, str]]:
    """What stands on each line that is not empty, without the header."""
    is_first = True
    for number, line in enumerate(_LINE_END.split(text), start=1):
        word = line.strip(" \t")
        if word and not (is_first and _HEADER.fullmatch(word)):
            yield number, word
        is_first = is_first and not word


def _advice(word: str) -> str:
    shown = word if len(word) <= 40 else word[:40] + "..."
    if "," in word or ";" in word:
        return f"{shown!r} has more than one column; keep the column of person tokens alone"
    if re.fullmatch("[0-9A-Fa-f]{32}", word):
        return f"{shown!r} has capital letters; a token is written in small ones"
    if re.fullmatch("[0-9a-f]+", word):
        return f"{shown!r} has {len(word)} digits; a token has 32"
    return f"{shown!r} is no person token; write 32 digits of 0-9 and a-f, never a name or a document's number"


def _bad(message: str, line: int = 1) -> BadList:
    return BadList((BadLine(line, message),), 1)
