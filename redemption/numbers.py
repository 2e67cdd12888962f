"""Request numbers of tills: the one place of their idempotency.

A number has a home, the bucket of its own hash, and is decided there, under that bucket's lock. Where the voucher
lives there too, the row that the number made (a redemption, a hold) is its registration. Where it does not, the number
is registered at home first, in a transaction of its own, with a hash of what it was sent with. So a number is unique
over all buckets, and a second body under it is found wherever the voucher lives.
"""

from enum import StrEnum
from hashlib import blake2b
from typing import NamedTuple

from asyncpg.pgproto.pgproto import UUID

from kernel.partitions import bucket_of, partition_of


class Scope(StrEnum):
    """What a number names; numbers of different scopes never meet."""

    USE = "USE"
    REFUND = "REFUND"
    ORDER = "ORDER"
    HOLD = "HOLD"
    CANCEL = "CANCEL"


_TAGS = {Scope.USE: 1, Scope.REFUND: 2, Scope.ORDER: 3, Scope.HOLD: 4, Scope.CANCEL: 5}


class Number(NamedTuple):
    """A merchant's number with what it was sent with. `body_hash` of a payment's number is 0: it stands for its
    voucher, whatever else is sent with it. `partition`: of its key, which says where its home is."""

    scope: Scope
    key: UUID  # the driver's: a uuid.UUID that is made, hashed and sent in C
    body_hash: int
    voucher_id: int
    merchant_no: int
    text: str
    partition: int

    def home(self, buckets: int) -> int:
        """The bucket in which it is decided."""
        return bucket_of(self.partition, buckets)


def number(scope: Scope, merchant_no: int, text: str, *, body_hash: int = 0, voucher_id: int = 0) -> Number:
    """A number as a merchant sent it."""
    key = _key_bytes(scope, merchant_no, text)
    return Number(scope, UUID(key), body_hash, voucher_id, merchant_no, text, partition_of(key))


def number_key(scope: Scope, merchant_no: int, text: str) -> UUID:
    """16 bytes that stand for one merchant's number in one scope."""
    return UUID(_key_bytes(scope, merchant_no, text))


def _key_bytes(scope: Scope, merchant_no: int, text: str) -> bytes:
    return blake2b(b"%d:%d:%s" % (_TAGS[scope], merchant_no, text.encode()), digest_size=16).digest()


def body_hash(*parts: object) -> int:
    """A signed 64-bit hash of what a number was sent with."""
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), signed=True)
