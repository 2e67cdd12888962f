"""Hand a stock or a pack to a list of people, through the same script that decides claims."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import StrEnum
from hashlib import sha256

import msgspec

import sql
from issuer.card import Card, card_of
from issuer.catalogue import Offered
from issuer.grants.people import People
from issuer.record import NO_DEVICE, Claim, claim_of
from issuer.stock import Denied, Granted
from kernel.clock import Clock, rfc3339
from kernel.errors import Code, StoreDown
from kernel.partitions import partition_of, shard_of
from kernel.postgres import Connection

CHUNK = 1_000
TRIES_MAX = 5
"""Of one chunk, when the store does not answer. The numbers are the same each time, so asking again is safe."""
RETRY_S = 1.0
LOG_ENTRIES_MAX = 100
"""Chunks that wait for the drain; a grant goes no faster than the books are written."""
DRAIN_WAIT_S = 60
DRAIN_LOOK_S = 0.05

_queries = sql.load("grants")

Decide = Callable[[int, Sequence[Claim]], Awaitable[Sequence[Granted | Denied]]]
"""Decides claims of one shard, in order."""
LogLength = Callable[[int], Awaitable[int]]
"""Entries of a shard's log that are not drained."""


class Result(StrEnum):
    """What a grant brought a person. Where a limit or the stock stood against it, its name stands in the results."""

    GRANTED = "GRANTED"
    HAD_IT = "HAD_IT"
    """By the very same grant, in an earlier run of this list or another."""
    NOT_RELEASED = "NOT_RELEASED"
    """All that was released so far is taken, and a later stage is still to come."""
    NOT_TRIED = "NOT_TRIED"
    """The run stopped before their turn."""


class GrantReport(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a list.

    results   how many people, by Result, or by the code or rule of the refusal
    stopped   why the run stopped before its end, in words; run the list again once that is mended
    """

    run_no: int
    offer_id: str
    people: int
    results: Mapping[str, int]
    stopped: str | None

    @property
    def everybody_has_it(self) -> bool:
        return set(self.results) <= {Result.GRANTED, Result.HAD_IT}


def grant_number(offer_id: str, person: bytes) -> str:
    """The request number of a person's grant. A partner can make it, too, to look the grant up."""
    return "grant-" + sha256(f"{offer_id}:{person.hex()}".encode()).hexdigest()[:32]


class Granter:
    """Hands offers to lists of people. Safe to run twice, also at once: a person's number is always the same."""

    def __init__(self, conn: Connection, decide: Decide, log_length: LogLength, clock: Clock, shards: int) -> None:
        self._conn = conn
        self._decide = decide
        self._log_length = log_length
        self._clock = clock
        self._shards = shards

    async def grant(
        self, offer: Offered, people: People, by: str, advance: Callable[[int], None] = lambda _: None
    ) -> GrantReport:
        """Everybody on the list gets the offer once, as far as the stock and their limits allow; `advance` hears how
        many more were decided. Raises StoreDown when a store is away: run it again then, nobody gets it twice."""
        run_no: int = await self._conn.fetchval(
            _queries["insert_run"], *_number_of(offer), people.sha256, len(people.people), by, self._clock.now()
        )
        card, results, stopped = card_of(offer, is_grant=True), Counter[str](), None
        for start in range(0, len(people.people), CHUNK):
            chunk = people.people[start : start + CHUNK]
            outcomes = await self._decide_chunk(card, chunk)
            stopped = next((outcome for outcome in outcomes if _stops(outcome)), None)
            results.update(Result.NOT_TRIED if _stops(outcome) else _result(outcome) for outcome in outcomes)
            advance(len(chunk))
            if stopped is not None:
                results[Result.NOT_TRIED] += len(people.people) - start - len(chunk)
                break
        results = +results
        await self._conn.execute(_queries["insert_results"], run_no, list(results), list(results.values()))
        return GrantReport(
            run_no=run_no,
            offer_id=offer.offer_id,
            people=len(people.people),
            results=dict(results),
            stopped=None if stopped is None else self._why(offer, stopped),
        )

    async def _decide_chunk(self, card: Card, people: Sequence[bytes]) -> Sequence[Granted | Denied]:
        by_shard: dict[int, list[bytes]] = defaultdict(list)
        for person in people:
            by_shard[shard_of(partition_of(person), self._shards)].append(person)
        outcomes: dict[bytes, Granted | Denied] = {}
        for shard, group in by_shard.items():
            claims = [claim_of(card, person, NO_DEVICE, grant_number(card.offer.offer_id, person)) for person in group]
            outcomes |= zip(group, await self._decided(shard, claims), strict=True)
        return [outcomes[person] for person in people]

    async def _decided(self, shard: int, claims: Sequence[Claim]) -> Sequence[Granted | Denied]:
        for left in reversed(range(TRIES_MAX)):
            try:
                await self._drained(shard)
                outcomes = await self._decide(shard, claims)
                if any(_is_unknown(outcome) for outcome in outcomes):
                    raise StoreDown("another shard of the claim store does not answer")
                return outcomes
            except StoreDown:
                if not left:
                    raise
                await asyncio.sleep(RETRY_S)
        raise AssertionError

    async def _drained(self, shard: int) -> None:
        for _ in range(int(DRAIN_WAIT_S / DRAIN_LOOK_S)):
            if await self._log_length(shard) < LOG_ENTRIES_MAX:
                return
            await asyncio.sleep(DRAIN_LOOK_S)
        raise StoreDown("the drain does not carry over what was granted so far; see that it runs")

    def _why(self, offer: Offered, denied: Granted | Denied) -> str:
        now, round_ = self._clock.now(), offer.round
        if now < round_.opens_at:
            return f"the round opens at {rfc3339(round_.opens_at)}; grants can be made from then on"
        if now >= round_.closes_at:
            return f"the round closed at {rfc3339(round_.closes_at)}"
        return _WHY.get(
            denied.code if isinstance(denied, Denied) else Code.SYSTEM_BUSY, "the stock cannot be claimed now"
        )


def _number_of(offer: Offered) -> tuple[int | None, int | None]:
    """Number of the stock, number of the pack; one of them is None."""
    return (offer.parts[0].stock.stock_no, None) if offer.pack_no is None else (None, offer.pack_no)


def _stops(outcome: Granted | Denied) -> bool:
    """Whether an answer is about the offer and not about the person."""
    return isinstance(outcome, Denied) and outcome.code in (Code.NOT_STARTED, Code.ENDED, Code.PAUSED, Code.SYSTEM_BUSY)


def _is_unknown(outcome: Granted | Denied) -> bool:
    return isinstance(outcome, Denied) and outcome.code is Code.SYSTEM_BUSY and outcome.rule is not None


def _result(outcome: Granted | Denied) -> str:
    if isinstance(outcome, Granted):
        return Result.HAD_IT if outcome.replayed else Result.GRANTED
    if outcome.again_ms:
        return Result.NOT_RELEASED
    return outcome.rule or outcome.code if outcome.code is Code.RULE_LIMIT else outcome.code


_WHY = {
    Code.PAUSED: "the city has paused the stock",
    Code.ENDED: "the city has ended the stock",
    Code.SYSTEM_BUSY: "the round is not published; see that the claim service runs",
}
