"""The printed code: number and code turn into each other, however it is typed, and nothing else is a code."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.codes import CODE_LENGTH, CodeBook, grouped, number_of, spelled
from kernel.ids import ID_BITS

BOOK = CodeBook({1: bytes(range(32)), 2: bytes(range(32, 64))})
OLD = CodeBook({1: bytes(range(32))})
NUMBERS = st.integers(0, 2**ID_BITS - 1)


@given(NUMBERS)
def test_a_code_names_its_voucher_however_it_is_typed(voucher_id: int) -> None:
    code = BOOK.encode(voucher_id)
    typed = [code, code.lower(), grouped(code), code.replace("0", "o").replace("1", "l"), code.replace("1", "I")]
    assert [BOOK.decode(text) for text in typed] == [voucher_id] * len(typed)
    assert BOOK.decode(OLD.encode(voucher_id)) == voucher_id


@given(NUMBERS, st.integers(0, CODE_LENGTH - 1), st.integers(1, 31))
def test_a_code_one_character_off_names_nothing(voucher_id: int, place: int, shift: int) -> None:
    code = BOOK.encode(voucher_id)
    letters = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
    wrong = letters[(letters.index(code[place]) + shift) % 32]
    assert BOOK.decode(code[:place] + wrong + code[place + 1 :]) is None


@given(st.integers(0, 2**130 - 1))
def test_every_number_is_spelled_and_read_back(number: int) -> None:
    assert number_of(spelled(number, CODE_LENGTH), CODE_LENGTH) == number


@pytest.mark.parametrize("odd", ["_", "+", "U", "u", "!", "\n", "\t", "٣", "é", "İ", "\x00", "\ud800"])
def test_what_python_takes_for_part_of_a_number_is_no_part_of_a_code(odd: str) -> None:
    code = "1" * CODE_LENGTH
    for place in (0, 13, CODE_LENGTH - 1):
        assert number_of(code[:place] + odd + code[place + 1 :], CODE_LENGTH) is None


@given(st.text(max_size=40))
def test_any_text_is_a_code_or_none(text: str) -> None:
    number = number_of(text, CODE_LENGTH)
    assert number is None or number < 2 ** (5 * CODE_LENGTH)
    assert BOOK.decode(text) is None
