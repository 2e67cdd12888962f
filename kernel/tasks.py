"""Background tasks come to an end."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine

CANCEL_EVERY_S = 0.5


@contextlib.asynccontextmanager
async def running(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Runs something beside the block, and ends it with the block."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        await end(task)


async def end(task: asyncio.Task[None]) -> None:
    """Cancels a task until it is over. Once is not enough: a library that has its result at that very moment may hand
    it over and forget the cancellation (asyncpg's wait_for does, and asyncio's own before Python 3.12)."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=CANCEL_EVERY_S)
