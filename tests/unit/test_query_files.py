"""The loader of named queries: what it reads, and how loudly it refuses."""

import pytest

import sql

TEXT = """\
-- Words about the file.

-- name: first_one
-- What the first is for.
SELECT 1;

-- name: second
-- What the second is for.
-- A comment that belongs to the statement.
SELECT 2
  FROM somewhere
"""


def test_statements_and_purposes_are_read() -> None:
    queries = sql.parse("file", TEXT)
    assert list(queries) == ["first_one", "second"]
    assert queries.first_one == queries["first_one"] == "SELECT 1"
    assert queries["second"].endswith("SELECT 2\n  FROM somewhere")
    assert queries.purpose_of("second") == "What the second is for."
    assert len(queries) == 2


def test_an_unknown_name_is_loud() -> None:
    queries = sql.parse("file", TEXT)
    with pytest.raises(KeyError, match=r"sql/queries/file.sql has no query 'third'"):
        queries["third"]
    with pytest.raises(AttributeError, match="it has first_one, second"):
        _ = queries.third


@pytest.mark.parametrize(
    "text",
    [
        "-- name: Upper\n-- For what.\nSELECT 1",
        "-- name: twice\n-- For.\nSELECT 1;\n-- name: twice\n-- For.\nSELECT 2",
        "-- name: without_purpose\nSELECT 1",
        "-- name: without_statement\n-- For what.\n",
    ],
)
def test_a_file_that_breaks_the_format_is_refused(text: str) -> None:
    with pytest.raises(sql.QueryFileError):
        sql.parse("file", text)


def test_a_missing_file_is_loud() -> None:
    with pytest.raises(FileNotFoundError):
        sql.load("no_such_file")


def test_files_are_read_once() -> None:
    assert sql.load("migrate") is sql.load("migrate")
