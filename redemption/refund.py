"""Refund at the till, in full: the use case behind POST /v1/refunds.

The same steps as a redemption: look up what the numbers stand for, check the amount, take the refund's
number, book under the bucket's lock. Whether the voucher lives again is the offer's refund policy.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

import msgspec

from antifraud.gate import RefundSignal, SignalWriter
from kernel.batching import Coalescer
from kernel.clock import Clock, business_day, rfc3339, to_ms
from kernel.errors import Broken, Code, Refusal
from kernel.ids import RequestNo, unpack_voucher_id
from kernel.money import AMOUNT_FEN_MAX, format_yuan
from kernel.partitions import bucket_of
from kernel.signing import Caller
from redemption.catalogue import Catalogue, LiveCatalogue
from redemption.checkout import BATCH_MAX, DEADLINE_S, QUEUE_MAX
from redemption.ledger import Ledger, TakeBack, VoucherState, each_bucket
from redemption.numbers import Number, Scope, body_hash, number_key
from redemption.steps import distinct, go_through, is_mismatch


class RefundRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One refund as a till sends it: which redemption, and the cash given back."""

    refund_request_no: RequestNo
    use_request_no: RequestNo
    refund_fen: Annotated[int, msgspec.Meta(ge=1, le=AMOUNT_FEN_MAX)]


class RefundAnswer(msgspec.Struct, frozen=True):
    """A refund as the till is told, every time it asks."""

    refund_request_no: str
    use_request_no: str
    refund_fen: int
    voucher_state: str
    subsidy_fen: int
    refunded_at: str


class Refunded(msgspec.Struct, frozen=True):
    """A refund's answer, and whether it was given before."""

    answer: RefundAnswer
    replayed: bool


class Attempt(msgspec.Struct):
    """One request on its way through the steps; `outcome` ends it."""

    caller: Caller
    request: RefundRequest
    use: Number
    number: Number
    bucket: int = 0
    voucher_id: int = 0
    state: VoucherState | None = None
    outcome: Refunded | Refusal | None = None


class RefundDesk:
    """Takes refunds, commits those that arrive together together, words the answers."""

    def __init__(self, ledger: Ledger, catalogue: LiveCatalogue, clock: Clock, signals: SignalWriter) -> None:
        self._ledger = ledger
        self._catalogue = catalogue
        self._clock = clock
        self._signals = signals
        self._desk = Coalescer(self._refund_all, batch_max=BATCH_MAX, queue_max=QUEUE_MAX, deadline_s=DEADLINE_S)

    async def drained(self) -> None:
        """Returns when no refund is under way."""
        await self._desk.drained()

    async def refund(self, caller: Caller, request: RefundRequest) -> Refunded | Refusal:
        """One refund, durable when this returns. Raises Unavailable when the outcome is not known."""
        sent = body_hash(request.use_request_no, request.refund_fen)
        return await self._desk.submit(
            Attempt(
                caller=caller,
                request=request,
                use=Number(number_key(Scope.USE, caller.holder_no, request.use_request_no), 0, 0),
                number=Number(number_key(Scope.REFUND, caller.holder_no, request.refund_request_no), sent, 0),
            )
        )

    async def _refund_all(self, attempts: Sequence[Attempt]) -> list[Refunded | Refusal]:
        firsts = distinct(attempts)
        steps = (self._check_numbers, self._look, self._register, self._book)
        await go_through(list(firsts.values()), steps, self._catalogue.current, self._clock.now())
        outcomes = [firsts[attempt.number.key, attempt.number.body_hash].outcome for attempt in attempts]
        return [outcome for outcome in outcomes if outcome is not None]

    async def _check_numbers(self, attempts: Sequence[Attempt], catalogue: Catalogue, now: datetime) -> None:
        numbers = [number for attempt in attempts for number in (attempt.number, attempt.use)]
        owners = await self._ledger.owners(numbers, catalogue.buckets)
        for attempt in attempts:
            use = owners.get(attempt.use.key)
            if use is None:
                attempt.outcome = NO_SUCH_REDEMPTION
                continue
            attempt.voucher_id = use.voucher_id
            attempt.bucket = bucket_of(unpack_voucher_id(use.voucher_id).partition, catalogue.buckets)
            attempt.number = attempt.number._replace(voucher_id=use.voucher_id)
            attempt.outcome = MISMATCH if is_mismatch(attempt.number, owners) else None

    async def _look(self, attempts: Sequence[Attempt], catalogue: Catalogue, now: datetime) -> None:
        async def states(part: Sequence[Attempt], bucket: int) -> None:
            asked = [(a.voucher_id, a.caller.holder_no, a.request.use_request_no) for a in part]
            for attempt, state in zip(part, await self._ledger.states(asked, bucket), strict=True):
                attempt.state = state
                attempt.outcome = _judge(attempt, state, catalogue)

        await each_bucket(attempts, lambda attempt: attempt.bucket, states)

    async def _register(self, attempts: Sequence[Attempt], catalogue: Catalogue, now: datetime) -> None:
        owners = await self._ledger.take([attempt.number for attempt in attempts], catalogue.buckets)
        for attempt in attempts:
            attempt.outcome = MISMATCH if is_mismatch(attempt.number, owners) else None

    async def _book(self, attempts: Sequence[Attempt], catalogue: Catalogue, now: datetime) -> None:
        async def book(part: Sequence[Attempt], bucket: int) -> None:
            refunds = [_take_back(attempt) for attempt in part]
            booked = await self._ledger.refund(refunds, bucket, now, business_day(now))
            for attempt, (outcome, credit, at) in zip(part, booked, strict=True):
                attempt.outcome = self._settle(attempt, outcome, credit, at)

        await each_bucket(attempts, lambda attempt: attempt.bucket, book)

    def _settle(self, attempt: Attempt, outcome: str, credit: str | None, at: datetime) -> Refunded | Refusal:
        match outcome:
            case "REFUNDED":
                self._signal(attempt, at)
                return _word(attempt, credit, at, replayed=False)
            case "REPLAYED":
                return _word(attempt, credit, at, replayed=True)
            case "NOT_FOUND":
                return NO_SUCH_REDEMPTION
            case "ALREADY_REFUNDED":
                return ALREADY_REFUNDED
            case "OVER_LIMIT":
                return OVER_LIMIT
            case _:
                raise Broken(f"refund_batch answered {outcome!r}")

    def _signal(self, attempt: Attempt, at: datetime) -> None:
        state = attempt.state
        assert state is not None and state.person is not None and state.mine_subsidy_fen is not None
        self._signals.offer(
            RefundSignal(
                at_ms=to_ms(at),
                voucher_id=attempt.voucher_id,
                person=state.person.hex,
                merchant_no=attempt.caller.holder_no,
                subsidy_fen=state.mine_subsidy_fen,
            )
        )


