"""Claim a voucher: the use case behind POST /v1/claims and /v1/claims:batch."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence

import msgspec

from antifraud.gate import ClaimSignal, SignalWriter
from issuer import metrics
from issuer.card import Card, card_of
from issuer.catalogue import Catalogue
from issuer.record import NO_DEVICE, Claim, claim_of, device_digest
from issuer.refill import Decider
from issuer.soldout import SoldOut
from issuer.stock import Denied, Granted, StockStore
from issuer.words import SOLD_OUT, Told, Words
from kernel.batching import Coalescer
from kernel.clock import Clock
from kernel.codes import CodeBook
from kernel.errors import Code, HanquanError, Overloaded, Refusal
from kernel.ids import RequestNo, Token
from kernel.partitions import shard_of

__all__ = ["BATCH_MAX", "ClaimDesk", "ClaimRequest", "Told", "claim_signal"]

BATCH_MAX = 1_000
QUEUE_MAX = 5_000
"""Claims of one partner that wait for their turn on one shard."""
DEADLINE_S = 5.0
FLUSHES_MAX = 2
"""Calls under way on one shard: while the store writes one to disk, the next is on its way."""


class ClaimRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One claim as a partner sends it. `stock_id` names a stock or a pack."""

    out_request_no: RequestNo
    stock_id: str
    person_token: Token
    device_token: Token | None = None


