"""Money, ids, codes, partitions, clocks and secrets: what everything else stands on."""

import itertools
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.clock import FileClock, ManualClock, SystemClock, business_day, from_ms, rfc3339, to_ms
from kernel.codes import CodeBook, grouped
from kernel.errors import Broken, Code, Retry
from kernel.ids import REQUEST_NO, SERIAL_MAX, pack_voucher_id, unpack_voucher_id
from kernel.money import format_yuan, parse_yuan, split_by_bp
from kernel.partitions import PARTITIONS, bucket_of, partition_of, shard_of
from kernel.sealing import seal, unseal
from kernel.settings import Settings, SettingsError
from kernel.tokens import make_token

fen = st.integers(min_value=0, max_value=10**12)


@given(fen)
def test_an_amount_survives_being_printed_and_read(amount_fen: int) -> None:
    assert parse_yuan(format_yuan(amount_fen).replace(",", "")) == amount_fen


@pytest.mark.parametrize("text", ["", "1.234", "-1", "1,000", "1.", ".5", "1e3", "10000000001", "１２", " 1"])
def test_what_is_not_an_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="amount"):
        parse_yuan(text)


@given(fen, st.lists(st.integers(0, 10_000), min_size=1, max_size=6))
def test_shares_add_up_to_the_fen(amount_fen: int, cuts: list[int]) -> None:
    edges = sorted([0, *cuts, 10_000])
    shares = [b - a for a, b in itertools.pairwise(edges)]
    parts = split_by_bp(amount_fen, shares)
    assert sum(parts) == amount_fen
    assert all(abs(part * 10_000 - amount_fen * share) < 10_000 for part, share in zip(parts, shares, strict=True))


@pytest.mark.parametrize("shares", [[9_999], [5_000, 5_001], [-1, 10_001]])
def test_shares_that_do_not_add_up_are_refused(shares: list[int]) -> None:
    with pytest.raises(ValueError, match="shares"):
        split_by_bp(100, shares)


@given(st.integers(1, 1023), st.integers(0, 1023), st.integers(1, SERIAL_MAX))
def test_a_voucher_id_holds_its_parts_and_sorts_by_round(round_no: int, partition: int, serial: int) -> None:
    voucher_id = pack_voucher_id(round_no, partition, serial)
    assert unpack_voucher_id(voucher_id) == (round_no, partition, serial)
    assert round_no << 38 <= voucher_id < (round_no + 1) << 38


@pytest.mark.parametrize("parts", [(0, 0, 1), (1024, 0, 1), (1, 1024, 1), (1, 0, 0), (1, 0, SERIAL_MAX + 1)])
def test_parts_that_do_not_fit_make_no_voucher_id(parts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="no voucher id"):
        pack_voucher_id(*parts)


BOOK = CodeBook({1: bytes(range(16))})


@given(st.integers(0, 2**48 - 1))
def test_a_code_turns_back_into_its_voucher(voucher_id: int) -> None:
    code = BOOK.encode(voucher_id)
    assert len(code) == 26
    assert BOOK.decode(code) == voucher_id
    assert BOOK.decode(grouped(code).lower()) == voucher_id


@given(st.integers(0, 2**48 - 1), st.integers(0, 25), st.sampled_from("0123456789ABCDEFGHJKMNPQRSTVWXYZ"))
def test_one_wrong_character_is_always_seen(voucher_id: int, at: int, typed: str) -> None:
    code = BOOK.encode(voucher_id)
    wrong = code[:at] + typed + code[at + 1 :]
    assert wrong == code or BOOK.decode(wrong) is None


def test_people_may_type_o_for_zero_and_l_for_one() -> None:
    code = next(code for code in map(BOOK.encode, range(100)) if "0" in code and "1" in code)
    assert BOOK.decode(code.replace("0", "O").replace("1", "l")) == BOOK.decode(code)


