"""Something read from a store, kept fresh in memory: no request ever waits for it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog

log = structlog.get_logger()


@contextlib.asynccontextmanager
async def kept_fresh(what: str, refresh: Callable[[], Awaitable[None]], every_s: float) -> AsyncIterator[None]:
    """Refreshes once, then every so often while the context is open.

    The first refresh may raise; later ones that fail are logged, and what is in memory stays good.
    """
    await refresh()
    task = asyncio.create_task(_keep_refreshing(what, refresh, every_s))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _keep_refreshing(what: str, refresh: Callable[[], Awaitable[None]], every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        try:
            await refresh()
        except Exception as error:  # a store that is away must not take the service along
            log.warning("not_refreshed", what=what, error=f"{type(error).__name__}: {error}")
