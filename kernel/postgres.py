"""How a service opens PostgreSQL. Every wait has an end."""

from typing import TYPE_CHECKING

import asyncpg

if TYPE_CHECKING:
    Pool = asyncpg.Pool[asyncpg.Record]
    Connection = asyncpg.pool.PoolConnectionProxy[asyncpg.Record] | asyncpg.Connection[asyncpg.Record]
else:
    Pool = asyncpg.Pool
    Connection = asyncpg.Connection

ACQUIRE_TIMEOUT_S = 5.0
"""asyncpg's acquire waits for ever unless told otherwise; every caller passes this."""


async def open_pool(dsn: str, *, size: int = 4, command_timeout_s: float = 10.0, name: str = "hanquan") -> Pool:
    """A pool with all its connections open, so that none is opened in the middle of a rush.

    Raises what asyncpg raises when the server cannot be reached.
    """
    return await asyncpg.create_pool(
        dsn,
        min_size=size,
        max_size=size,
        command_timeout=command_timeout_s,
        timeout=ACQUIRE_TIMEOUT_S,
        server_settings={"application_name": name, "TimeZone": "UTC"},
    )
