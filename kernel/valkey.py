"""How a service opens Valkey (or Redis 7)."""

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

SOCKET_TIMEOUT_S = 5.0


def open_valkey(url: str, *, connections: int = 8, socket_timeout_s: float | None = SOCKET_TIMEOUT_S) -> Redis:
    """A client that never retries by itself: whether a command may be sent twice is its caller's policy.

    A blocking reader passes a `socket_timeout_s` longer than its block. Callers bound their own
    concurrency to `connections`; redis-py's pool raises when it is full.
    """
    return Redis.from_url(
        url,
        max_connections=connections,
        socket_timeout=socket_timeout_s,
        socket_connect_timeout=SOCKET_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        protocol=3,
    )
