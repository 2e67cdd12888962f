"""Decide claims of one shard; where it is dry, after it got what others have left."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

from issuer import metrics
from issuer.card import Card
from issuer.catalogue import Offered, Round
from issuer.moves import Fetched, Wanted
from issuer.record import Claim, pack_again, pack_claim
from issuer.stock import Denied, Granted, StockStore
from issuer.words import SHARD_AWAY
from kernel.clock import Clock, to_ms
from kernel.errors import Code, StoreDown

REFILLS_MAX = 50
"""How often a call fetches units from other shards and asks again, before it says that it cannot tell."""
REFILL_WITHIN_S = 1.0
"""A shard that hangs keeps those who want its units waiting no longer, and nobody else."""
UNSEEN_S = 1.0
"""So long a round is not looked for on other shards again after one of them could not be seen."""


class Decider:
    """The claim script on one shard, and the moves that keep it from saying sold out while others have something."""

    def __init__(self, store: StockStore, clock: Clock, shards: int) -> None:
        self._store = store
        self._clock = clock
        self._shards = shards
        self._unseen: dict[int, float] = {}
        """By round: until when it is not looked for."""

    async def decide(self, shard: int, claims: Sequence[Claim]) -> list[Granted | Denied]:
        """What is decided of each claim, in order. Raises StoreDown when the shard itself does not answer."""
        outcomes = await self._ask(shard, claims)
        if self._shards == 1 or not any(map(is_dry, outcomes)):
            return outcomes
        try:
            async with asyncio.timeout(REFILL_WITHIN_S):
                await self._refill_and_ask(shard, claims, outcomes)
        except (StoreDown, TimeoutError):
            self._pass_over(claims, outcomes)
        return [SHARD_AWAY if is_dry(outcome) else outcome for outcome in outcomes]

    async def _ask(
        self, shard: int, claims: Sequence[Claim], pack: Callable[[Claim], bytes] = pack_claim
    ) -> list[Granted | Denied]:
        return await metrics.timed(shard, self._store.claim(shard, claims, pack))

    async def _refill_and_ask(self, shard: int, claims: Sequence[Claim], outcomes: list[Granted | Denied]) -> None:
        """Puts the outcomes of those that found the shard dry in their places, as they come."""
        for _ in range(REFILLS_MAX):
            dry = [at for at, outcome in enumerate(outcomes) if is_dry(outcome)]
            final = await self._refill(shard, [(claims[at].card, outcomes[at]) for at in dry])
            for at, refusal in zip(dry, final, strict=True):
                outcomes[at] = refusal or outcomes[at]
            again = [at for at, refusal in zip(dry, final, strict=True) if refusal is None]
            if not again:
                return
            told = await self._ask(shard, [claims[at] for at in again], pack_again)
            for at, outcome in zip(again, told, strict=True):
                outcomes[at] = outcome

    def _pass_over(self, claims: Sequence[Claim], outcomes: Sequence[Granted | Denied]) -> None:
        until = asyncio.get_running_loop().time() + UNSEEN_S
        for claim, outcome in zip(claims, outcomes, strict=True):
            if is_dry(outcome):
                self._unseen[claim.card.offer.round.round_no] = until

    async def _refill(self, shard: int, dry: Sequence[tuple[Card, Granted | Denied]]) -> list[Denied | None]:
        """For each claim that found its shard dry: None when there may be something now, else the refusal."""
        times = Counter(card.offer.offer_id for card, _ in dry)
        found: dict[str, Denied | None] = {}
        for card, outcome in dry:
            offer_id = card.offer.offer_id
            if offer_id not in found:
                found[offer_id] = await self._fetch(shard, card.offer, outcome, times[offer_id])
        return [found[card.offer.offer_id] for card, _ in dry]

    async def _fetch(self, shard: int, offer: Offered, outcome: Granted | Denied, times: int) -> Denied | None:
        round_no = offer.round.round_no
        if self._unseen.get(round_no, 0.0) > asyncio.get_running_loop().time():
            return SHARD_AWAY
        is_held = isinstance(outcome, Denied) and outcome.again_ms > 0
        came = set[Fetched]()
        for part in offer.parts:
            wanted = Wanted(round_no, part.stock.stock_no, part.quantity, part.quantity * times, is_held)
            fetched = await self._store.moves.fetch(wanted, shard, self._shards)
            metrics.fetches.labels(fetched.value).inc()
            came.add(fetched)
            if fetched is Fetched.NOTHING:
                break
        if Fetched.NOTHING not in came and Fetched.MOVED in came:
            return None
        return Denied(Code.SOLD_OUT, "EVERYWHERE", next_release_ms(offer.round, self._clock.now_ms()))


def is_dry(outcome: Granted | Denied) -> bool:
    """Whether a shard had nothing, which says nothing of the others."""
    return isinstance(outcome, Denied) and outcome.code is Code.SOLD_OUT and outcome.rule is None


def next_release_ms(round_: Round, now_ms: int) -> int:
    """Campaign time at which a round releases more; 0 when it does not."""
    opens_ms = to_ms(round_.opens_at)
    later = [opens_ms + after_s * 1000 for after_s, _ in round_.stages if opens_ms + after_s * 1000 > now_ms]
    return min(later, default=0)
