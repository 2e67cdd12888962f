"""Names of the issuer's keys in Valkey. Every key of a shard carries its hash tag, so that on a cluster
a person's limits, the stock they claim from and the log of it live on one node."""


def tag(shard: int) -> str:
    """The hash tag of a shard: `{s0}`."""
    return f"{{s{shard}}}"


def round_key(shard: int, round_no: int) -> str:
    """Hash: a round's window, limits and what is left of each stock."""
    return f"{tag(shard)}:round:{round_no}"


def log_key(shard: int) -> str:
    """Stream: wins waiting for the drain."""
    return f"{tag(shard)}:log"


def request_key(shard: int, round_no: int, digest: bytes, hash_buckets: int) -> str:
    """Hash that remembers the answer to a request number."""
    return f"{tag(shard)}:req:{round_no}:{hash_bucket(digest, hash_buckets)}"


def person_key(shard: int, round_no: int, digest: bytes, hash_buckets: int) -> str:
    """Hash that counts what a person has of a round."""
    return f"{tag(shard)}:who:{round_no}:{hash_bucket(digest, hash_buckets)}"


def hash_bucket(digest: bytes, hash_buckets: int) -> int:
    """Which of a round's small hashes a digest belongs to; claim.lua computes the same."""
    return int.from_bytes(digest[:3]) % hash_buckets
