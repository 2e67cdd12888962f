"""Names of the issuer's keys in Valkey. Every key of a shard carries its hash tag, so that on a cluster
a person's limits, the stock they claim from and the log of it live on one node. The scripts in issuer/lua
make the same names."""

CAP_BUCKETS = 65_521
"""Small hashes of a campaign's face caps on each shard; claim.lua has the same number."""


def tag(shard: int) -> str:
    """The hash tag of a shard: `{s0}`."""
    return f"{{s{shard}}}"


def round_key(shard: int, round_no: int) -> str:
    """Hash: a round's window, limits and offers."""
    return f"{tag(shard)}:round:{round_no}"


def stock_key(shard: int, stock_no: int) -> str:
    """Hash: what is left of a stock on this shard, and how it stands."""
    return f"{tag(shard)}:stock:{stock_no}"


def log_key(shard: int) -> str:
    """Stream: wins waiting for the drain."""
    return f"{tag(shard)}:log"


def out_key(shard: int, round_no: int) -> str:
    """Hash: units of a round's stocks on their way from this shard to others."""
    return f"{tag(shard)}:out:{round_no}"


def in_key(shard: int, round_no: int) -> str:
    """Hash: the last move of a round that this shard took from each other one."""
    return f"{tag(shard)}:in:{round_no}"


def request_key(shard: int, round_no: int, digest: bytes, hash_buckets: int) -> str:
    """Set of the request numbers that won."""
    return keys_of_bucket(shard, round_no, hash_bucket(digest, hash_buckets))[1]


def person_key(shard: int, round_no: int, digest: bytes, hash_buckets: int) -> str:
    """Hash that holds what people won in a round."""
    return keys_of_bucket(shard, round_no, hash_bucket(digest, hash_buckets))[0]


def cap_key(shard: int, campaign_no: int, digest: bytes) -> str:
    """Hash that adds up the face of what people won in a campaign."""
    return caps_of_bucket(shard, campaign_no, hash_bucket(digest, CAP_BUCKETS))


def capped_key(shard: int, campaign_no: int) -> str:
    """There once a shard's hashes hold all that people won in a campaign before."""
    return f"{tag(shard)}:capped:{campaign_no}"


def keys_of_bucket(shard: int, round_no: int, bucket: int) -> tuple[str, str]:
    """The small hash with this number of what people won in a round, and the set of the request numbers beside it."""
    return f"{tag(shard)}:who:{round_no}:{bucket}", f"{tag(shard)}:req:{round_no}:{bucket}"


def caps_of_bucket(shard: int, campaign_no: int, bucket: int) -> str:
    """The small hash of a campaign's face caps with this number."""
    return f"{tag(shard)}:cap:{campaign_no}:{bucket}"


def hash_bucket(digest: bytes, hash_buckets: int) -> int:
    """Which of the small hashes a digest belongs to; claim.lua computes the same."""
    return int.from_bytes(digest[:3]) % hash_buckets
