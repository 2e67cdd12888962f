"""Redeem at the till: the use case behind POST /v1/redemptions.

Requests that arrive together go through these steps together, each judged on its own:

    numbers    was this request number used before, and with this very body?
    look       how does the voucher stand, and what do the offer's rules say?
    register   take the request number and the payment's number, durably
    book       redeem under the bucket's lock, which decides every race

What is refused in the first two steps leaves nothing behind.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated
from uuid import UUID

import msgspec

from antifraud.gate import RedeemSignal, SignalWriter
from kernel.batching import Coalescer
from kernel.clock import Clock, business_day, rfc3339, to_ms
from kernel.codes import CodeBook
from kernel.errors import Broken, Code, Overloaded, Refusal
from kernel.ids import RequestNo, unpack_voucher_id
from kernel.money import AMOUNT_FEN_MAX
from kernel.partitions import bucket_of
from kernel.signing import Caller
from redemption.catalogue import Catalogue, LiveCatalogue
from redemption.ledger import Ledger, Registered, Use, VoucherState, each_bucket
from redemption.numbers import Number, Scope, body_hash, number_key
from redemption.offers import Saving, judge
from redemption.steps import distinct, go_through, is_mismatch

BATCH_MAX = 500
QUEUE_MAX = 5_000
DEADLINE_S = 5.0


class RedeemRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One redemption as a till sends it. `order_no` is the shop's payment; one voucher a payment."""

    use_request_no: RequestNo
    voucher_code: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    order_no: RequestNo
    bill_fen: Annotated[int, msgspec.Meta(ge=1, le=AMOUNT_FEN_MAX)]


class RedeemAnswer(msgspec.Struct, frozen=True):
    """A redemption as the till is told, every time it asks."""

    use_request_no: str
    order_no: str
    voucher_code: str
    stock_id: str
    state: str
    bill_fen: int
    discount_fen: int
    to_pay_fen: int
    subsidy_fen: int
    redeemed_at: str


class Redeemed(msgspec.Struct, frozen=True):
    """A redemption's answer, and whether it was given before."""

    answer: RedeemAnswer
    replayed: bool


class Attempt(msgspec.Struct):
    """One request on its way through the steps; `outcome` ends it."""

    caller: Caller
    request: RedeemRequest
    voucher_id: int
    bucket: int
    number: Number
    order: Number
    state: VoucherState | None = None
    saving: Saving | None = None
    outcome: Redeemed | Refusal | None = None


