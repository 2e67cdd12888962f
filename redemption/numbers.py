"""Request numbers of tills: the one place of their idempotency.

A number is registered in the bucket of its own hash before anything happens, with a hash of what it was
sent with. So it is unique over all buckets, and a second body under it is found wherever the voucher lives.
"""

from enum import IntEnum
from hashlib import blake2b
from typing import NamedTuple
from uuid import UUID

from kernel.partitions import bucket_of_key


class Scope(IntEnum):
    """What a number names; numbers of different scopes never meet."""

    USE = 1
    REFUND = 2
    ORDER = 3


class Number(NamedTuple):
    """A request number with what it was sent with."""

    key: UUID
    body_hash: int
    voucher_id: int

    def bucket(self, buckets: int) -> int:
        """Where it is registered."""
        return bucket_of_key(self.key.bytes, buckets)


def number_key(scope: Scope, merchant_no: int, number: str) -> UUID:
    """16 bytes that stand for one merchant's number in one scope."""
    text = b"%d:%d:%s" % (scope, merchant_no, number.encode())
    return UUID(bytes=blake2b(text, digest_size=16).digest())


def body_hash(*parts: object) -> int:
    """A signed 64-bit hash of what a number was sent with."""
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), signed=True)
