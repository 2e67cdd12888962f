"""How a claim is packed for the script: what goes in comes out, and what stands for it is the same everywhere."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antifraud.gate import digest_person
from issuer.catalogue import Offered
from issuer.keys import hash_bucket
from issuer.record import (
    NO_DEVICE,
    Claim,
    Win,
    body_digest,
    device_digest,
    pack_claim,
    pack_told,
    person_field,
    request_digest,
    request_key,
    unpack_answer,
    unpack_wins,
)
from issuer.stock import fresh_round
from kernel.clock import from_ms
from kernel.ids import SERIAL_MAX, unpack_voucher_id
from kernel.partitions import partition_of

numbers = st.text(st.sampled_from("ABCXYZabcxyz0189_-"), min_size=6, max_size=40)
tokens = st.binary(min_size=16, max_size=16)
claims = st.builds(
    Claim,
    round_no=st.integers(1, 1023),
    stock_no=st.integers(1, 2**31 - 1),
    partner_no=st.integers(1, 2**15 - 1),
    person=tokens,
    device=st.just(NO_DEVICE) | st.binary(min_size=8, max_size=8),
    out_request_no=numbers,
)
wins = st.builds(Win, claim=claims, serial=st.integers(1, SERIAL_MAX), claimed_ms=st.integers(0, 2**52))


def entry_of(each: Win) -> bytes:
    """A win as claim.lua appends it: serial and time as in the answer, then the claim with its length."""
    told = pack_told(each.claim, each.serial, each.claimed_ms)
    packed = pack_claim(each.claim)
    return told[8:] + len(packed).to_bytes(2) + packed


@given(st.lists(wins, max_size=5))
def test_wins_come_back_from_the_log(some: list[Win]) -> None:
    assert list(unpack_wins(b"".join(map(entry_of, some)))) == some


@given(claims)
def test_the_script_finds_what_its_header_says(claim: Claim) -> None:
    packed = pack_claim(claim)
    assert int.from_bytes(packed[0:2]) == claim.round_no
    assert int.from_bytes(packed[2:6]) == claim.stock_no
    assert int.from_bytes(packed[6:8]) == claim.partner_no
    assert packed[8:16] == digest_person(claim.person)
    assert packed[16:24] == claim.device
    assert packed[24:32] == request_digest(claim.partner_no, claim.out_request_no)
    assert packed[32:40] == body_digest(claim.stock_no, claim.person)
    assert packed[40:56] == claim.person
    assert packed[56:].decode() == claim.out_request_no
    assert person_field(claim, digest_person(claim.person)) == packed[8:16] + packed[6:8]


@given(wins)
def test_an_answer_is_read_as_it_was_remembered(win: Win) -> None:
    told = pack_told(win.claim, win.serial, win.claimed_ms)
    assert unpack_answer(b"R" + told[8:]) == (win.serial, win.claimed_ms)
    assert told[:8] == body_digest(win.claim.stock_no, win.claim.person)


@given(wins)
def test_a_vouchers_number_holds_its_person_and_round(win: Win) -> None:
    parts = unpack_voucher_id(win.voucher_id)
    assert parts == (win.claim.round_no, partition_of(win.claim.person), win.serial)


@given(st.integers(1, 9), numbers, st.integers(1, 9), numbers)
def test_a_number_is_its_partners(partner: int, number: str, other_partner: int, other: str) -> None:
    same = (partner, number) == (other_partner, other)
    assert (request_digest(partner, number) == request_digest(other_partner, other)) == same
    assert (request_key(partner, number) == request_key(other_partner, other)) == same
    assert -(2**63) <= request_key(partner, number) < 2**63


@given(claims, claims)
def test_a_body_is_its_stock_and_person_and_nothing_else(claim: Claim, other: Claim) -> None:
    same = (claim.stock_no, claim.person) == (other.stock_no, other.person)
    assert (body_digest(claim.stock_no, claim.person) == body_digest(other.stock_no, other.person)) == same


@given(st.binary(min_size=8, max_size=8), st.integers(1, 10**6))
def test_a_hash_bucket_is_one_of_them(digest: bytes, buckets: int) -> None:
    assert 0 <= hash_bucket(digest, buckets) < buckets


@pytest.mark.parametrize("token", [None, ""])
def test_no_device_is_no_device(token: str | None) -> None:
    assert device_digest(token) == NO_DEVICE
    assert device_digest("0" * 32) != NO_DEVICE


def test_a_round_opens_not_a_part_of_a_millisecond_too_early() -> None:
    opens_at = datetime(2020, 4, 23, 4, 0, 0, 998_001, tzinfo=UTC)
    stock = Offered(
        stock_no=1,
        stock_id="s",
        round_no=1,
        campaign_no=1,
        partner_no=1,
        quantity=10,
        face_value_fen=2_000,
        funded_fen=2_000,
        transaction_minimum_fen=6_000,
        valid_from=opens_at,
        valid_until=opens_at + timedelta(days=7),
        paused=False,
        opens_at=opens_at,
        closes_at=opens_at + timedelta(hours=1),
        per_person_and_partner_limit=1,
    )
    assert from_ms(fresh_round([stock], 0, 1, 0).opens_ms) >= opens_at
