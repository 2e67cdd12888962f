"""Runs a grant against the stack of a data folder."""

import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from difflib import get_close_matches

import asyncpg
from redis.asyncio import Redis

from antifraud.gate import GateLimits, SignalWriter
from issuer.catalogue import Catalogue, Offered
from issuer.claim import ClaimDesk
from issuer.grants.grant import Granter, GrantReport
from issuer.grants.people import People
from issuer.stock import StockStore
from kernel.clock import Clock, open_clock
from kernel.codes import CodeBook
from kernel.errors import StoreDown
from kernel.postgres import ACQUIRE_TIMEOUT_S, Pool, open_pool
from kernel.settings import parse_code_keys
from kernel.valkey import is_cluster, open_valkey
from stack.demo.progress import Advance
from stack.errors import StackError
from stack.reach import Reach

ROLE = "hanquan_operator"


@dataclass(frozen=True)
class Stores:
    """What a grant works on. `replicas` of the claim store must hold a grant before it counts as one."""

    pool: Pool
    valkey: Redis
    clock: Clock
    codes: CodeBook
    replicas: int = 0


async def run_grant(reach: Reach, offer_id: str, people: People, by: str, advance: Advance) -> GrantReport:
    """Hands an offer to everybody on a list; `advance` hears how many more were decided. Raises StackError."""
    clock = open_clock(os.environ.get("HANQUAN_CLOCK_FILE"))
    codes = CodeBook(parse_code_keys(reach.secrets.code_keys_setting()))
    async with _opened(reach) as (pool, valkey):
        return await grant(Stores(pool, valkey, clock, codes, _replicas(reach)), offer_id, people, by, advance)


async def grant(stores: Stores, offer_id: str, people: People, by: str, advance: Advance) -> GrantReport:
    """The same on open stores."""
    catalogue = await Catalogue.read(stores.pool)
    offer = _offer(catalogue, offer_id)
    store = StockStore(stores.valkey, GateLimits(), stores.replicas)
    desk = ClaimDesk(store, stores.codes, stores.clock, SignalWriter(stores.valkey), catalogue.shards)
    async with stores.pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as conn:
        granter = Granter(conn, desk.decide, store.log_length, stores.clock, catalogue.shards)
        try:
            return await granter.grant(offer, people, by, advance)
        except StoreDown as error:
            raise StackError(f"{error}; run the same list again, and nobody gets it twice") from error
        except asyncpg.CheckViolationError as error:
            raise StackError(f"--by {by!r} is no name: 1 to 64 characters, no blanks around it") from error


@contextlib.asynccontextmanager
async def _opened(reach: Reach) -> AsyncIterator[tuple[Pool, Redis]]:
    pool = await open_pool(reach.dsn(ROLE), size=1, name="grant")
    valkey = open_valkey(reach.valkey_url)
    try:
        yield pool, valkey
    finally:
        await valkey.aclose()
        await pool.close()


def _replicas(reach: Reach) -> int:
    """As many as the claim service waits for."""
    return int(os.environ.get("HANQUAN_VALKEY_REPLICAS") or is_cluster(reach.valkey_url))


def _offer(catalogue: Catalogue, offer_id: str) -> Offered:
    offer = catalogue.offers.get(offer_id)
    if offer is None:
        near = get_close_matches(offer_id, catalogue.offers, n=1)
        advice = f"did you mean {near[0]}?" if near else "./hanquan campaign list shows what was loaded"
        raise StackError(f"there is no stock and no pack {offer_id}; {advice}")
    return offer
