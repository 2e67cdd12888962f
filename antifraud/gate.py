"""What issuer and redemption may use of anti-fraud: the gate in the claim path, and signals.

The gate (gate.lua) is put before the issuer's claim script as text, so that judging a claim and
granting it are one atomic step. Penalties reach it through `block_person`, written by the worker.
"""

import re
from hashlib import blake2b
from pathlib import Path
from typing import Annotated

import msgspec
from redis.asyncio import Redis

from antifraud.signals import ClaimSignal, RedeemSignal, RefundSignal, Signal, SignalWriter

__all__ = [
    "BLOCK",
    "ClaimSignal",
    "GateLimits",
    "RedeemSignal",
    "RefundSignal",
    "Signal",
    "SignalWriter",
    "block_person",
    "digest_device",
    "digest_person",
    "gate_source",
    "shard_tag",
    "unblock_person",
]

BLOCK = "B"
"""The verdict code that refuses claims. The gate lets others pass: they are for later layers."""

DIGEST_BYTES = 8

_FRAGMENT = Path(__file__).with_name("gate.lua")

_Buckets = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]


class GateLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of the gate. Names and defaults are those of the table at the top of gate.lua.

    A bucket is one small hash in the store. Around 50 people each is cheapest: fewer pay more for
    the key, and above hash-max-listpack-entries (128 in Redis 7) a hash takes five times the room.
    Bucket counts of `risk` and `device` must stay as they are while their keys live.
    """

    pace_burst: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 5
    pace_refill_ms: Annotated[int, msgspec.Meta(ge=20, le=60_000)] = 2000
    pace_epoch_s: Annotated[int, msgspec.Meta(ge=1, le=600)] = 60
    pace_buckets: _Buckets = 32_768
    device_household: Annotated[int, msgspec.Meta(ge=1, le=16)] = 4
    device_ttl_s: Annotated[int, msgspec.Meta(ge=60, le=366 * 86_400)] = 120 * 86_400
    device_buckets: _Buckets = 131_072
    risk_buckets: _Buckets = 4_096

    def __post_init__(self) -> None:
        """ValueError when a token bucket outlives its epoch: the gate looks back one epoch only."""
        if self.pace_burst * self.pace_refill_ms > self.pace_epoch_s * 1000:
            raise ValueError("pace_burst * pace_refill_ms must fit into pace_epoch_s")


DEFAULT_LIMITS = GateLimits()


def gate_source(limits: GateLimits = DEFAULT_LIMITS) -> str:
    """The Lua fragment with `limits` filled in, to be put before a script that calls it.

    Limits are validated again here, because a Struct's constructor checks no types. Raises
    msgspec.ValidationError for a limit out of range.
    """
    known = msgspec.convert(msgspec.to_builtins(limits), GateLimits)
    text = _FRAGMENT.read_text(encoding="utf-8")
    for name in GateLimits.__struct_fields__:
        line = re.compile(rf"^(\s+{name} = )\d+", re.MULTILINE)
        text, count = line.subn(rf"\g<1>{getattr(known, name)}", text)
        if count != 1:
            raise ValueError(f"gate.lua must name {name} once, not {count} times")
    return text


def digest_person(token: bytes) -> bytes:
    """8 bytes for a person's 16-byte token; unlike the hash that picks the person's shard."""
    return blake2b(token, digest_size=DIGEST_BYTES, person=b"hq-person").digest()


def digest_device(token: bytes) -> bytes:
    """8 bytes for a device's 16-byte token."""
    return blake2b(token, digest_size=DIGEST_BYTES, person=b"hq-device").digest()


def shard_tag(shard: int) -> str:
    """The hash tag of a shard, as the issuer's keys carry it: `{s0}`."""
    return f"{{s{shard}}}"


async def block_person(valkey: Redis, tag: str, digest: bytes, code: str = BLOCK, until_ms: int | None = None) -> None:
    """Gives a person a verdict on one shard, until a time in ms since 1970 or, with None, for good.

    Writing the same verdict again changes nothing. `tag` is the shard's, such as "{s0}".
    `valkey` may be a pipeline.
    """
    if len(code) != 1:
        raise ValueError(f"a verdict code is one letter, not {code!r}")
    value = code if until_ms is None else f"{code}@{until_ms}"
    await valkey.set(f"af:risk:{tag}:any", 1)  # first: a verdict that the gate does not look for is none
    await valkey.hset(risk_key(tag, digest), mapping={digest: value})


async def unblock_person(valkey: Redis, tag: str, digest: bytes) -> None:
    """Takes a person's verdict back on one shard, whatever it was."""
    await valkey.hdel(risk_key(tag, digest), digest)


def risk_key(tag: str, digest: bytes, limits: GateLimits = DEFAULT_LIMITS) -> str:
    """Where gate.lua looks for a person's verdict."""
    bucket = int.from_bytes(digest[5:8]) % limits.risk_buckets
    return f"af:risk:{tag}:{bucket}"