def _judge(attempt: Attempt, state: VoucherState, catalogue: Catalogue) -> Refunded | Refusal | None:
    if state.mine_at is None or state.stock_no is None or state.mine_bill_fen is None:
        return NO_SUCH_REDEMPTION
    if state.refund_request_no is not None and state.refunded_at is not None:
        if state.refund_request_no != attempt.request.refund_request_no:
            return ALREADY_REFUNDED
        return _word(attempt, state.refund_credit, state.refunded_at, replayed=True)
    paid_fen = state.mine_bill_fen - catalogue.offers[state.stock_no].face_value_fen
    asked_fen = attempt.request.refund_fen
    if asked_fen > paid_fen:
        return _rule(
            "REFUND_EXCEEDS_PAID",
            f"the customer paid {format_yuan(paid_fen)} yuan; {format_yuan(asked_fen)} yuan cannot be given back",
        )
    if asked_fen < paid_fen:
        return _rule("FULL_REFUND_ONLY", f"a refund gives back all that was paid, {format_yuan(paid_fen)} yuan")
    return None


def _word(attempt: Attempt, credit: str | None, at: datetime, *, replayed: bool) -> Refunded:
    assert attempt.state is not None and attempt.state.mine_subsidy_fen is not None
    answer = RefundAnswer(
        refund_request_no=attempt.request.refund_request_no,
        use_request_no=attempt.request.use_request_no,
        refund_fen=attempt.request.refund_fen,
        voucher_state="EFFECTIVE" if credit == "ISSUED" else "RETURNED",
        subsidy_fen=attempt.state.mine_subsidy_fen,
        refunded_at=rfc3339(at),
    )
    return Refunded(answer, replayed)


def _take_back(attempt: Attempt) -> TakeBack:
    return TakeBack(
        voucher_id=attempt.voucher_id,
        merchant_no=attempt.caller.holder_no,
        use_request_no=attempt.request.use_request_no,
        refund_request_no=attempt.request.refund_request_no,
        refund_fen=attempt.request.refund_fen,
    )


def _rule(rule: str, detail: str) -> Refusal:
    return Refusal(code=Code.RULE_LIMIT, rule=rule, detail=detail, pointer="refund_fen")


NO_SUCH_REDEMPTION = Refusal(
    code=Code.RESOURCE_NOT_EXISTS, detail="you have no redemption under this number", pointer="use_request_no"
)
ALREADY_REFUNDED = Refusal(
    code=Code.RULE_LIMIT, rule="ALREADY_REFUNDED", detail="this redemption was refunded under another number"
)
OVER_LIMIT = Refusal(
    code=Code.RULE_LIMIT,
    rule="REFUND_DEBT",
    detail="refunds of settled sales would exceed what this merchant may owe; wait for the next settlement",
)
MISMATCH = Refusal(
    code=Code.IDEMPOTENCY_MISMATCH,
    detail="this number was used with another request; take a new number for a new request",
    pointer="refund_request_no",
)
