"""Claim a voucher: the use case behind POST /v1/claims and /v1/claims:batch."""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec

from antifraud.gate import ClaimSignal, SignalWriter
from issuer.catalogue import Catalogue, Offered
from issuer.record import NO_DEVICE, Claim, device_digest
from issuer.stock import Denied, Granted, StockStore
from kernel.batching import Coalescer
from kernel.clock import Clock, from_ms, rfc3339
from kernel.codes import CodeBook
from kernel.errors import Code, HanquanError, Refusal
from kernel.ids import RequestNo, Token, pack_voucher_id
from kernel.partitions import partition_of, shard_of

BATCH_MAX = 1_000
QUEUE_MAX = 20_000
DEADLINE_S = 5.0


class ClaimRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One claim as a partner sends it."""

    out_request_no: RequestNo
    stock_id: str
    person_token: Token
    device_token: Token | None = None


class ClaimAnswer(msgspec.Struct, frozen=True):
    """A granted claim as the partner is told, every time it asks."""

    out_request_no: str
    stock_id: str
    voucher_code: str
    state: str
    face_value_fen: int
    transaction_minimum_fen: int
    claimed_at: str
    valid_from: str
    valid_until: str


class Told(msgspec.Struct, frozen=True):
    """A granted claim's answer, and whether it was given before."""

    answer: ClaimAnswer
    replayed: bool


