"""A list of people: what is taken, and what each bad line is told."""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from issuer.grants import people
from issuer.grants.grant import grant_number
from issuer.grants.people import BadLine, BadList, People, read_people
from kernel.ids import REQUEST_NO
from tests.city_plan import person

ONE, TWO = person(1), person(2)


def names(data: bytes) -> list[str]:
    answer = read_people(data)
    assert isinstance(answer, People), answer
    return [token.hex() for token in answer.people]


@pytest.mark.parametrize(
    "text",
    [
        f"{ONE}\n{TWO}\n",
        f"{ONE}\n{TWO}",
        f"person_token\n{ONE}\n{TWO}\n",
        f'"Person_Token"\r\n"{ONE}"\r\n"{TWO}"\r\n',
        f"\ufeff{ONE}\r{TWO}\r",
        f"\ufeffperson_token\n\n  {ONE} \n\t{TWO}\n\n",
    ],
)
def test_a_list_may_be_written_in_many_ways(text: str) -> None:
    assert names(text.encode()) == [ONE, TWO]


def test_who_stands_there_twice_is_counted_once_and_told() -> None:
    data = f"{TWO}\n{ONE}\n{TWO}\n{TWO}\n".encode()
    answer = read_people(data)
    assert isinstance(answer, People)
    assert (names(data), answer.twice, answer.sha256) == ([TWO, ONE], 2, sha256(data).digest())


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (f"{ONE}\n{TWO[:-1]}\n", 2, "has 31 digits; a token has 32"),
        (f"{ONE}0\n", 1, "has 33 digits"),
        (f"{ONE}\n\n{TWO.upper()}\n", 3, "capital letters"),
        (f"{ONE},张三\n", 1, "more than one column"),
        (f"{ONE};1\n", 1, "more than one column"),
        ("420106199001011234X\n", 1, "never a name or a document's number"),
        (f"{ONE}\nperson_token\n{TWO}\n", 2, "is no person token"),
        ("姓名\n", 1, "is no person token"),
        (f'{ONE}\n"{TWO}\n', 2, "is no person token"),
        (f"{ONE}\x00\n", 1, "is no person token"),
        ("x" * 1_000, 1, "..."),
        ("", 1, "names 0 people"),
        ("person_token\n", 1, "names 0 people"),
    ],
)
def test_a_bad_line_is_told(text: str, line: int, words: str) -> None:
    answer = read_people(text.encode())
    assert isinstance(answer, BadList)
    assert [each.line for each in answer.lines] == [line]
    assert words in answer.lines[0].message
    assert len(answer.lines[0].message) < 200


def test_one_bad_line_makes_the_list_bad_and_all_are_counted() -> None:
    answer = read_people((f"{ONE}\n" + "nobody\n" * 70).encode())
    assert isinstance(answer, BadList)
    assert (answer.count, len(answer.lines), answer.lines[-1].line) == (70, people.SHOWN_MAX, 51)


def test_another_encoding_and_a_huge_file() -> None:
    answer = read_people(f"{ONE}\n".encode("utf-16"))
    assert isinstance(answer, BadList)
    assert "is not UTF-8" in answer.lines[0].message
    answer = read_people(f"{ONE}\n姓名".encode("gb18030"))
    assert isinstance(answer, BadList)
    assert answer.lines[0].line == 2
    huge = b"\n" * (people.FILE_BYTES_MAX + 1)
    assert read_people(huge) == BadList(
        (BadLine(1, f"the file has {len(huge):,} bytes; a list has at most {people.FILE_BYTES_MAX:,}"),), 1
    )


def test_as_many_people_as_may_be_and_one_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(people, "PEOPLE_MAX", 3)
    lines = [person(n) for n in range(4)]
    assert names("\n".join(lines[:3]).encode()) == lines[:3]
    answer = read_people("\n".join(lines).encode())
    assert isinstance(answer, BadList)
    assert "names 4 people; it may name 1 to 3" in answer.lines[0].message


@given(st.binary(max_size=200))
def test_any_bytes_are_answered(data: bytes) -> None:
    answer = read_people(data)
    assert answer.people if isinstance(answer, People) else answer.lines


def test_a_grants_number_follows_from_offer_and_person() -> None:
    number = grant_number("city-tour_may_wechat_groceries", bytes.fromhex(ONE))
    assert number == "grant-" + sha256(f"city-tour_may_wechat_groceries:{ONE}".encode()).hexdigest()[:32]
    assert REQUEST_NO.fullmatch(number)
    assert number != grant_number("city-tour_may_wechat_groceries", bytes.fromhex(TWO))
    assert number != grant_number("city-tour_june_wechat_groceries", bytes.fromhex(ONE))
