"""How a service opens PostgreSQL. Every wait has an end."""

from types import MappingProxyType
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


BY_KEYS = MappingProxyType(
    {
        "enable_seqscan": "off",
        "enable_hashjoin": "off",
        "enable_mergejoin": "off",
        "plan_cache_mode": "force_generic_plan",
    }
)
"""Planner settings for connections that only look rows up by their keys: one plan, by index, made once.
Left alone, a connection keeps the plan it made while the tables were still empty, or plans every batch anew."""


async def open_pool(
    dsn: str,
    *,
    size: int = 4,
    command_timeout_s: float = 10.0,
    name: str = "hanquan",
    by_keys: bool = False,
) -> Pool:
    """A pool with all its connections open, so that none is opened in the middle of a rush.

    `by_keys`: for hot paths. Plans as BY_KEYS says, and connections go back as they are, which saves a round
    trip a statement; their users leave nothing behind (no session locks, no settings, no open cursors).

    Raises what asyncpg raises when the server cannot be reached.
    """
    return await asyncpg.create_pool(
        dsn,
        min_size=size,
        max_size=size,
        command_timeout=command_timeout_s,
        timeout=ACQUIRE_TIMEOUT_S,
        server_settings={"application_name": name, "TimeZone": "UTC", **(BY_KEYS if by_keys else {})},
        reset=_leave_as_is if by_keys else None,
    )


async def _leave_as_is(connection: Connection) -> None:
    """Instead of asyncpg's own RESET ALL."""