class ClaimDesk:
    """Takes claims, sends those that arrive together to their shard together, words the answers."""

    def __init__(self, store: StockStore, codes: CodeBook, clock: Clock, signals: SignalWriter, shards: int) -> None:
        self._codes = codes
        self._clock = clock
        self._signals = signals
        self._shards = shards
        self._desks = [_shard_desk(store, shard) for shard in range(shards)]
        self.catalogue = Catalogue({}, {}, 1, shards)

    @property
    def depth(self) -> int:
        """Claims waiting for their turn, all shards."""
        return sum(desk.depth for desk in self._desks)

    async def drained(self) -> None:
        """Returns when no claim is under way."""
        await asyncio.gather(*(desk.drained() for desk in self._desks))

    async def claim(self, partner_no: int, request: ClaimRequest) -> Told | Refusal:
        """One claim, durable when this returns. Raises Unavailable when the outcome is not known."""
        stock = self._stock_of(partner_no, request.stock_id)
        if isinstance(stock, Refusal):
            return stock
        claim = _claim_of(stock, request)
        return self._word(stock, claim, await self._submit(claim))

    async def claim_all(self, partner_no: int, requests: Sequence[ClaimRequest]) -> list[Told | Refusal]:
        """Many claims, each on its own: an item whose outcome is not known is refused as SYSTEM_BUSY."""
        futures: list[tuple[Offered, Claim, asyncio.Future[Granted | Denied]] | Refusal] = []
        for request in requests:
            stock = self._stock_of(partner_no, request.stock_id)
            if isinstance(stock, Refusal):
                futures.append(stock)
                continue
            claim = _claim_of(stock, request)
            try:
                futures.append((stock, claim, self._submit(claim)))
            except HanquanError as error:
                futures.append(_busy(error))
        return [await self._settled(item) for item in futures]

    async def _settled(
        self, item: "tuple[Offered, Claim, asyncio.Future[Granted | Denied]] | Refusal"
    ) -> Told | Refusal:
        if isinstance(item, Refusal):
            return item
        stock, claim, future = item
        try:
            return self._word(stock, claim, await future)
        except HanquanError as error:
            return _busy(error)

    def _submit(self, claim: Claim) -> "asyncio.Future[Granted | Denied]":
        return self._desks[shard_of(partition_of(claim.person), self._shards)].submit(claim)

    def _stock_of(self, partner_no: int, stock_id: str) -> Offered | Refusal:
        stock = self.catalogue.by_id.get(stock_id)
        if stock is None or stock.partner_no != partner_no:
            return _NO_STOCK
        return stock

    def _word(self, stock: Offered, claim: Claim, outcome: Granted | Denied) -> Told | Refusal:
        if isinstance(outcome, Denied):
            self._signal_refusal(claim, outcome)
            return self._refuse(stock, outcome)
        return Told(self.answer(stock, claim.person, claim.out_request_no, outcome), outcome.replayed)

    def answer(self, stock: Offered, person: bytes, out_request_no: str, granted: Granted) -> ClaimAnswer:
        """The words for a granted claim; the same each time."""
        voucher_id = pack_voucher_id(stock.round_no, partition_of(person), granted.serial)
        return ClaimAnswer(
            out_request_no=out_request_no,
            stock_id=stock.stock_id,
            voucher_code=self._codes.encode(voucher_id),
            state="EFFECTIVE",
            face_value_fen=stock.face_value_fen,
            transaction_minimum_fen=stock.transaction_minimum_fen,
            claimed_at=rfc3339(from_ms(granted.claimed_ms)),
            valid_from=rfc3339(stock.valid_from),
            valid_until=rfc3339(stock.valid_until),
        )

    def _refuse(self, stock: Offered, denied: Denied) -> Refusal:
        now = self._clock.now()
        # Rounds are published shortly before they open, and not again when their vouchers have run out.
        unpublished = denied.code is Code.SYSTEM_BUSY
        if denied.code is Code.NOT_STARTED or (unpublished and now < stock.opens_at):
            wait = max(stock.opens_at - now, timedelta())
            return Refusal(
                code=Code.NOT_STARTED,
                detail=f"the round opens at {rfc3339(stock.opens_at)}",
                retry_after_s=-(-wait // timedelta(seconds=1)),
            )
        if denied.code is Code.ENDED or (unpublished and now >= stock.closes_at):
            return Refusal(code=Code.ENDED, detail=f"the round closed at {rfc3339(stock.closes_at)}")
        return _REFUSALS[denied]

    def _signal_refusal(self, claim: Claim, denied: Denied) -> None:
        if denied.code in _SIGNALLED:
            self._signals.offer(claim_signal(claim, self._clock.now_ms(), denied.rule or denied.code))


def claim_signal(claim: Claim, at_ms: int, outcome: str) -> ClaimSignal:
    """A claim as anti-fraud hears of it."""
    return ClaimSignal(
        at_ms=at_ms,
        person=claim.person.hex(),
        device=None if claim.device == NO_DEVICE else claim.device.hex(),
        partner_no=claim.partner_no,
        stock_no=claim.stock_no,
        outcome=outcome,
    )


def state_of(valid_until: datetime, now: datetime, was_used: bool, credit: str | None) -> str:
    """A voucher's state in the vocabulary partners know, from its last use and that use's refund."""
    if was_used and credit is None:
        return "USED"
    if credit == "RETURNED":
        return "RETURNED"
    return "EXPIRED" if now >= valid_until else "EFFECTIVE"


def _shard_desk(store: StockStore, shard: int) -> Coalescer[Claim, Granted | Denied]:
    async def flush(claims: Sequence[Claim]) -> Sequence[Granted | Denied]:
        return await store.claim(shard, claims)

    return Coalescer(flush, batch_max=BATCH_MAX, queue_max=QUEUE_MAX, deadline_s=DEADLINE_S)


def _claim_of(stock: Offered, request: ClaimRequest) -> Claim:
    return Claim(
        round_no=stock.round_no,
        stock_no=stock.stock_no,
        partner_no=stock.partner_no,
        person=bytes.fromhex(request.person_token),
        device=device_digest(request.device_token),
        out_request_no=request.out_request_no,
    )


def _busy(error: HanquanError) -> Refusal:
    return Refusal(code=Code.SYSTEM_BUSY, detail=str(error), retry_after_s=1)


_SIGNALLED = {Code.REQUEST_BLOCKED, Code.FREQUENCY_LIMITED, Code.RULE_LIMIT}
_NO_STOCK = Refusal(
    code=Code.RESOURCE_NOT_EXISTS, detail="there is no such stock, or it is not yours", pointer="stock_id"
)
_REFUSALS = {
    Denied(Code.IDEMPOTENCY_MISMATCH): Refusal(
        code=Code.IDEMPOTENCY_MISMATCH,
        detail="this out_request_no was used with another stock or person; take a new number for a new claim",
        pointer="out_request_no",
    ),
    Denied(Code.PAUSED): Refusal(code=Code.PAUSED, detail="the city has paused this stock", retry_after_s=5),
    Denied(Code.SYSTEM_BUSY): Refusal(code=Code.SYSTEM_BUSY, detail="the round is not published yet", retry_after_s=1),
    Denied(Code.SOLD_OUT): Refusal(code=Code.SOLD_OUT, detail="all vouchers of this stock are taken"),
    Denied(Code.USER_ALREADY_CLAIMED): Refusal(
        code=Code.USER_ALREADY_CLAIMED, detail="this person already has a voucher of this round from you"
    ),
    Denied(Code.REQUEST_BLOCKED): Refusal(
        code=Code.REQUEST_BLOCKED, detail="claims of this person are blocked for risk; they can appeal to the city"
    ),
    Denied(Code.FREQUENCY_LIMITED): Refusal(
        code=Code.FREQUENCY_LIMITED, detail="this person tries too often", retry_after_s=2
    ),
    Denied(Code.RULE_LIMIT, "DEVICE_LIMIT"): Refusal(
        code=Code.RULE_LIMIT, rule="DEVICE_LIMIT", detail="as many people as share one phone already claimed with it"
    ),
}
