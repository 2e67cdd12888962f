"""Wiring of the claim service; the only place where its parts are put together."""

from collections.abc import AsyncIterator

from aiohttp import web
from prometheus_client import Gauge

import sql
from antifraud.gate import GateLimits, SignalWriter
from issuer import handlers
from issuer.catalogue import Catalogue
from issuer.claim import ClaimDesk
from issuer.find import Finder
from issuer.publish import Publisher
from issuer.stock import StockStore
from kernel.clock import open_clock
from kernel.codes import CodeBook
from kernel.keyring import Keyring
from kernel.postgres import ACQUIRE_TIMEOUT_S, Pool, open_pool
from kernel.settings import Settings
from kernel.valkey import open_valkey
from kernel.web import KEYRING, READY_CHECKS, new_app

_queries = sql.load("issuer")
_keys = sql.load("keys")
_depth = Gauge("hanquan_claims_waiting", "Claims waiting for their turn in this worker")


async def make_app(settings: Settings) -> web.Application:
    """The claim service with its stores open and every round published."""
    clock = open_clock(settings.clock_file)
    pool = await open_pool(settings.postgres_dsn, name="issuer", by_keys=True)
    valkey = open_valkey(settings.valkey_url, connections=64)
    store = StockStore(valkey, GateLimits())
    signals = SignalWriter(valkey)
    catalogue = await Catalogue.read(pool)
    codes = CodeBook(settings.code_keys)
    desk = ClaimDesk(store, codes, clock, signals, catalogue.shards)
    keyring = Keyring(lambda: _read_keys(pool), settings.master_key, clock)
    publisher = Publisher(pool, store, desk, clock)
    _depth.set_function(lambda: desk.depth)

    async def resources(app: web.Application) -> AsyncIterator[None]:
        async with keyring.kept_fresh(), publisher.kept_fresh(), signals:
            yield
            await desk.drained()
        await pool.close()
        await valkey.aclose()

    app = new_app(clock)
    app[KEYRING] = keyring
    app[handlers.DESK] = desk
    app[handlers.FINDER] = Finder(pool, store, desk, codes, clock)
    app[READY_CHECKS].append(valkey.ping)
    app.cleanup_ctx.append(resources)
    app.router.add_post("/v1/claims", handlers.post_claim)
    app.router.add_post("/v1/claims:batch", handlers.post_claims_batch)
    app.router.add_get("/v1/claims/{out_request_no}", handlers.get_claim)
    app.router.add_get("/v1/vouchers/{voucher_code}", handlers.get_voucher)
    return app


async def _read_keys(pool: Pool) -> list[dict[str, object]]:
    async with pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as conn:
        return [dict(row) for row in await conn.fetch(_keys["api_keys"])]