def test_an_old_key_still_reads_and_the_newest_writes() -> None:
    old = BOOK.encode(77)
    rotated = CodeBook({1: bytes(range(16)), 2: bytes(16)})
    assert rotated.decode(old) == 77
    assert rotated.encode(77) != old
    assert BOOK.decode(rotated.encode(77)) is None


@pytest.mark.parametrize("code", ["", "U" * 26, "0" * 25, "0" * 27, "0" * 26, "*" * 26])
def test_what_is_no_code_is_none(code: str) -> None:
    assert BOOK.decode(code) is None


@given(st.binary(min_size=16, max_size=16))
def test_shards_and_buckets_follow_from_one_partition(person: bytes) -> None:
    partition = partition_of(person)
    assert 0 <= partition < PARTITIONS
    for shards, buckets in ((8, 2), (16, 4), (4, 4)):  # a shard never straddles two buckets
        assert bucket_of(partition, buckets) == shard_of(partition, shards) * buckets // shards


def test_the_business_day_is_the_citys() -> None:
    assert business_day(datetime(2020, 4, 23, 15, 59, tzinfo=UTC)) == date(2020, 4, 23)
    assert business_day(datetime(2020, 4, 23, 16, 0, tzinfo=UTC)) == date(2020, 4, 24)
    assert rfc3339(datetime(2020, 4, 23, 4, 0, tzinfo=UTC)) == "2020-04-23T12:00:00+08:00"


@given(st.integers(0, 4 * 10**12))
def test_milliseconds_and_moments_turn_into_each_other(ms: int) -> None:
    assert to_ms(from_ms(ms)) == ms


def test_two_clocks_over_one_file_tell_one_time(tmp_path: Path) -> None:
    here, there = FileClock(tmp_path / "clock"), FileClock(tmp_path / "clock")
    assert abs(here.now_ms() - SystemClock().now_ms()) < 1000
    here.move_to(datetime(2020, 4, 23, 4, tzinfo=UTC))
    assert abs(there.now() - datetime(2020, 4, 23, 4, tzinfo=UTC)).total_seconds() < 30


def test_a_manual_clock_moves_only_when_told() -> None:
    clock = ManualClock(datetime(2020, 4, 23, 4, tzinfo=UTC))
    clock.advance(90)
    assert clock.now() == datetime(2020, 4, 23, 4, 1, 30, tzinfo=UTC)


def test_a_sealed_secret_opens_only_under_its_own_label_and_key() -> None:
    sealed = seal(bytes(32), b"secret", "A1")
    assert unseal(bytes(32), sealed, "A1") == b"secret"
    for key, label in ((bytes(32), "A2"), (bytes([1]) * 32, "A1")):
        with pytest.raises(Broken):
            unseal(key, sealed, label)


def test_tokens_are_keyed_and_stable() -> None:
    assert make_token(b"k" * 32, "4201") == make_token(b"k" * 32, "4201") != make_token(b"l" * 32, "4201")
    assert len(make_token(b"k" * 32, "4201")) == 32


def test_every_code_has_a_status_and_says_whether_to_retry() -> None:
    for code in Code:
        assert 400 <= code.http_status < 600
        assert code.retry in Retry
        assert code.meaning


def test_request_numbers_are_6_to_40_plain_characters() -> None:
    assert REQUEST_NO.fullmatch("a-Z_09")
    for number in ("short", "x" * 41, "with space", "umläut6", "semi;6"):
        assert not REQUEST_NO.fullmatch(number)


def test_a_missing_or_broken_setting_is_named() -> None:
    with pytest.raises(SettingsError, match="HANQUAN_POSTGRES_DSN"):
        Settings.from_env({})
    env = {
        "HANQUAN_POSTGRES_DSN": "p", "HANQUAN_VALKEY_URL": "v", "HANQUAN_MASTER_KEY": "zz", "HANQUAN_CODE_KEYS": "1:00",
    }  # fmt: skip
    with pytest.raises(SettingsError, match="cannot be read"):
        Settings.from_env(env)
