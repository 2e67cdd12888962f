"""Wiring of the worker: stores, rules, detectors, health and metrics."""

import asyncio
from collections.abc import AsyncIterator

import structlog
from aiohttp import web

from antifraud.casebook import Casebook
from antifraud.judge import Judge
from antifraud.reader import BLOCK_MS, SignalReader
from antifraud.rules import RuleSet
from antifraud.worker import Worker
from kernel.clock import open_clock
from kernel.postgres import open_pool
from kernel.settings import Settings
from kernel.tasks import end
from kernel.valkey import SOCKET_TIMEOUT_S, open_valkey
from kernel.web import READY_CHECKS, new_app

log = structlog.get_logger()


async def make_app(settings: Settings) -> web.Application:
    """The worker with /healthz, /readyz and /metrics."""
    clock = open_clock(settings.clock_file)
    rules = RuleSet()
    pool = await open_pool(settings.postgres_dsn, size=2, name="antifraud")
    valkey = open_valkey(settings.valkey_url, connections=4)
    blocking = open_valkey(settings.valkey_url, connections=2, socket_timeout_s=SOCKET_TIMEOUT_S + BLOCK_MS / 1000)
    casebook = Casebook(pool, clock, rules.scores)
    worker = Worker(SignalReader(blocking), Judge(rules), casebook, valkey, clock)
    tasks: list[asyncio.Task[None]] = []

    async def working(app: web.Application) -> AsyncIterator[None]:
        log.info("antifraud_rules", rule_set=rules.name())
        tasks.append(asyncio.create_task(worker.run(), name="antifraud-worker"))
        yield
        await asyncio.gather(*map(end, tasks))
        await blocking.aclose()
        await valkey.aclose()
        await pool.close()

    async def is_working() -> None:
        for task in tasks:
            if task.done():
                task.result()

    app = new_app(clock)
    app[READY_CHECKS].extend([valkey.ping, casebook.position, is_working])
    app.cleanup_ctx.append(working)
    return app
