"""Wiring of the checkout service; the only place where its parts are put together."""

from collections.abc import AsyncIterator

from aiohttp import web
from prometheus_client import Gauge

import sql
from antifraud.gate import SignalWriter
from kernel.clock import open_clock
from kernel.codes import CodeBook
from kernel.key_rows import KeyRows
from kernel.keyring import Keyring
from kernel.postgres import ACQUIRE_TIMEOUT_S, Pool, listening, open_pool
from kernel.settings import Settings
from kernel.till_codes import TillSeeds
from kernel.valkey import open_valkey
from kernel.web import KEYRING, READY_CHECKS, WORDS, new_app
from redemption import handlers
from redemption.catalogue import MERCHANTS_EVERY_S, LiveCatalogue
from redemption.checkout import Till
from redemption.find import Finder
from redemption.holds import HoldDesk
from redemption.ledger import Ledger
from redemption.lockout import Lockout
from redemption.merchants import handlers as merchant_handlers
from redemption.offline import OfflineDesk
from redemption.quote import QuoteDesk
from redemption.refund import RefundDesk
from redemption.till_codes import TillCodes
from redemption.words import words

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
    catalogue = LiveCatalogue(pool, clock)
    codes = CodeBook(settings.code_keys)
    ledger = Ledger(pool)
    till_codes = TillCodes(codes, TillSeeds(settings.code_keys))
    lockout = Lockout(valkey, clock, workers=settings.workers)
    till = Till(ledger, catalogue, codes, till_codes, lockout, clock, signals)
    holds = HoldDesk(ledger, catalogue, codes, clock, signals)
    refunds = RefundDesk(ledger, catalogue, clock, signals)
    rows = KeyRows(pool, _keys["api_keys"], sql.digest_of(_keys["api_keys"]))
    keyring = Keyring(rows.rows, settings.master_key, clock, read_digest=rows.digest, reload_every_s=MERCHANTS_EVERY_S)
    _depth.set_function(lambda: till.depth)

    async def resources(app: web.Application) -> AsyncIterator[None]:
        def look_again() -> None:
            keyring.wake.set()
            catalogue.hear_of_merchants()

        async with (
            keyring.kept_fresh(),
            catalogue.kept_fresh(),
            listening(settings.postgres_dsn, "hanquan_merchant", look_again),
            lockout.kept_fresh(),
            signals,
        ):
            yield
            for desk in (till, holds, refunds):
                await desk.drained()
        await pool.close()
        await readers.close()
        await valkey.aclose()

    app = new_app(clock)
    app[KEYRING] = keyring
    app[WORDS] = words
    app[handlers.TILL] = till
    app[handlers.HOLDS] = holds
    app[handlers.OFFLINE] = OfflineDesk(till, clock)
    app[handlers.QUOTES] = QuoteDesk(ledger, catalogue, till_codes, lockout, clock)
    app[handlers.REFUNDS] = refunds
    app[handlers.FINDER] = Finder(ledger, catalogue, codes, till_codes, lockout, clock)
    app[handlers.CODES] = codes
    app[handlers.READERS] = readers
    app[READY_CHECKS].append(lambda: _ready(pool))
    app.cleanup_ctx.append(resources)
    handlers.add_routes(app)
    merchant_handlers.add_routes(app)
    return app


async def _ready(pool: Pool) -> None:
    async with pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as conn:
        await conn.fetchval(_queries["ready"])
