"""Wiring of the claim service; the only place where its parts are put together."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from aiohttp import web

import sql
from antifraud.gate import GateLimits, SignalWriter
from issuer import handlers, metrics
from issuer.catalogue import Catalogue
from issuer.claim import ClaimDesk
from issuer.find import Finder
from issuer.publish import Publisher
from issuer.soldout import SoldOut
from issuer.stock import StockStore
from kernel.clock import open_clock
from kernel.codes import CodeBook
from kernel.key_rows import KeyRows
from kernel.keyring import Keyring
from kernel.postgres import listening, open_pool
from kernel.settings import Settings
from kernel.till_codes import TillSeeds
from kernel.valkey import open_valkey
from kernel.web import KEYRING, READY_CHECKS, new_app

_queries = sql.load("issuer")
_keys = sql.load("keys")


async def make_app(settings: Settings) -> web.Application:
    """The claim service with its stores open and every round published."""
    clock = open_clock(settings.clock_file)
    pool = await open_pool(settings.postgres_dsn, name="issuer", by_keys=True)
    readers = await open_pool(settings.postgres_dsn, name="issuer-readers", size=2, command_timeout_s=60)
    valkey = open_valkey(settings.valkey_url, connections=64)
    store = StockStore(valkey, GateLimits(), settings.valkey_replicas_acked)
    signals = SignalWriter(valkey)
    catalogue = await Catalogue.read(pool)
    codes = CodeBook(settings.code_keys)
    sold_out = SoldOut(readers)
    desk = ClaimDesk(store, codes, clock, signals, catalogue.shards, sold_out)
    rows = KeyRows(pool, _keys["api_keys"], sql.digest_of(_keys["api_keys"]))
    keyring = Keyring(
        lambda: _read_keys(rows),
        settings.master_key,
        clock,
        read_digest=rows.digest,
        workers=settings.workers,
        on_over_quota=metrics.over_quota,
    )
    publisher = Publisher(readers, store, desk, clock, sold_out)
    metrics.waiting.set_function(lambda: desk.depth)

    async def resources(app: web.Application) -> AsyncIterator[None]:
        async with (
            keyring.kept_fresh(),
            sold_out.watching(),
            publisher.kept_fresh(),
            listening(settings.postgres_dsn, "hanquan_stock", publisher.wake.set),
            signals,
        ):
            yield
            await desk.drained()
        await pool.close()
        await readers.close()
        await valkey.aclose()

    app = new_app(clock)
    app[KEYRING] = keyring
    app[handlers.DESK] = desk
    app[handlers.FINDER] = Finder(pool, store, desk, codes, TillSeeds(settings.code_keys), clock)
    app[READY_CHECKS].append(valkey.ping)
    app.cleanup_ctx.append(resources)
    handlers.add_routes(app)
    return app


async def _read_keys(source: KeyRows) -> Sequence[Mapping[str, Any]]:
    rows = await source.rows()
    metrics.name_partners({row["holder_no"]: row["holder_id"] for row in rows if row["holder_kind"] == "partner"})
    return rows