class Till:
    """Takes redemptions, commits those that arrive together together, words the answers."""

    def __init__(
        self, ledger: Ledger, catalogue: LiveCatalogue, codes: CodeBook, clock: Clock, signals: SignalWriter
    ) -> None:
        self._ledger = ledger
        self._catalogue = catalogue
        self._codes = codes
        self._clock = clock
        self._signals = signals
        self._desk = Coalescer(self._redeem_all, batch_max=BATCH_MAX, queue_max=QUEUE_MAX, deadline_s=DEADLINE_S)

    @property
    def depth(self) -> int:
        """Redemptions waiting for their turn."""
        return self._desk.depth

    async def drained(self) -> None:
        """Returns when no redemption is under way."""
        await self._desk.drained()

    async def redeem(self, caller: Caller, request: RedeemRequest) -> Redeemed | Refusal:
        """One redemption, durable when this returns. Raises Unavailable when the outcome is not known."""
        voucher_id = self._codes.decode(request.voucher_code)
        if voucher_id is None:
            return NO_SUCH_CODE
        if caller.holder_no not in self._catalogue.current.merchants:
            raise Overloaded("the merchant was enrolled a moment ago")
        return await self._desk.submit(self._attempt(caller, request, voucher_id))

    def _attempt(self, caller: Caller, request: RedeemRequest, voucher_id: int) -> Attempt:
        key = number_key(Scope.USE, caller.holder_no, request.use_request_no)
        sent = body_hash(voucher_id, request.order_no, request.bill_fen)
        return Attempt(
            caller=caller,
            request=request,
            voucher_id=voucher_id,
            bucket=bucket_of(unpack_voucher_id(voucher_id).partition, self._catalogue.current.buckets),
            number=Number(key, sent, voucher_id),
            order=Number(
                number_key(Scope.ORDER, caller.holder_no, request.order_no), body_hash(key, voucher_id), voucher_id
            ),
        )

    async def _redeem_all(self, attempts: Sequence[Attempt]) -> list[Redeemed | Refusal]:
        firsts = distinct(attempts)
        steps = (self._check_numbers, self._look, self._register, self._book)
        await go_through(list(firsts.values()), steps, self._catalogue.current, self._clock.now())
        outcomes = [firsts[attempt.number.key, attempt.number.body_hash].outcome for attempt in attempts]
        return [outcome for outcome in outcomes if outcome is not None]

    async def _check_numbers(self, attempts: Sequence[Attempt], catalogue: Catalogue, now: datetime) -> None:
        numbers = [number for attempt in attempts for number in (attempt.number, attempt.order)]
        owners = await self._ledger.owners(numbers, catalogue.buckets)
        for attempt in attempts:
            attempt.outcome = _conflict(attempt, owners)

    async def _look(self, attempts: Sequence[Attempt], catalogue: Catalogue, now: datetime) -> None:
        async def states(part: Sequence[Attempt], bucket: int) -> None:
            asked = [(a.voucher_id, a.caller.holder_no, a.request.use_request_no) for a in part]
            for attempt, state in zip(part, await self._ledger.states(asked, bucket), strict=True):
                attempt.state = state
                attempt.outcome = self._judge(attempt, state, catalogue, now)

        await each_bucket(attempts, lambda attempt: attempt.bucket, states)

    def _judge(
        self, attempt: Attempt, state: VoucherState, catalogue: Catalogue, now: datetime
    ) -> Redeemed | Refusal | None:
        offer = None if state.stock_no is None else catalogue.offers.get(state.stock_no)
        if offer is None:  # not drained yet, or its round is newer than our catalogue
            return CONFIRMING
        if state.mine_at is not None:
            return self._word(attempt, catalogue, state.mine_at, replayed=True)
        if state.last_attempt is not None and state.last_credit != "ISSUED":
            return USED
        saving = judge(offer, catalogue.merchants[attempt.caller.holder_no], attempt.request.bill_fen, now)
        if isinstance(saving, Refusal):
            return saving
        attempt.saving = saving
        return None

    async def _register(self, attempts: Sequence[Attempt], catalogue: Catalogue, now: datetime) -> None:
        numbers = [number for attempt in attempts for number in (attempt.number, attempt.order)]
        owners = await self._ledger.take(numbers, catalogue.buckets)
        for attempt in attempts:
            attempt.outcome = _conflict(attempt, owners)

    async def _book(self, attempts: Sequence[Attempt], catalogue: Catalogue, now: datetime) -> None:
        async def book(part: Sequence[Attempt], bucket: int) -> None:
            uses = [_use(attempt) for attempt in part]
            booked = await self._ledger.redeem(uses, bucket, now, business_day(now))
            for attempt, (outcome, redeemed_at) in zip(part, booked, strict=True):
                attempt.outcome = self._settle(attempt, catalogue, outcome, redeemed_at)

        await each_bucket(attempts, lambda attempt: attempt.bucket, book)

    def _settle(self, attempt: Attempt, catalogue: Catalogue, outcome: str, at: datetime) -> Redeemed | Refusal:
        match outcome:
            case "REDEEMED":
                self._signal(attempt, catalogue, at)
                return self._word(attempt, catalogue, at, replayed=False)
            case "REPLAYED":
                return self._word(attempt, catalogue, at, replayed=True)
            case "CONFIRMING":
                return CONFIRMING
            case "USED" | "RETURNED" | "EXPIRED":
                return USED
            case _:
                raise Broken(f"redeem_batch answered {outcome!r}")

    def _word(self, attempt: Attempt, catalogue: Catalogue, at: datetime, *, replayed: bool) -> Redeemed:
        assert attempt.state is not None and attempt.state.stock_no is not None
        offer, bill_fen = catalogue.offers[attempt.state.stock_no], attempt.request.bill_fen
        answer = RedeemAnswer(
            use_request_no=attempt.request.use_request_no,
            order_no=attempt.request.order_no,
            voucher_code=self._codes.encode(attempt.voucher_id),
            stock_id=offer.stock_id,
            state="USED",
            bill_fen=bill_fen,
            discount_fen=offer.face_value_fen,
            to_pay_fen=bill_fen - offer.face_value_fen,
            subsidy_fen=offer.funded_fen,
            redeemed_at=rfc3339(at),
        )
        return Redeemed(answer, replayed)

    def _signal(self, attempt: Attempt, catalogue: Catalogue, at: datetime) -> None:
        assert attempt.state is not None and attempt.state.person is not None and attempt.state.stock_no is not None
        offer = catalogue.offers[attempt.state.stock_no]
        self._signals.offer(
            RedeemSignal(
                at_ms=to_ms(at),
                voucher_id=attempt.voucher_id,
                person=attempt.state.person.hex,
                merchant_no=attempt.caller.holder_no,
                terminal_no=attempt.caller.terminal_no,
                bill_fen=attempt.request.bill_fen,
                subsidy_fen=offer.funded_fen,
                minimum_fen=offer.transaction_minimum_fen,
            )
        )


def _conflict(attempt: Attempt, owners: dict[UUID, Registered]) -> Refusal | None:
    if is_mismatch(attempt.number, owners):
        return MISMATCH
    return ONE_A_PAYMENT if is_mismatch(attempt.order, owners) else None


def _use(attempt: Attempt) -> Use:
    assert attempt.saving is not None and attempt.state is not None and attempt.state.stock_no is not None
    return Use(
        voucher_id=attempt.voucher_id,
        stock_no=attempt.state.stock_no,
        merchant_no=attempt.caller.holder_no,
        terminal_no=attempt.caller.terminal_no,
        bill_fen=attempt.request.bill_fen,
        subsidy_fen=attempt.saving.subsidy_fen,
        use_request_no=attempt.request.use_request_no,
        order_no=attempt.request.order_no,
    )


NO_SUCH_CODE = Refusal(
    code=Code.RESOURCE_NOT_EXISTS,
    detail="there is no such voucher; check the code for a typing error",
    pointer="voucher_code",
)
USED = Refusal(code=Code.USED_BY_ANOTHER_ORDER, detail="the voucher cannot be used any more", pointer="voucher_code")
CONFIRMING = Refusal(
    code=Code.CONFIRMING, detail="the voucher was claimed a moment ago; send the same request again", retry_after_s=1
)
MISMATCH = Refusal(
    code=Code.IDEMPOTENCY_MISMATCH,
    detail="this number was used with another request; take a new number for a new request",
    pointer="use_request_no",
)
ONE_A_PAYMENT = Refusal(
    code=Code.RULE_LIMIT,
    rule="ONE_VOUCHER_PER_PAYMENT",
    detail="this payment already used a voucher; one city voucher a payment",
    pointer="order_no",
)
