"""Helper: the claims of a run straight through the claim script, without HTTP: the limit of the batch endpoint.

Same store, same fsync setting, `per_call` claims a call, a few calls under way at once from one client.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from time import perf_counter

import msgspec

from antifraud.gate import GateLimits
from issuer.card import Card, card_of
from issuer.catalogue import Catalogue
from issuer.record import NO_DEVICE, Claim, claim_of
from issuer.stock import Denied, Granted, StockStore
from kernel.postgres import open_pool
from kernel.settings import Settings
from kernel.valkey import open_valkey
from stack.bench.helper import Work, serve
from stack.bench.presign import Ground, person, request_no

UNDER_WAY_MAX = 8


class Fill(msgspec.Struct, frozen=True, kw_only=True):
    """Claims of people `first` to `first` + `count`, `per_call` a call, `under_way` calls at once."""

    ground: Ground
    first: int
    count: int
    per_call: int = 1_000
    under_way: int = 3


class Filled(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it. `seconds` from the first call to the last answer."""

    wins: int
    refused: dict[str, int]
    seconds: float


def claims(ground: Ground, card: Card, first: int, count: int) -> list[Claim]:
    """The claims of people `first` to `first` + `count`, as the store takes them."""
    return [
        claim_of(card, person(ground, number), NO_DEVICE, request_no(ground, number))
        for number in range(first, first + count)
    ]


async def fill(store: StockStore, job: Fill, everyone: Sequence[Claim]) -> Filled:
    """Does a job. StoreDown when the store fails."""
    batches = iter([everyone[at : at + job.per_call] for at in range(0, len(everyone), job.per_call)])
    told: Counter[str] = Counter()
    started = perf_counter()
    await asyncio.gather(*(_call(store, batches, told) for _ in range(job.under_way)))
    seconds = perf_counter() - started
    return Filled(wins=told.pop("", 0), refused=dict(told), seconds=seconds)


async def _call(store: StockStore, batches: Iterator[Sequence[Claim]], told: Counter[str]) -> None:
    for batch in batches:
        told.update([_word(outcome) for outcome in await store.claim(0, batch)])


def _word(outcome: Granted | Denied) -> str:
    if isinstance(outcome, Denied):
        return outcome.code
    return "REPLAYED" if outcome.replayed else ""


@asynccontextmanager
async def _opened() -> AsyncIterator[Work[Fill]]:
    settings = Settings.from_env()
    pool = await open_pool(settings.postgres_dsn, size=1, name="bench")
    valkey = open_valkey(settings.valkey_url, connections=UNDER_WAY_MAX)
    store = StockStore(valkey, GateLimits())
    cards: dict[str, Card] = {}

    async def work(job: Fill) -> Filled:
        stock_id = job.ground.stock_id
        if stock_id not in cards:
            cards[stock_id] = card_of((await Catalogue.read(pool)).offers[stock_id])
        return await fill(store, job, claims(job.ground, cards[stock_id], job.first, job.count))

    yield work
    await pool.close()
    await valkey.aclose()


if __name__ == "__main__":
    serve(Fill, _opened)
