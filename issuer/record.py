"""The one place that knows how a claim is packed for the script, how a win comes back, and how it is remembered.

A claim is one string, so that a thousand of them are a thousand arguments and not seven thousand; the
script looks at fixed places in it and appends the whole string to the log. See issuer/lua/claim.lua.
"""

import struct
from collections.abc import Iterator, Sequence
from hashlib import blake2b

import msgspec

from antifraud.gate import digest_device, digest_person
from issuer.card import PART, Card
from issuer.catalogue import Offered
from kernel.ids import pack_voucher_id
from kernel.partitions import partition_of

_BODY = struct.Struct(">8s8s8sI16sH")
_WON = struct.Struct(">IdHHHB8s8si4xI16sHIB")
"""A win in the log: serial, ms, length of the claim, then the claim up to its parts."""
_WIN = struct.Struct(">Id")
_LENGTH_END = _WIN.size + 2
_SHORT, _LONG = struct.Struct(">BI"), struct.Struct(">HII")
_SLOT = struct.Struct(">HBB")
NO_DEVICE = bytes(8)
_WAY, _AGAIN = 4, b"\2"
SHORT_SLOTS, SHORT_NUMBERS = 1 << 7, 1 << 24


class Claim(msgspec.Struct, frozen=True):
    """One claim as the store decides it."""

    card: Card
    person: bytes
    """16-byte token."""
    partition: int
    device: bytes
    """8-byte digest, or `NO_DEVICE`."""
    out_request_no: str


def claim_of(card: Card, person: bytes, device: bytes, out_request_no: str) -> Claim:
    """A claim, with the person's partition."""
    return Claim(card, person, partition_of(person), device, out_request_no)


class Win(msgspec.Struct, frozen=True):
    """One granted claim as the log tells it.

    serial   of its first voucher; the others of a pack follow
    parts    (stock_no, quantity) in the order of their serials
    """

    round_no: int
    slot: int
    person: bytes
    partition: int
    device: bytes
    request_key: int
    parts: tuple[tuple[int, int], ...]
    out_request_no: str
    serial: int
    claimed_ms: int

    def vouchers(self) -> Sequence[tuple[int, int]]:
        """(voucher_id, stock_no) of each."""
        voucher_id = pack_voucher_id(self.round_no, self.partition, self.serial)
        if len(self.parts) == 1 and self.parts[0][1] == 1:  # nearly all of them
            return ((voucher_id, self.parts[0][0]),)
        bought = [stock_no for stock_no, quantity in self.parts for _ in range(quantity)]
        return tuple(zip(range(voucher_id, voucher_id + len(bought)), bought, strict=True))


def device_digest(device_token: str | None) -> bytes:
    """Eight bytes that stand for a device, zeros when none was named."""
    return digest_device(bytes.fromhex(device_token)) if device_token else NO_DEVICE


def request_digest(partner_no: int, out_request_no: str) -> bytes:
    """Eight bytes that stand for a partner's request number."""
    return blake2b(b"%d:%s" % (partner_no, out_request_no.encode()), digest_size=8).digest()


def request_key(partner_no: int, out_request_no: str) -> int:
    """The first half of `request_digest` as a signed number: `voucher.request_key`."""
    return int.from_bytes(request_digest(partner_no, out_request_no)[:4], signed=True)


def body_tag(card: Card, digest: bytes) -> int:
    """Tells two requests of one person apart: by number, and by offer where the numbers are the same. A device
    token is evidence that may be missing in a retry, so it does not count."""
    return int.from_bytes(digest[:4]) ^ card.salt


def pack_claim(claim: Claim) -> bytes:
    """The string that claim.lua reads."""
    card, person = claim.card, claim.person
    digest = request_digest(card.offer.partner_no, claim.out_request_no)
    body = _BODY.pack(digest_person(person), claim.device, digest, body_tag(card, digest), person, claim.partition)
    return b"".join((card.head, body, card.tail, claim.out_request_no.encode()))


def pack_again(claim: Claim) -> bytes:
    """The same for a claim that was just asked and found its shard dry: it is not charged for pace twice."""
    packed = pack_claim(claim)
    return packed if packed[_WAY] else packed[:_WAY] + _AGAIN + packed[_WAY + 1 :]


def pack_slots(offers: Sequence[Offered]) -> bytes:
    """What the script knows of a round's offers, by slot: partner, group, and the group's limit."""
    return b"".join(
        _SLOT.pack(offer.partner_no, offer.group_no or 0, offer.round.groups.get(offer.group_no or 0, 0))
        for offer in offers
    )


def pack_record(claim: Claim, serial: int, after_ms: int) -> bytes:
    """What the script remembers of a win: `record_of` in claim.lua."""
    slot, tag = claim.card.offer.slot, _tag_of(claim)
    if slot < SHORT_SLOTS and serial < SHORT_NUMBERS and after_ms < SHORT_NUMBERS:
        return _SHORT.pack(slot, tag) + serial.to_bytes(3) + after_ms.to_bytes(3)
    return _LONG.pack(SHORT_SLOTS * 256 + slot, tag, serial) + after_ms.to_bytes(5)


def find_record(records: bytes, claim: Claim) -> tuple[int, int] | None:
    """Serial and ms after the opening of the win that a claim brought, among a person's records."""
    wanted = claim.card.offer.slot, _tag_of(claim)
    at = 0
    while at < len(records):
        if records[at] < SHORT_SLOTS:
            won, at = _SHORT.unpack_from(records, at), at + 11
            found = int.from_bytes(records[at - 6 : at - 3]), int.from_bytes(records[at - 3 : at])
        else:
            slot, tag, serial = _LONG.unpack_from(records, at)
            won, at = (slot - SHORT_SLOTS * 256, tag), at + 15
            found = serial, int.from_bytes(records[at - 5 : at])
        if won == wanted:
            return found
    return None


def _tag_of(claim: Claim) -> int:
    return body_tag(claim.card, request_digest(claim.card.offer.partner_no, claim.out_request_no))


def person_field(person_digest: bytes) -> bytes:
    """Under which name the script keeps what a person won."""
    return person_digest[2:8]


def request_member(digest: bytes) -> int:
    """As what the script remembers a request number that won."""
    return int.from_bytes(digest[2:8])


def unpack_answer(answer: bytes) -> tuple[int, int]:
    """Serial and campaign time in ms of a granted or replayed claim."""
    serial, claimed_ms = _WIN.unpack_from(answer, 1)
    return serial, int(claimed_ms)


def unpack_later(answer: bytes) -> int:
    """Campaign time in ms at which more is released."""
    return int(struct.unpack_from(">d", answer, 1)[0])


def unpack_wins(entry: bytes) -> Iterator[Win]:
    """All wins of one log entry."""
    at, end = 0, len(entry)
    head, unpack, part, part_size = _WON.size, _WON.unpack_from, PART.unpack_from, PART.size
    while at < end:
        serial, ms, length, round_no, slot, _, _, device, request, _, person, partition, _, parts = unpack(entry, at)
        first, at = at + head, at + _LENGTH_END + length
        number = first + parts * part_size
        bought = (part(entry, first),) if parts == 1 else tuple(part(entry, i) for i in range(first, number, part_size))
        yield Win(
            round_no, slot, person, partition, device, request, bought, entry[number:at].decode(), serial, int(ms)
        )
