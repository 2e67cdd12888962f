"""The one place that knows how a claim is packed for the script and how a win comes back.

A claim is one string, so that a thousand of them are a thousand arguments and not seven thousand; the
script looks at fixed places in it and appends the whole string to the log. See issuer/lua/claim.lua.
"""

import struct
from collections.abc import Iterator
from hashlib import blake2b

import msgspec

from antifraud.gate import digest_device, digest_person
from kernel.ids import pack_voucher_id
from kernel.partitions import partition_of

_CLAIM = struct.Struct(">HIH8s8s8s8s16s")
_WIN = struct.Struct(">Id")
_LENGTH = struct.Struct(">H")
NO_DEVICE = bytes(8)


class Claim(msgspec.Struct, frozen=True):
    """One claim as the store decides it."""

    round_no: int
    stock_no: int
    partner_no: int
    person: bytes
    """16-byte token."""
    device: bytes
    """8-byte digest, or `NO_DEVICE`."""
    out_request_no: str


class Win(msgspec.Struct, frozen=True):
    """One granted claim as the log tells it."""

    claim: Claim
    serial: int
    claimed_ms: int

    @property
    def voucher_id(self) -> int:
        return pack_voucher_id(self.claim.round_no, partition_of(self.claim.person), self.serial)


def device_digest(device_token: str | None) -> bytes:
    """Eight bytes that stand for a device, zeros when none was named."""
    return digest_device(bytes.fromhex(device_token)) if device_token else NO_DEVICE


def request_digest(partner_no: int, out_request_no: str) -> bytes:
    """Eight bytes that stand for a partner's request number; also `voucher.request_key`."""
    return blake2b(b"%d:%s" % (partner_no, out_request_no.encode()), digest_size=8).digest()


def request_key(partner_no: int, out_request_no: str) -> int:
    """`request_digest` as the signed 64-bit number that PostgreSQL indexes."""
    return int.from_bytes(request_digest(partner_no, out_request_no), signed=True)


def body_digest(stock_no: int, person: bytes) -> bytes:
    """What makes two requests of one number the same: the stock and the person. A device token is
    evidence that may be missing in a retry, so it does not count."""
    return blake2b(stock_no.to_bytes(4) + person, digest_size=8).digest()


def pack_claim(claim: Claim) -> bytes:
    """The string that claim.lua reads."""
    head = _CLAIM.pack(
        claim.round_no,
        claim.stock_no,
        claim.partner_no,
        digest_person(claim.person),
        claim.device,
        request_digest(claim.partner_no, claim.out_request_no),
        body_digest(claim.stock_no, claim.person),
        claim.person,
    )
    return head + claim.out_request_no.encode()


def pack_told(claim: Claim, serial: int, claimed_ms: int) -> bytes:
    """What the script remembers of a granted claim."""
    return body_digest(claim.stock_no, claim.person) + _WIN.pack(serial, claimed_ms)


def person_field(claim: Claim, person_digest: bytes) -> bytes:
    """Under which name the script counts what a person has from a partner."""
    return person_digest + _LENGTH.pack(claim.partner_no)


def unpack_answer(answer: bytes) -> tuple[int, int]:
    """Serial and campaign time in ms of a granted or replayed claim."""
    serial, claimed_ms = _WIN.unpack_from(answer, 1)
    return serial, int(claimed_ms)


def unpack_wins(entry: bytes) -> Iterator[Win]:
    """All wins of one log entry."""
    at = 0
    while at < len(entry):
        serial, claimed_ms = _WIN.unpack_from(entry, at)
        (length,) = _LENGTH.unpack_from(entry, at + _WIN.size)
        at += _WIN.size + _LENGTH.size
        yield Win(_unpack_claim(entry[at : at + length]), serial, int(claimed_ms))
        at += length


def _unpack_claim(packed: bytes) -> Claim:
    round_no, stock_no, partner_no, _, device, _, _, person = _CLAIM.unpack_from(packed)
    return Claim(round_no, stock_no, partner_no, person, device, packed[_CLAIM.size :].decode())
