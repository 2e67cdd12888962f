"""Till codes: what a phone shows, when it counts, and that it works once."""

import itertools
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import segno
from hypothesis import given
from hypothesis import strategies as st

from kernel.clock import from_ms
from kernel.codes import CodeBook, grouped, number_of, spelled
from kernel.ids import pack_voucher_id
from kernel.till_codes import CODE_LENGTH, WINDOW_S, TillSeed, TillSeeds, till_code, window_of
from redemption.till_codes import Presented, TillCodes, is_spent

GUIDE = (Path(__file__).parents[2] / "docs/till-codes.md").read_text(encoding="utf-8")
KEYS = {1: bytes(range(16))}
SEEDS, BOOK = TillSeeds(KEYS), CodeBook(KEYS)
CODES = TillCodes(BOOK, SEEDS)
VOUCHER = pack_voucher_id(3, 517, 1234)
GIVEN = SEEDS.of(VOUCHER)
NOON = datetime(2020, 4, 23, 4, tzinfo=UTC)
MINUTE = window_of(NOON)
MS = timedelta(milliseconds=1)

vouchers = st.integers(0, 2**48 - 1)
moments = st.integers(2 * 60_000, 4 * 10**12).map(from_ms)


def shown(at: datetime, given_: TillSeed = GIVEN) -> str:
    """What a phone shows whose clock says `at`."""
    return till_code(given_, window_of(at))


# ---------------------------------------------------------------- the guide


def test_the_guides_vectors_and_example_hold() -> None:
    names: dict[str, Callable[[str, str, float], str]] = {}
    [example] = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    exec(compile(example, "docs/till-codes.md", "exec"), names)
    [(name, seed)] = re.findall(r'"name": "(\w+)", "seed": "(\w+)"', GUIDE)
    vectors = re.findall(r"^\| (\d+) \| (\w{20}) \|$", GUIDE, re.MULTILINE)
    assert len(vectors) == 6
    assert TillSeed(name, bytes.fromhex(seed)) == GIVEN
    for unix_s, code in vectors:
        assert names["till_code"](name, seed, float(unix_s)) == code
        assert till_code(GIVEN, window_of(from_ms(int(unix_s) * 1000))) == code


@given(vouchers, moments)
def test_the_guides_example_makes_every_code(voucher_id: int, at: datetime) -> None:
    made = SEEDS.of(voucher_id)
    names: dict[str, Callable[[str, str, float], str]] = {}
    exec(re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)[0], names)
    assert names["till_code"](made.name, made.seed.hex(), at.timestamp()) == shown(at, made)


def test_a_till_code_fits_the_smallest_qr_code() -> None:
    code = shown(NOON)
    assert segno.make(code, error="m", boost_error=False).designator == "1-M"
    assert segno.make(BOOK.encode(VOUCHER), error="m", boost_error=False).designator != "1-M"


# ---------------------------------------------------------------- when it counts


@given(vouchers, moments)
def test_a_code_counts_in_its_minute_and_in_both_beside_it(voucher_id: int, at: datetime) -> None:
    made, window = SEEDS.of(voucher_id), window_of(at)
    code = shown(at, made)
    for late in (-1, 0, 1):
        assert SEEDS.read(code, window + late) == (voucher_id, window)
    for late in (-2, 2, 3, 1_440):
        assert SEEDS.read(code, window + late) is None


@pytest.mark.parametrize(
    ("at", "counts"),
    [
        (NOON - timedelta(seconds=60) - MS, False),
        (NOON - timedelta(seconds=60), True),
        (NOON, True),
        (NOON + timedelta(seconds=120) - MS, True),
        (NOON + timedelta(seconds=120), False),
    ],
)
def test_the_edges_of_a_codes_life(at: datetime, counts: bool) -> None:
    assert (CODES.read(shown(NOON), at) == Presented(VOUCHER, MINUTE)) is counts
    assert (CODES.read(shown(NOON), at) is None) is not counts


@given(moments, st.integers(-60_000, 60_000))
def test_a_phone_up_to_a_minute_wrong_is_understood(now: datetime, wrong_ms: int) -> None:
    assert CODES.read(shown(now + wrong_ms * MS), now) is not None


@given(moments, st.integers(120_000, 10**9), st.sampled_from((-1, 1)))
def test_a_phone_two_minutes_wrong_is_not(now: datetime, wrong_ms: int, side: int) -> None:
    phone_ms = max(int(now.timestamp() * 1000) + side * wrong_ms, 0)
    if abs(phone_ms - now.timestamp() * 1000) >= 120_000:
        assert CODES.read(shown(from_ms(phone_ms)), now) is None


def test_the_first_minute_of_1970_is_no_fault() -> None:
    assert SEEDS.read(till_code(GIVEN, 0), 0) == (VOUCHER, 0)


# ---------------------------------------------------------------- what it tells, and what it does not


def test_it_is_read_as_people_type_it() -> None:
    code = next(code for code in (till_code(GIVEN, MINUTE + m) for m in range(10**4)) if "0" in code and "1" in code)
    minute = next(m for m in range(10**4) if till_code(GIVEN, MINUTE + m) == code)
    at = NOON + timedelta(minutes=minute)
    for typed in (code.lower(), grouped(code), f" {code} ", code.replace("0", "O").replace("1", "l")):
        assert CODES.read(typed, at) == Presented(VOUCHER, MINUTE + minute)


def test_both_kinds_are_read() -> None:
    assert CODES.read(BOOK.encode(VOUCHER), NOON) == Presented(VOUCHER, None)
    assert CODES.read(shown(NOON), NOON) == Presented(VOUCHER, MINUTE)


