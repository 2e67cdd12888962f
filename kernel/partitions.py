"""One partition function for the whole city.

A person's partition decides both the Valkey shard that holds their limits and the PostgreSQL bucket
that holds their vouchers, so that everything about one person lives together. 1,024 partitions are
dealt out to shards and buckets in contiguous ranges.
"""

from hashlib import blake2b

PARTITIONS = 1024


def partition_of(person: bytes) -> int:
    """The partition, 0..1023, of a person's 16-byte token."""
    return int.from_bytes(blake2b(person, digest_size=2).digest()) % PARTITIONS


def bucket_of(partition: int, buckets: int) -> int:
    """The PostgreSQL bucket of a partition."""
    return partition * buckets // PARTITIONS


def shard_of(partition: int, shards: int) -> int:
    """The Valkey shard of a partition."""
    return partition * shards // PARTITIONS


def bucket_of_key(key: bytes, buckets: int) -> int:
    """The bucket in which a request number with this 16-byte key is registered."""
    return bucket_of(partition_of(key), buckets)
