"""How a claim is packed for the script: what goes in comes out, and what stands for it is the same everywhere."""

import struct
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antifraud.gate import digest_person
from issuer.card import card_of
from issuer.carry import COLUMNS, load_of
from issuer.catalogue import Catalogue, Offered, Part, Round, Stock
from issuer.keys import hash_bucket
from issuer.record import (
    NO_DEVICE,
    SHORT_NUMBERS,
    Claim,
    Win,
    body_tag,
    claim_of,
    device_digest,
    find_record,
    pack_claim,
    pack_record,
    request_digest,
    request_key,
    unpack_answer,
    unpack_wins,
)
from issuer.rounds import unpublished_round
from kernel.clock import from_ms
from kernel.ids import SERIAL_MAX, unpack_voucher_id
from kernel.partitions import bucket_of, partition_of

OPENS_AT = datetime(2020, 4, 23, 4, 0, 0, 998_001, tzinfo=UTC)
ROUND = Round(
    round_no=7,
    campaign_no=1,
    opens_at=OPENS_AT,
    closes_at=OPENS_AT + timedelta(hours=1),
    per_person_and_partner_limit=1,
    per_person_limit=None,
    face_fen_per_person_max=None,
)
STOCKS = {
    no: Stock(
        stock_no=no,
        stock_id=f"stock-{no}",
        round_no=7,
        partner_no=1,
        group_no=None,
        is_granted=False,
        state="SCHEDULED",
        quantity=10,
        issued=0,
        adjust_no=0,
        face_value_fen=2_000,
        funded_fen=1_500,
        transaction_minimum_fen=6_000,
        valid_from=OPENS_AT,
        valid_until=OPENS_AT + timedelta(days=7),
    )
    for no in (1, 2, 3)
}


def offer(slot: int, partner_no: int, *parts: tuple[int, int]) -> Offered:
    """An offer of so many vouchers of so many stocks; a pack when it is more than one."""
    return Offered(
        offer_id=f"offer-{slot}",
        slot=slot,
        round=ROUND,
        partner_no=partner_no,
        group_no=None,
        is_granted=False,
        pack_no=None if parts in (((1, 1),), ((2, 1),), ((3, 1),)) else slot,
        parts=tuple(Part(STOCKS[no], quantity) for no, quantity in parts),
    )


