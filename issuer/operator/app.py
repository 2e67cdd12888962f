"""Wiring of the operator service; the only place where its parts are put together."""

from collections.abc import AsyncIterator

from aiohttp import web

import sql
from antifraud.gate import GateLimits
from issuer.operator import handlers
from issuer.stock import StockStore
from kernel.clock import open_clock
from kernel.key_rows import KeyRows
from kernel.keyring import Keyring
from kernel.postgres import open_pool
from kernel.settings import Settings
from kernel.valkey import open_valkey
from kernel.web import KEYRING, READY_CHECKS, new_app

COMMAND_TIMEOUT_S = 15.0
"""Longer than an operator waits for the lock of a round."""

_keys = sql.load("keys")


async def make_app(settings: Settings) -> web.Application:
    """The operator service with its stores open."""
    clock = open_clock(settings.clock_file)
    pool = await open_pool(settings.postgres_dsn, name="operator", command_timeout_s=COMMAND_TIMEOUT_S)
    valkey = open_valkey(settings.valkey_url, connections=32)
    rows = KeyRows(pool, _keys["api_keys"], sql.digest_of(_keys["api_keys"]))
    keyring = Keyring(rows.rows, settings.master_key, clock, read_digest=rows.digest)

    async def resources(app: web.Application) -> AsyncIterator[None]:
        async with keyring.kept_fresh():
            yield
        await pool.close()
        await valkey.aclose()

    app = new_app(clock)
    app[KEYRING] = keyring
    app[handlers.STORES] = handlers.Stores(pool, StockStore(valkey, GateLimits(), settings.valkey_replicas_acked))
    app[READY_CHECKS].append(valkey.ping)
    app.cleanup_ctx.append(resources)
    handlers.add_routes(app)
    return app
