"""Something read from a store, kept fresh in memory: no request ever waits for it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

import structlog
from prometheus_client import Counter

from kernel.tasks import running

Row = TypeVar("Row")
TURN_ROWS = 250
"""A millisecond's work or two."""

_failures = Counter("hanquan_refresh_failures", "Refreshes of something kept in memory that failed", ("what",))
log = structlog.get_logger()


async def in_turns(rows: Iterable[Row]) -> AsyncIterator[Row]:
    """Many rows, with the requests that wait let through every few hundred."""
    for number, row in enumerate(rows, 1):
        yield row
        if number % TURN_ROWS == 0:
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def kept_fresh(
    what: str, refresh: Callable[[], Awaitable[None]], every_s: float, wake: asyncio.Event | None = None
) -> AsyncIterator[None]:
    """Refreshes once, then every so often, and at once when `wake` is set, while the context is open.

    The first refresh may raise; later ones that fail are logged, and what is in memory stays good.
    """
    await refresh()
    async with running(_keep_refreshing(what, refresh, every_s, wake or asyncio.Event())):
        yield


async def _keep_refreshing(
    what: str, refresh: Callable[[], Awaitable[None]], every_s: float, wake: asyncio.Event
) -> None:
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(every_s):
                await wake.wait()
        wake.clear()
        try:
            await refresh()
        except Exception as error:  # a store that is away must not take the service along
            _failures.labels(what).inc()
            log.warning("not_refreshed", what=what, error=f"{type(error).__name__}: {error}")
