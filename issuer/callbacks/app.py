"""Wiring of the callback service."""

from collections.abc import AsyncIterator

from aiohttp import web

from issuer.callbacks.outbox import Outbox
from issuer.callbacks.sender import Sender
from kernel.clock import open_clock
from kernel.codes import CodeBook
from kernel.postgres import open_pool
from kernel.settings import Settings
from kernel.web import READY_CHECKS, new_app


async def make_app(settings: Settings) -> web.Application:
    """A sender with /healthz, /readyz and /metrics."""
    clock = open_clock(settings.clock_file)
    pool = await open_pool(settings.postgres_dsn, size=6, name="callbacks", by_keys=True)
    outbox = Outbox(pool, settings.master_key, clock)
    sender = Sender(outbox, CodeBook(settings.code_keys), clock)

    async def sending(app: web.Application) -> AsyncIterator[None]:
        async with sender.running():
            yield
        await pool.close()

    app = new_app(clock)
    app[READY_CHECKS].append(outbox.ready)
    app.cleanup_ctx.append(sending)
    return app