class ClaimDesk:
    """Takes claims, sends those that arrive together to their shard together, words the answers."""

    def __init__(
        self,
        store: StockStore,
        codes: CodeBook,
        clock: Clock,
        signals: SignalWriter,
        shards: int,
        sold_out: SoldOut | None = None,
    ) -> None:
        self.words = Words(codes, clock)
        self._store = store
        self._clock = clock
        self._signals = signals
        self._sold_out = sold_out
        self._desks: list[Coalescer[Claim, Told | Refusal]] = []
        self._cards: Mapping[str, Card] = {}
        self.catalogue = Catalogue({}, {}, {}, 1, shards)

    @property
    def catalogue(self) -> Catalogue:
        """What is on offer."""
        return self._catalogue

    @catalogue.setter
    def catalogue(self, catalogue: Catalogue) -> None:
        if len(self._desks) != catalogue.shards:  # before there is a city, and never again
            self._shards = catalogue.shards
            self._decider = Decider(self._store, self._clock, catalogue.shards)
            self._desks = [self._shard_desk(shard) for shard in range(catalogue.shards)]
        known = self._cards
        self._cards = {
            offer_id: known[offer_id] if offer_id in known and known[offer_id].offer == offer else card_of(offer)
            for offer_id, offer in catalogue.offers.items()
        }
        self._catalogue = catalogue

    @property
    def depth(self) -> int:
        """Claims waiting for their turn, all shards."""
        return sum(desk.depth for desk in self._desks)

    async def drained(self) -> None:
        """Returns when no claim is under way."""
        await asyncio.gather(*(desk.drained() for desk in self._desks))

    def card(self, partner_no: int, stock_id: str) -> Card | None:
        """The card of an offer that is this partner's."""
        card = self._cards.get(stock_id)
        return card if card is not None and card.offer.partner_no == partner_no else None

    async def claim(self, partner_no: int, request: ClaimRequest) -> Told | Refusal:
        """One claim, durable when this returns. Raises Unavailable when the outcome is not known."""
        claim = self._read(partner_no, request)
        if isinstance(claim, Refusal):
            metrics.refused(partner_no, claim)
            return claim
        try:
            return await self._desk_of(claim).submit(claim, partner_no)
        except Overloaded:
            metrics.overloaded(partner_no)
            raise

    async def claim_all(self, partner_no: int, requests: Sequence[ClaimRequest]) -> list[Told | Refusal]:
        """Many claims, each on its own: an item whose outcome is not known is refused as SYSTEM_BUSY."""
        answers: list[Told | Refusal] = [_BUSY] * len(requests)
        by_shard: dict[int, list[tuple[int, Claim]]] = defaultdict(list)
        for at, request in enumerate(requests):
            claim = self._read(partner_no, request)
            if isinstance(claim, Refusal):
                metrics.refused(partner_no, claim)
                answers[at] = claim
            else:
                by_shard[shard_of(claim.partition, self._shards)].append((at, claim))
        told = await asyncio.gather(*(self._ask(shard, partner_no, asked) for shard, asked in by_shard.items()))
        for asked, outcomes in zip(by_shard.values(), told, strict=True):
            for (at, _), outcome in zip(asked, outcomes, strict=True):
                answers[at] = outcome
        return answers

    async def _ask(self, shard: int, partner_no: int, asked: Sequence[tuple[int, Claim]]) -> Sequence[Told | Refusal]:
        try:
            return await self._desks[shard].submit_all([claim for _, claim in asked], partner_no)
        except HanquanError as error:
            if isinstance(error, Overloaded):
                metrics.overloaded(partner_no, len(asked))
            return [Refusal(code=Code.SYSTEM_BUSY, detail=str(error), retry_after_s=1)] * len(asked)

    def _read(self, partner_no: int, request: ClaimRequest) -> Claim | Refusal:
        card = self.card(partner_no, request.stock_id)
        if card is None:
            return _NO_STOCK
        if card.offer.is_granted:
            return _GRANT_ONLY
        if self._sold_out is not None and self._sold_out.is_final(card.offer, request.out_request_no):
            metrics.sold_out_from_memory(partner_no)
            return SOLD_OUT
        device = device_digest(request.device_token) if request.device_token else NO_DEVICE
        return claim_of(card, bytes.fromhex(request.person_token), device, request.out_request_no)

    def _desk_of(self, claim: Claim) -> Coalescer[Claim, Told | Refusal]:
        return self._desks[shard_of(claim.partition, self._shards)]

    def _shard_desk(self, shard: int) -> Coalescer[Claim, Told | Refusal]:
        async def flush(claims: Sequence[Claim]) -> Sequence[Told | Refusal]:
            return await metrics.counted(claims, self._answers(shard, claims))

        return Coalescer(
            flush, batch_max=BATCH_MAX, queue_max=QUEUE_MAX, deadline_s=DEADLINE_S, flushes_max=FLUSHES_MAX
        )

    async def _answers(self, shard: int, claims: Sequence[Claim]) -> list[Told | Refusal]:
        outcomes = await self.decide(shard, claims)
        self._signal_refusals(claims, outcomes)
        return self.words.answers(claims, outcomes)

    async def decide(self, shard: int, claims: Sequence[Claim]) -> list[Granted | Denied]:
        """What is decided of claims of one shard, in order."""
        return await self._decider.decide(shard, claims)

    def _signal_refusals(self, claims: Sequence[Claim], outcomes: Sequence[Granted | Denied]) -> None:
        for claim, outcome in zip(claims, outcomes, strict=True):
            if isinstance(outcome, Denied) and outcome.code in _SIGNALLED:
                self._signals.offer(claim_signal(claim, self._clock.now_ms(), outcome.rule or outcome.code))


def claim_signal(claim: Claim, at_ms: int, outcome: str) -> ClaimSignal:
    """A refused claim as anti-fraud hears of it."""
    return ClaimSignal(
        at_ms=at_ms,
        person=claim.person.hex(),
        device=None if claim.device == NO_DEVICE else claim.device.hex(),
        partner_no=claim.card.offer.partner_no,
        stock_no=claim.card.offer.parts[0].stock.stock_no,
        outcome=outcome,
    )


_SIGNALLED = {Code.REQUEST_BLOCKED, Code.FREQUENCY_LIMITED, Code.RULE_LIMIT}
_BUSY = Refusal(code=Code.SYSTEM_BUSY, detail="the outcome is not known", retry_after_s=1)
_NO_STOCK = Refusal(
    code=Code.RESOURCE_NOT_EXISTS, detail="there is no such stock, or it is not yours", pointer="stock_id"
)
_GRANT_ONLY = Refusal(
    code=Code.RULE_LIMIT, rule="GRANT_ONLY", detail="the city hands these out to people it names", pointer="stock_id"
)
