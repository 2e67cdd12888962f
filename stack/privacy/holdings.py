"""What Valkey holds about a person: found by the person's token, for nothing there has a name."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from antifraud.gate import GateLimits, digest_person, risk_key, shard_tag
from antifraud.signals import STREAM, decode
from issuer import keys
from issuer.record import person_field
from kernel.clock import from_ms
from kernel.partitions import bucket_of, partition_of, shard_of
from kernel.scripts import ScriptRunner
from kernel.valkey import guard
from stack.retention.desk import Custodian, rounds

LIMITS = GateLimits()
PAGE = 4_096
"""Small hashes that one call looks through, in some ms."""
SIGNALS_PAGE = 100
PREFIX = 4
"""Bytes of a person's digest that a household remembers; gate.lua has the same number."""
_SCRIPT = Path(__file__).with_name("households.lua").read_text(encoding="utf-8")


class Person(msgspec.Struct, frozen=True, kw_only=True):
    """A person by their token, and where what is stored about them lies."""

    token: bytes
    partition: int
    bucket: int
    shard: int

    @property
    def digest(self) -> bytes:
        """As what the gate and the claim store know them."""
        return digest_person(self.token)


def person_of(token: str, buckets: int, shards: int) -> Person:
    """The person of a token of 32 hex digits."""
    raw = bytes.fromhex(token)
    partition = partition_of(raw)
    return Person(
        token=raw, partition=partition, bucket=bucket_of(partition, buckets), shard=shard_of(partition, shards)
    )


class Household(msgspec.Struct, frozen=True, kw_only=True):
    """A device on which the person won, by its digest; `ends_at` when its small hash goes by itself."""

    device: str
    people: int
    ends_at: datetime | None


async def remembered_claims(desk: Custodian, person: Person) -> list[Mapping[str, Any]]:
    """Rounds in which the claim store still remembers what the person won."""
    held = list[Mapping[str, Any]]()
    for one in await rounds(desk):
        buckets = await guard(desk.valkey.hget(keys.round_key(person.shard, one.round_no), "hash_buckets"))
        if buckets is not None:
            key = keys.person_key(person.shard, one.round_no, person.digest, int(buckets))
            if await guard(desk.valkey.hexists(key, person_field(person.digest))):
                held.append({"round": one.name, "round_no": one.round_no})
    return held


async def face_sums(desk: Custodian, person: Person) -> list[Mapping[str, Any]]:
    """Face that the person claimed in campaigns that cap it."""
    held = list[Mapping[str, Any]]()
    for campaign_no in sorted({one.campaign_no for one in await rounds(desk) if one.is_capped}):
        key = keys.cap_key(person.shard, campaign_no, person.digest)
        face_fen = await guard(desk.valkey.hget(key, person_field(person.digest)))
        if face_fen is not None:
            held.append({"campaign_no": campaign_no, "face_fen": int(face_fen)})
    return held


async def verdict(desk: Custodian, person: Person) -> str | None:
    """What the gate says of the person."""
    tag = shard_tag(person.shard)
    found = await guard(desk.valkey.hget(risk_key(tag, person.digest), person.digest))
    return None if found is None else found.decode()


async def households(desk: Custodian, person: Person) -> list[Household]:
    """Devices on which the person won. They are kept by device, so all of the shard are looked through; four bytes of a
    digest stand for a person, so one in some four billion may be somebody else's."""
    return [
        Household(device=device.hex(), people=len(people) // PREFIX, ends_at=await _ends_at(desk, key))
        for key, device, people in await _memberships(desk, person)
    ]


async def leave_households(desk: Custodian, person: Person) -> int:
    """Takes the person out of every household. Only while nobody claims: nothing else writes there then."""
    found = await _memberships(desk, person)
    for key, device, people in found:
        others = [people[at : at + PREFIX] for at in range(0, len(people), PREFIX)]
        rest = b"".join(one for one in others if one != person.digest[:PREFIX])
        await guard(desk.valkey.hset(key, device, rest) if rest else desk.valkey.hdel(key, device))
    return len(found)


async def _memberships(desk: Custodian, person: Person) -> list[tuple[str, bytes, bytes]]:
    """Key, device and people of each household of the person."""
    look, tag = ScriptRunner(desk.valkey, _SCRIPT), shard_tag(person.shard)
    found = list[tuple[str, bytes, bytes]]()
    for start in range(0, LIMITS.device_buckets, PAGE):
        end = min(start + PAGE, LIMITS.device_buckets)
        answer = await look(tag, [start, end, person.digest[:PREFIX]])
        found += [(key.decode(), device, people) for key, device, people in zip(*[iter(answer)] * 3, strict=True)]
    return found


async def _ends_at(desk: Custodian, key: str) -> datetime | None:
    ms = int(await guard(desk.valkey.pexpiretime(key)))
    return from_ms(ms) if ms > 0 else None


async def signals(desk: Custodian, person: Person) -> list[Mapping[str, Any]]:
    """What the detectors were told of the person: claims, refused ones too, uses, refunds."""
    token, found, low = person.token.hex(), list[Mapping[str, Any]](), "-"
    while True:
        entries = await guard(desk.valkey.xrange(STREAM, min=low, count=SIGNALS_PAGE))
        if not entries:
            return found
        for _, fields in entries:
            found += [
                {"kind": _kind(one), **msgspec.structs.asdict(one)} for one in _batch(fields) if one.person == token
            ]
        low = f"({entries[-1][0].decode()}"


def _batch(fields: Mapping[bytes, bytes]) -> Sequence[Any]:
    try:
        return decode(fields.get(b"b", b""))
    except msgspec.MsgspecError:  # none of ours
        return ()


def _kind(signal: Any) -> str:
    return type(signal).__name__.removesuffix("Signal").lower()
