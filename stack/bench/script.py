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
from issuer.record import Claim
from issuer.stock import Denied, Granted, StockStore
from kernel.settings import Settings
from kernel.valkey import open_valkey
from stack.bench.helper import Work, serve
from stack.bench.presign import Ground, claims

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


async def fill(store: StockStore, job: Fill) -> Filled:
    """Does a job. StoreDown when the store fails."""
    everyone = claims(job.ground, job.first, job.count)
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
    valkey = open_valkey(Settings.from_env().valkey_url, connections=UNDER_WAY_MAX)
    store = StockStore(valkey, GateLimits())

    async def work(job: Fill) -> Filled:
        return await fill(store, job)

    yield work
    await valkey.aclose()


if __name__ == "__main__":
    serve(Fill, _opened)
