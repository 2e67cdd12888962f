"""Named queries: every SQL statement of the system lives in ``sql/queries/*.sql``.

A file is a list of blocks::

    -- name: insert_position
    -- Remembers how far the drain has read a shard's stream.
    INSERT INTO ...

``sql.load("drain").insert_position`` is then the statement's text.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent

_HEADING = re.compile(r"^-- name:(?P<name>.*)$", re.MULTILINE)
_NAME = re.compile(r"[a-z][a-z0-9_]*")


class QueryFileError(Exception):
    """A file in sql/queries does not keep to the format; the message says where."""


class Queries:
    """The statements of one file, as attributes and by name: ``q.foo``, ``q["foo"]``.

    An unknown name raises KeyError (by name) or AttributeError, and says which names exist.
    """

    def __init__(self, file: str, statements: dict[str, str], purposes: dict[str, str]) -> None:
        self._file = file
        self._statements = statements
        self._purposes = purposes

    def __getitem__(self, name: str) -> str:
        try:
            return self._statements[name]
        except KeyError:
            raise KeyError(self._unknown(name)) from None

    def __getattr__(self, name: str) -> str:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self._statements[name]
        except KeyError:
            raise AttributeError(self._unknown(name)) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._statements)

    def __len__(self) -> int:
        return len(self._statements)

    def purpose_of(self, name: str) -> str:
        """The one line that says what the query is for."""
        return self._purposes[name]

    def _unknown(self, name: str) -> str:
        known = ", ".join(self._statements) or "nothing"
        return f"sql/queries/{self._file}.sql has no query {name!r}; it has {known}"


@cache
def load(name: str) -> Queries:
    """Read ``sql/queries/<name>.sql``, once a process.

    Raises FileNotFoundError or QueryFileError: both are faults of the program, so load at import.
    """
    return parse(name, (FOLDER / "queries" / f"{name}.sql").read_text(encoding="utf-8"))


def names() -> list[str]:
    """Names of all query files, for tests that walk over every query."""
    return sorted(path.stem for path in (FOLDER / "queries").glob("*.sql"))


def schema() -> str:
    """Text of schema.sql, the readable truth that the migrations must reproduce."""
    return (FOLDER / "schema.sql").read_text(encoding="utf-8")


def digest_of(query: str) -> str:
    """The query that answers one number for all rows of another, in whatever order they come: equal for equal rows,
    and, but for one chance in 2^64, for no others. Tens of thousands of rows take PostgreSQL tens of milliseconds,
    and take whoever asks nothing."""
    return (FOLDER / "digest.sql").read_text(encoding="utf-8").replace(":query", query)


def parse(file: str, text: str) -> Queries:
    """Split the text of a query file into its named statements."""
    statements: dict[str, str] = {}
    purposes: dict[str, str] = {}
    headings = list(_HEADING.finditer(text))
    for heading, following in zip(headings, [*headings[1:], None], strict=True):
        name = heading["name"].strip()
        block = text[heading.end() : following.start() if following else len(text)].strip()
        if not _NAME.fullmatch(name) or name in statements:
            raise QueryFileError(f"sql/queries/{file}.sql: {name!r} is no fresh snake_case name")
        purpose, _, statement = block.partition("\n")
        if not purpose.startswith("-- ") or not statement.strip():
            raise QueryFileError(
                f"sql/queries/{file}.sql: {name} needs a comment line with its purpose and a statement below it"
            )
        purposes[name] = purpose.removeprefix("-- ").strip()
        statements[name] = statement.strip().removesuffix(";")
    return Queries(file, statements, purposes)