@given(st.integers(0, CODE_LENGTH - 1), st.sampled_from("0123456789ABCDEFGHJKMNPQRSTVWXYZ"))
def test_one_wrong_character_is_seen(at: int, typed: str) -> None:
    code = shown(NOON)
    wrong = code[:at] + typed + code[at + 1 :]
    assert wrong == code or CODES.read(wrong, NOON) is None


def test_what_is_no_code_is_none() -> None:
    code, other = shown(NOON), SEEDS.of(VOUCHER + 1)
    foreign = TillSeeds({1: bytes(16)}).of(VOUCHER)
    swapped = other.name + code[10:]
    wrong = [swapped, foreign.name + code[10:], shown(NOON, foreign), code[:-1], code + "0", code[:10], GIVEN.name * 2]
    for text in (*wrong, "", "U" * 20, "0" * 20, "Z" * 20, "*" * 20, "漢" * 20, "\x00" * 20):
        assert CODES.read(text, NOON) is None, text


def test_a_name_tells_nothing_and_buys_nothing() -> None:
    names = [SEEDS.of(pack_voucher_id(1, 1, serial)).name for serial in range(1, 2_001)]
    assert len(set(names)) == len(names)
    assert names != sorted(names)
    assert all(CODES.read(name, NOON) is None and BOOK.decode(name) is None for name in names[:100])
    values = [number_of(name, 10) or 0 for name in names]
    bits = [(one ^ next_one).bit_count() for one, next_one in itertools.pairwise(values)]
    assert 23 < sum(bits) / len(bits) < 25, "neighbours differ in half of 48 bits: nobody counts vouchers from screens"


# ---------------------------------------------------------------- right for another time


@given(vouchers, moments, st.integers(-14 * 1_440, 1_000))
def test_a_code_of_another_time_is_known_as_one(voucher_id: int, now: datetime, minutes: int) -> None:
    at = window_of(now) + minutes
    code = till_code(SEEDS.of(voucher_id), max(at, 0))
    assert CODES.mistimed(code, now) == voucher_id
    if abs(max(at, 0) - window_of(now)) > 1:
        assert CODES.read(code, now) is None, "and counts for nothing else"


def test_what_is_no_code_of_any_time_is_not_known() -> None:
    code = shown(NOON)
    wrong = [code[:-1] + ("0" if code[-1] != "0" else "1"), SEEDS.of(VOUCHER + 1).name + code[10:], GIVEN.name * 2]
    foreign = shown(NOON, TillSeeds({1: bytes(16)}).of(VOUCHER))
    unknown = shown(NOON, TillSeeds({2: KEYS[1]}).of(VOUCHER))
    for text in (*wrong, foreign, unknown, BOOK.encode(VOUCHER), "", "漢" * 20):
        assert CODES.mistimed(text, NOON) is None, text
    for minutes in (16 * 1_440, 400 * 1_440):
        assert CODES.mistimed(code, NOON + timedelta(minutes=minutes)) is None, "older than we look"


def test_another_minute_beside_the_same_proof_is_wrong() -> None:
    code = shown(NOON)
    for minute in range(1_024):
        forged = code[:10] + spelled(minute, 2) + code[12:]
        assert (CODES.read(forged, NOON) is not None) is (forged == code)


def test_seeds_are_rotated_with_the_code_keys() -> None:
    both, new = TillSeeds({1: KEYS[1], 2: bytes(16)}), TillSeeds({2: bytes(16)})
    code = shown(NOON)
    assert both.read(code, MINUTE) == (VOUCHER, MINUTE), "old seeds go on"
    assert both.of(VOUCHER) == new.of(VOUCHER) != GIVEN
    assert new.read(code, MINUTE) is None
    assert new.mistimed(code, MINUTE) is None, "nobody has that key any more"
    assert SEEDS.read(till_code(new.of(VOUCHER), MINUTE), MINUTE) is None


# ---------------------------------------------------------------- once


def naive_is_spent(window: int, last_at: datetime) -> bool:
    """The control: only what was made until the minute of the attempt is spent."""
    return window <= window_of(last_at)


@given(moments, st.integers(-59_999, 59_999))
def test_a_code_that_was_used_is_spent(used_at: datetime, wrong_ms: int) -> None:
    presented = CODES.read(shown(used_at + wrong_ms * MS), used_at)
    assert presented is not None and is_spent(presented.window, used_at)


def test_without_the_minute_after_a_phone_that_is_ahead_pays_twice() -> None:
    """Redeemed with the code of a phone that is 40 s ahead, refunded, and the picture shown again."""
    used_at = NOON + timedelta(seconds=30)
    code = shown(used_at + timedelta(seconds=40))
    presented = CODES.read(code, used_at + timedelta(seconds=50))
    assert presented is not None and presented.window is not None
    assert is_spent(presented.window, used_at)
    assert not naive_is_spent(presented.window, used_at), "the control must let it through"


def test_a_new_code_works_after_two_minutes_at_most() -> None:
    for second in range(0, 60, 7):
        used_at = NOON + timedelta(seconds=second)
        later = used_at + timedelta(seconds=2 * WINDOW_S)
        presented = CODES.read(shown(later), later)
        assert presented is not None and not is_spent(presented.window, used_at)


def test_what_was_never_used_and_what_is_printed_is_not_spent() -> None:
    assert not is_spent(MINUTE, None)
    assert not is_spent(None, NOON)
    assert not is_spent(None, None)
    assert not is_spent(MINUTE + 2, NOON)
    assert is_spent(MINUTE + 1, NOON)
