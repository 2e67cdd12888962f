"""How a city is cut up when it is set up: the one place where a stack chooses."""

from issuer.campaign.load import City, load_city
from kernel.postgres import Connection
from kernel.valkey import is_cluster
from stack.valkey_cluster import SHARDS

BUCKETS = 2
"""So many batches can commit at once on one machine."""


async def found_city(conn: Connection, valkey_url: str) -> City:
    """Sets the city up with one shard, or on a cluster with two to a primary; as it is when that was done before.
    Needs hanquan_operator."""
    return await load_city(conn, BUCKETS, SHARDS if is_cluster(valkey_url) else 1)