numbers = st.text(st.sampled_from("ABCXYZabcxyz0189_-"), min_size=6, max_size=40)
tokens = st.binary(min_size=16, max_size=16)
parts = st.lists(st.tuples(st.sampled_from(sorted(STOCKS)), st.integers(1, 20)), min_size=1, max_size=4)
offers = st.builds(
    lambda slot, partner, some: offer(slot, partner, *some), st.integers(0, 32_000), st.integers(1, 99), parts
)
claims = st.builds(
    claim_of,
    card=st.builds(card_of, offers, is_grant=st.booleans()),
    person=tokens,
    device=st.just(NO_DEVICE) | st.binary(min_size=8, max_size=8),
    out_request_no=numbers,
)
serials = st.integers(1, SERIAL_MAX // 2) | st.integers(SHORT_NUMBERS - 2, SHORT_NUMBERS + 2)
times_ms = st.integers(0, 2**40 - 1) | st.integers(SHORT_NUMBERS - 2, SHORT_NUMBERS + 2)
won = st.tuples(claims, serials, st.integers(0, 2**52))


def entry_of(claim: Claim, serial: int, claimed_ms: int) -> bytes:
    """A win as claim.lua appends it: serial and time as in the answer, then the claim with its length."""
    packed = pack_claim(claim)
    return struct.pack(">Id", serial, claimed_ms) + len(packed).to_bytes(2) + packed


@given(st.lists(won, max_size=5))
def test_wins_come_back_from_the_log(some: list[tuple[Claim, int, int]]) -> None:
    assert list(unpack_wins(b"".join(entry_of(*each) for each in some))) == [win_of(*each) for each in some]


def win_of(claim: Claim, serial: int, claimed_ms: int) -> Win:
    """What the log tells of a claim that won."""
    offered = claim.card.offer
    return Win(
        round_no=7,
        slot=offered.slot,
        person=claim.person,
        partition=partition_of(claim.person),
        device=claim.device,
        request_key=request_key(offered.partner_no, claim.out_request_no),
        parts=tuple((part.stock.stock_no, part.quantity) for part in offered.parts),
        out_request_no=claim.out_request_no,
        serial=serial,
        claimed_ms=claimed_ms,
    )


@given(claims)
def test_the_script_finds_what_its_header_says(claim: Claim) -> None:
    packed, offered = pack_claim(claim), claim.card.offer
    digest = request_digest(offered.partner_no, claim.out_request_no)
    assert int.from_bytes(packed[0:2]) == 7
    assert int.from_bytes(packed[2:4]) == offered.slot
    assert packed[5:13] == digest_person(claim.person)
    assert packed[13:21] == claim.device
    assert packed[21:29] == digest
    assert int.from_bytes(packed[29:33]) == body_tag(claim.card, digest)
    assert packed[33:49] == claim.person
    assert int.from_bytes(packed[49:51]) == partition_of(claim.person)
    assert int.from_bytes(packed[51:55]) == sum(2_000 * part.quantity for part in offered.parts)
    assert packed[55] == len(offered.parts)
    end = 56 + 5 * packed[55]
    assert [struct.unpack_from(">IB", packed, at) for at in range(56, end, 5)] == [
        (part.stock.stock_no, part.quantity) for part in offered.parts
    ]
    assert packed[end:].decode() == claim.out_request_no


@given(serials, st.integers(0, 2**52))
def test_an_answer_is_read_as_it_was_given(serial: int, claimed_ms: int) -> None:
    assert unpack_answer(b"R" + struct.pack(">Id", serial, claimed_ms)) == (serial, claimed_ms)


@given(
    st.lists(
        st.tuples(claims, serials, times_ms), min_size=1, max_size=4, unique_by=lambda each: each[0].card.offer.slot
    )
)
def test_each_win_on_record_is_found_again(some: list[tuple[Claim, int, int]]) -> None:
    records = b"".join(pack_record(*each) for each in some)
    for claim, serial, after_ms in some:
        assert find_record(records, claim) == (serial, after_ms)
        assert find_record(records, claim_of(claim.card, claim.person, NO_DEVICE, "another-number")) is None
    assert find_record(b"", some[0][0]) is None


@given(claims, serials)
def test_a_packs_vouchers_have_the_serials_from_the_first_one_on(claim: Claim, serial: int) -> None:
    vouchers = list(win_of(claim, serial, 0).vouchers())
    ids = [unpack_voucher_id(voucher_id) for voucher_id, _ in vouchers]
    assert ids == [(7, partition_of(claim.person), serial + i) for i in range(claim.card.offer.units)]
    bought = [part.stock.stock_no for part in claim.card.offer.parts for _ in range(part.quantity)]
    assert [stock_no for _, stock_no in vouchers] == bought


@given(st.lists(won, min_size=1, max_size=6))
def test_what_is_loaded_adds_up(some: list[tuple[Claim, int, int]]) -> None:
    catalogue = Catalogue(
        {claim.card.offer.offer_id: claim.card.offer for claim, _, _ in some}, STOCKS, {7: ROUND}, 2, 1
    )
    wins = [win_of(*each) for each in some]
    load = load_of(wins, catalogue)
    vouchers = [each for win in wins for each in win.vouchers()]
    assert sum(load.issued.values()) == len(vouchers)
    assert sorted(no for chunk in load.chunks.values() for no in chunk.voucher_ids) == sorted(no for no, _ in vouchers)
    assert sum(chunk.amount_fen for chunk in load.chunks.values()) == 1_500 * len(vouchers)
    assert set(load.chunks) == {(bucket_of(win.partition, 2), 1) for win in wins}
    assert load.rows.count(struct.pack(">hi", len(COLUMNS), 8)) >= len(vouchers)


@given(st.integers(1, 9), numbers, st.integers(1, 9), numbers)
def test_a_number_is_its_partners(partner: int, number: str, other_partner: int, other: str) -> None:
    same = (partner, number) == (other_partner, other)
    assert (request_digest(partner, number) == request_digest(other_partner, other)) == same
    assert (request_key(partner, number) == request_key(other_partner, other)) == same
    assert -(2**63) <= request_key(partner, number) < 2**63


@given(offers, offers, numbers)
def test_one_number_for_two_offers_makes_two_requests(one: Offered, other: Offered, number: str) -> None:
    digest = request_digest(1, number)
    same = one.slot == other.slot
    assert (body_tag(card_of(one), digest) == body_tag(card_of(other), digest)) == same


@given(st.binary(min_size=8, max_size=8), st.integers(1, 10**6))
def test_a_hash_bucket_is_one_of_them(digest: bytes, buckets: int) -> None:
    assert 0 <= hash_bucket(digest, buckets) < buckets


@pytest.mark.parametrize("token", [None, ""])
def test_no_device_is_no_device(token: str | None) -> None:
    assert device_digest(token) == NO_DEVICE
    assert device_digest("0" * 32) != NO_DEVICE


def test_a_round_opens_not_a_part_of_a_millisecond_too_early() -> None:
    catalogue = Catalogue({}, STOCKS, {7: ROUND}, 1, 1)
    assert from_ms(unpublished_round(catalogue, ROUND, 0).opens_ms) >= OPENS_AT
