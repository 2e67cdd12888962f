"""How a service opens PostgreSQL. Every wait has an end."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import parse_qsl, urlsplit

import asyncpg

from kernel import pool_metrics
from kernel.errors import StoreDown
from kernel.tasks import running

Answer = TypeVar("Answer")

if TYPE_CHECKING:
    Pool = asyncpg.Pool[asyncpg.Record]
    Connection = asyncpg.pool.PoolConnectionProxy[asyncpg.Record] | asyncpg.Connection[asyncpg.Record]
else:
    Pool = asyncpg.Pool
    Connection = asyncpg.Connection

LISTEN_RETRY_S = 1.0
ACQUIRE_TIMEOUT_S = 5.0
"""asyncpg's acquire waits for ever unless told otherwise; every caller passes this."""
READ_DEADLINE_S = 5.0
"""How long whoever asks for something to be looked up waits at most."""


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

    `by_keys`: for hot paths. Plans as BY_KEYS says, or the DSN instead (docs/citus.md); and connections go back as
    they are, which saves a round trip a statement: their users leave nothing behind (no session locks, no settings,
    no open cursors).

    Raises what asyncpg raises when the server cannot be reached.
    """
    pool = await asyncpg.create_pool(
        dsn,
        min_size=size,
        max_size=size,
        command_timeout=command_timeout_s,
        timeout=ACQUIRE_TIMEOUT_S,
        server_settings={"application_name": name, "TimeZone": "UTC", **(_plans_by_keys(dsn) if by_keys else {})},
        reset=_leave_as_is if by_keys else None,
    )
    pool_metrics.pools.add(name, pool)
    return pool


def _plans_by_keys(dsn: str) -> dict[str, str]:
    asked = dict(parse_qsl(urlsplit(dsn).query))
    return {name: asked.get(name, value) for name, value in BY_KEYS.items()}


async def _leave_as_is(connection: Connection) -> None:
    """Instead of asyncpg's own RESET ALL."""


@contextlib.asynccontextmanager
async def connected(pool: Pool) -> AsyncIterator[Connection]:
    """A connection of the pool. StoreDown when PostgreSQL does not answer or cannot serve; what was under way
    then has an outcome that is not known."""
    try:
        async with pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as conn:
            yield conn
    except (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
        raise StoreDown(f"the database did not answer: {type(error).__name__}") from error
    except (asyncpg.OperatorInterventionError, asyncpg.InsufficientResourcesError) as error:
        raise StoreDown(f"the database cannot serve now: {type(error).__name__}") from error


async def within(deadline_s: float, work: Coroutine[None, None, Answer]) -> Answer:
    """The work's answer; StoreDown at the deadline. A timeout alone would not do: a connection that was given up
    is waited for before it goes back to its pool, and whoever asked would wait with it."""
    task = asyncio.create_task(work)
    try:
        await asyncio.wait([task], timeout=deadline_s)
        if not task.done():
            raise StoreDown("the database did not answer in time")
        return task.result()
    finally:
        task.cancel()


@contextlib.asynccontextmanager
async def listening(dsn: str, channel: str, heard: Callable[[], None]) -> AsyncIterator[None]:
    """Calls `heard` whenever somebody notifies a channel, while the context is open. A connection that breaks is
    opened again, and `heard` is called then, too: something may have been missed."""
    async with running(_listen(dsn, channel, heard)):
        yield


async def _listen(dsn: str, channel: str, heard: Callable[[], None]) -> None:
    while True:
        with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
            await _listen_once(dsn, channel, heard)
        await asyncio.sleep(LISTEN_RETRY_S)


async def _listen_once(dsn: str, channel: str, heard: Callable[[], None]) -> None:
    conn = await asyncpg.connect(dsn, timeout=ACQUIRE_TIMEOUT_S)
    gone = asyncio.Event()
    conn.add_termination_listener(lambda _: gone.set())
    try:
        await conn.add_listener(channel, lambda *_: heard())
        heard()
        await gone.wait()
    finally:
        conn.terminate()
