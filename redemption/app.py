"""Wiring of the checkout service; the only place where its parts are put together."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

from aiohttp import web
from prometheus_client import Gauge

import sql
from antifraud.gate import SignalWriter
from kernel.clock import open_clock
from kernel.codes import CodeBook
from kernel.keyring import Keyring
from kernel.postgres import ACQUIRE_TIMEOUT_S, Pool, open_pool
from kernel.settings import Settings
from kernel.valkey import open_valkey
from kernel.web import KEYRING, READY_CHECKS, new_app
from redemption import handlers
from redemption.catalogue import LiveCatalogue
from redemption.checkout import Till
from redemption.ledger import Ledger
from redemption.refund import RefundDesk

_queries = sql.load("checkout")
_keys = sql.load("keys")
_depth = Gauge("hanquan_redemptions_waiting", "Redemptions waiting for their turn in this worker")


async def make_app(settings: Settings) -> web.Application:
    """The checkout service with its stores open."""
    clock = open_clock(settings.clock_file)
    pool = await open_pool(settings.postgres_dsn, size=8, command_timeout_s=5, name="redemption", by_keys=True)
    readers = await open_pool(settings.postgres_dsn, size=2, command_timeout_s=20, name="statements")
    valkey = open_valkey(settings.valkey_url)
    signals = SignalWriter(valkey)
    catalogue = LiveCatalogue(pool)
    codes = CodeBook(settings.code_keys)
    ledger = Ledger(pool)
    till = Till(ledger, catalogue, codes, clock, signals)
    refunds = RefundDesk(ledger, catalogue, clock, signals)
    keyring = Keyring(lambda: _read_keys(pool), settings.master_key, clock)
    _depth.set_function(lambda: till.depth)

    async def resources(app: web.Application) -> AsyncIterator[None]:
        async with keyring.kept_fresh(), catalogue.kept_fresh(), signals:
            yield
            await till.drained()
            await refunds.drained()
        await pool.close()
        await readers.close()
        await valkey.aclose()

    app = new_app(clock)
    app[KEYRING] = keyring
    app[handlers.TILL] = till
    app[handlers.REFUNDS] = refunds
    app[handlers.LEDGER] = ledger
    app[handlers.CATALOGUE] = catalogue
    app[handlers.CODES] = codes
    app[handlers.READERS] = readers
    app[READY_CHECKS].append(lambda: _ready(pool))
    app.cleanup_ctx.append(resources)
    app.router.add_post("/v1/redemptions", handlers.post_redemption)
    app.router.add_get("/v1/redemptions/{use_request_no}", handlers.get_redemption)
    app.router.add_post("/v1/refunds", handlers.post_refund)
    app.router.add_get("/v1/statements/{date}", handlers.get_statement)
    return app


async def _ready(pool: Pool) -> None:
    async with pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as conn:
        await conn.fetchval(_queries["ready"])


async def _read_keys(pool: Pool) -> list[Mapping[str, Any]]:
    async with pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as conn:
        return [dict(row) for row in await conn.fetch(_keys["api_keys"])]
