"""Unified social credit codes: the check digit finds what people mistype."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redemption.merchants.credit_code import ALPHABET, LENGTH, Flaw, check_digit, flaw_of, tidy

characters = st.sampled_from(ALPHABET)
bodies = st.tuples(
    st.text(characters, min_size=2, max_size=2),
    st.text(st.sampled_from("0123456789"), min_size=6, max_size=6),
    st.text(characters, min_size=9, max_size=9),
).map("".join)


@given(bodies)
def test_every_body_has_one_check_digit(body: str) -> None:
    assert [last for last in ALPHABET if flaw_of(body + last) is None] == [check_digit(body)]


@given(bodies, st.integers(0, LENGTH - 1), characters)
def test_a_change_of_one_character_is_always_found(body: str, place: int, other: str) -> None:
    code = body + check_digit(body)
    changed = code[:place] + other + code[place + 1 :]
    assert (flaw_of(changed) is None) == (changed == code)


@given(bodies, st.integers(0, LENGTH - 2))
def test_a_swap_of_two_neighbours_is_always_found(body: str, place: int) -> None:
    code = body + check_digit(body)
    swapped = code[:place] + code[place + 1] + code[place] + code[place + 2 :]
    assert (flaw_of(swapped) is None) == (swapped == code)


@pytest.mark.parametrize("code", ["9144030071526726XG", "91110000802100433B", "91330100799655058B"])
def test_codes_of_well_known_companies_hold(code: str) -> None:
    assert flaw_of(code) is None


@pytest.mark.parametrize(
    ("code", "flaw"),
    [
        ("9144030071526726XH", Flaw.CHECK_DIGIT),
        ("91440300715267260G", Flaw.CHECK_DIGIT),
        ("9144030071526726XG1", Flaw.FORM),
        ("9144030071526726X", Flaw.FORM),
        ("9144030071526726XG\n", Flaw.FORM),
        ("9144030O71526726XG", Flaw.FORM),
        ("91A40300715267263G", Flaw.FORM),
        ("9144030071526726xg", Flaw.FORM),
        ("", Flaw.FORM),
    ],
)
def test_what_is_no_code_is_told_why(code: str, flaw: Flaw) -> None:
    assert flaw_of(code) is flaw


def test_a_code_may_be_written_in_groups_and_in_wide_letters() -> None:
    assert tidy(" 91440300-7152 6726xg\n") == tidy("９１４４０３００７１５２６７２６ＸＧ") == "9144030071526726XG"
