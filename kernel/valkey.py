"""How a service opens Valkey (or Redis 7): one server, or a cluster, by the scheme of the URL.

    redis://:password@host:6379/0
    redis+cluster://:password@host-a:6379,host-b:6379      some nodes of it; the others are found
    rediss://, rediss+cluster://                           over TLS

`valkey` may stand for `redis`.
"""

from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from kernel.cluster import Address, Cluster
from kernel.errors import StoreDown

SOCKET_TIMEOUT_S = 5.0
CLUSTER = "+cluster"


def open_valkey(url: str, *, connections: int = 8, socket_timeout_s: float | None = SOCKET_TIMEOUT_S) -> Redis:
    """A client that never retries by itself: whether a command may be sent twice is its caller's policy.

    A blocking reader passes a `socket_timeout_s` longer than its block. Callers bound their own
    concurrency to `connections` (of a cluster, to each node); redis-py's pool raises when it is full.
    ValueError for a URL that cannot be read.
    """
    parts = urlsplit(url)
    scheme = parts.scheme.removesuffix(CLUSTER).replace("valkey", "redis")
    login, _, hosts = parts.netloc.rpartition("@")

    def open_node(address: Address) -> Redis:
        host, port = address
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        one = parts._replace(scheme=scheme, netloc=f"{login}@{where}" if login else where)
        return _open_one(one.geturl(), connections, socket_timeout_s)

    if is_cluster(url):
        return Cluster([_address(seed) for seed in hosts.split(",")], open_node)
    return _open_one(parts._replace(scheme=scheme).geturl(), connections, socket_timeout_s)


def is_cluster(url: str) -> bool:
    """Whether a URL names a cluster."""
    return urlsplit(url).scheme.endswith(CLUSTER)


def _address(seed: str) -> Address:
    host, _, port = seed.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("a cluster's URL names its nodes as host:port,host:port")
    return host.strip("[]"), int(port)


def _open_one(url: str, connections: int, socket_timeout_s: float | None) -> Redis:
    return Redis.from_url(
        url,
        max_connections=connections,
        socket_timeout=socket_timeout_s,
        socket_connect_timeout=SOCKET_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        protocol=3,
    )


async def guard(command: Any) -> Any:
    """Awaits a command; StoreDown when the store fails it."""
    try:
        return await command
    except RedisError as error:
        raise StoreDown(f"the claim store did not answer: {type(error).__name__}") from error
