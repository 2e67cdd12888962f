"""How a city is cut up when it is set up: the one place where a stack chooses."""

from issuer.campaign.load import City, load_city
from kernel.postgres import Connection
from kernel.valkey import is_cluster
from stack.errors import StackError
from stack.valkey_cluster import SHARDS

BUCKETS = 1
"""On one machine: every till's number is at home with its voucher, so a redemption is one commit. More of them are for
cities that will be spread over several machines (docs/citus.md); on one they cost and bring nothing (docs/results)."""


async def found_city(conn: Connection, valkey_url: str, buckets: int | None = None) -> City:
    """Sets the city up with one shard, or on a cluster with two to a primary; as it is when that was done before.
    Needs hanquan_operator. StackError when it has another number of buckets than asked for."""
    city = await load_city(conn, buckets or BUCKETS, SHARDS if is_cluster(valkey_url) else 1)
    if buckets is not None and city.buckets != buckets:
        raise StackError(
            f"this city was founded with {city.buckets} buckets, which cannot be changed; asked: {buckets}"
        )
    return city
