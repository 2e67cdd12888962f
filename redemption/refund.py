"""Refund at the till, whole or in part: the use case behind POST /v1/refunds.

What the city takes back of the subsidy, and whether the voucher lives again, is the offer's refund policy
(offers.taken_back). It is worked out from what was read; should another refund come between, booking says so, and it
is worked out again.
"""

from collections.abc import Hashable, Iterable, Sequence
from datetime import datetime

import msgspec

from antifraud.gate import RefundSignal, SignalWriter
from kernel.batching import Coalescer
from kernel.clock import Clock, business_day, rfc3339, to_ms
from kernel.errors import Broken, Code, Refusal
from kernel.ids import unpack_voucher_id
from kernel.money import format_yuan
from kernel.partitions import bucket_of
from kernel.signing import Caller
from redemption.catalogue import Catalogue, LiveCatalogue
from redemption.checkout import BATCH_MAX, DEADLINE_S, FLUSHES_MAX, QUEUE_MAX
from redemption.ledger import Ledger, TakeBack, UseState, each_bucket
from redemption.numbers import Number, Scope, body_hash, number
from redemption.offers import taken_back, valid_until_of
from redemption.refusals import ALREADY_REFUNDED, NO_SUCH_REDEMPTION, REFUND_DEBT, mismatch
from redemption.steps import serve
from redemption.wire import Done, RefundAnswer, RefundRequest

MISMATCH = mismatch("refund_request_no")


class Attempt(msgspec.Struct, kw_only=True):
    """One request on its way through the steps; `outcome` ends it. `ends_at`: of the voucher that it gives back."""

    caller: Caller
    request: RefundRequest
    use: Number
    number: Number
    bucket: int = 0
    voucher_id: int = 0
    state: UseState | None = None
    subsidy_fen: int = 0
    is_restored: bool = False
    ends_at: datetime | None = None
    outcome: Done | Refusal | None = None


class RefundDesk:
    """Takes refunds, commits those that arrive together together, words the answers."""

    def __init__(self, ledger: Ledger, catalogue: LiveCatalogue, clock: Clock, signals: SignalWriter) -> None:
        self._ledger = ledger
        self._catalogue = catalogue
        self._clock = clock
        self._signals = signals
        self._desk = Coalescer(
            self._serve, batch_max=BATCH_MAX, queue_max=QUEUE_MAX, deadline_s=DEADLINE_S, flushes_max=FLUSHES_MAX
        )

    async def drained(self) -> None:
        """Returns when no refund is under way."""
        await self._desk.drained()

    async def refund(self, caller: Caller, request: RefundRequest) -> Done | Refusal:
        """One refund, durable when this returns. Raises Unavailable when the outcome is not known."""
        sent = body_hash(request.use_request_no, request.refund_fen)
        attempt = Attempt(
            caller=caller,
            request=request,
            use=number(Scope.USE, caller.holder_no, request.use_request_no),
            number=number(Scope.REFUND, caller.holder_no, request.refund_request_no, body_hash=sent),
        )
        return await self._desk.submit(attempt, caller.holder_no)

    async def _serve(self, attempts: Sequence[Attempt]) -> list[Done | Refusal]:
        return await serve(attempts, self._look, self._book, _stakes)

    async def _look(self, attempts: Sequence[Attempt]) -> None:
        catalogue, now = self._catalogue.current, self._clock.now()
        await self._find(attempts, catalogue)
        known = [attempt for attempt in attempts if attempt.outcome is None]

        async def states(part: Sequence[Attempt], bucket: int) -> list[UseState]:
            asked = [(a.voucher_id, a.caller.holder_no, a.use.text, a.number.text) for a in part]
            return await self._ledger.use_states(asked, bucket, business_day(now))

        read = await each_bucket(known, lambda attempt: attempt.bucket, states)
        for attempt, state in zip(known, read, strict=True):
            attempt.state = state
            attempt.outcome = _judge(attempt, state, catalogue, now)

    async def _find(self, attempts: Sequence[Attempt], catalogue: Catalogue) -> None:
        """The vouchers they are about; and who uses a number anew that stands for another refund."""
        buckets = catalogue.buckets
        found = await self._ledger.find([attempt.use for attempt in attempts], buckets)
        for attempt, voucher_id in zip(attempts, found, strict=True):
            if voucher_id is None:
                attempt.outcome = NO_SUCH_REDEMPTION
                continue
            attempt.voucher_id = voucher_id
            attempt.bucket = bucket_of(unpack_voucher_id(voucher_id).partition, buckets)
            attempt.number = attempt.number._replace(voucher_id=voucher_id)
        known = [attempt for attempt in attempts if attempt.outcome is None]
        taken = await self._ledger.taken([attempt.number for attempt in known], catalogue.oldest_id, buckets)
        for attempt, is_taken in zip(known, taken, strict=True):
            attempt.outcome = MISMATCH if is_taken else None

    async def _book(self, attempts: Sequence[Attempt]) -> None:
        catalogue, now = self._catalogue.current, self._clock.now()
        numbers = [attempt.number for attempt in attempts]
        taken = await self._ledger.register(numbers, catalogue.oldest_id, catalogue.buckets)
        for attempt, is_taken in zip(attempts, taken, strict=True):
            attempt.outcome = MISMATCH if is_taken else None

        async def book(part: Sequence[Attempt], bucket: int) -> list[tuple[str, str | None, int | None, datetime]]:
            refunds = [_take_back(attempt) for attempt in part]
            return await self._ledger.refund(refunds, bucket, now, business_day(now))

        free = [attempt for attempt in attempts if attempt.outcome is None and _is_before_its_end(attempt, now)]
        booked = await each_bucket(free, lambda attempt: attempt.bucket, book)
        for attempt, (outcome, credit, subsidy_fen, at) in zip(free, booked, strict=True):
            attempt.outcome = self._settle(attempt, outcome, credit, subsidy_fen, at)

    def _settle(
        self, attempt: Attempt, outcome: str, credit: str | None, subsidy_fen: int | None, at: datetime
    ) -> Done | Refusal | None:
        assert attempt.state is not None
        match outcome:
            case "DONE":
                assert subsidy_fen is not None
                self._signal(attempt, subsidy_fen, at)
                return _word(attempt, credit, subsidy_fen, attempt.state.back_fen + subsidy_fen, at, replayed=False)
            case "REPLAYED" | "CHANGED":  # another refund came between, or this very one: look again
                return None
            case "NOT_FOUND":
                return NO_SUCH_REDEMPTION
            case "RETURNED":
                return ALREADY_REFUNDED
            case "OVER_LIMIT":
                return REFUND_DEBT
            case _:
                raise Broken(f"refund_batch answered {outcome!r}")

    def _signal(self, attempt: Attempt, subsidy_fen: int, at: datetime) -> None:
        assert attempt.state is not None and attempt.state.person is not None
        self._signals.offer(
            RefundSignal(
                at_ms=to_ms(at),
                voucher_id=attempt.voucher_id,
                person=attempt.state.person.hex,
                merchant_no=attempt.caller.holder_no,
                subsidy_fen=subsidy_fen,
            )
        )


def _judge(attempt: Attempt, state: UseState, catalogue: Catalogue, now: datetime) -> Done | Refusal | None:
    offer = None if state.stock_no is None else catalogue.offers.get(state.stock_no)
    if offer is None or state.bill_fen is None or state.subsidy_fen is None or state.claimed_at is None:
        return NO_SUCH_REDEMPTION
    if state.mine_at is not None and state.mine_subsidy_fen is not None:
        back_fen = state.mine_back_fen or 0
        return _word(attempt, state.mine_credit, state.mine_subsidy_fen, back_fen, state.mine_at, replayed=True)
    paid_fen, asked_fen = state.bill_fen - offer.face_value_fen, attempt.request.refund_fen
    left_fen = paid_fen - state.refunded_fen
    if state.refunds and left_fen == 0:
        return ALREADY_REFUNDED
    if asked_fen > left_fen or (asked_fen == 0 and paid_fen > 0):
        return _not_so_much(asked_fen, left_fen)
    attempt.subsidy_fen = taken_back(
        offer.refund_policy,
        paid_fen=paid_fen,
        subsidy_fen=state.subsidy_fen,
        refunded_before_fen=state.refunded_fen,
        subsidy_back_before_fen=state.back_fen,
        refund_fen=asked_fen,
    )
    if state.room_fen is not None and state.room_fen < attempt.subsidy_fen:
        return REFUND_DEBT
    attempt.ends_at = valid_until_of(offer, state.claimed_at)
    attempt.is_restored = (
        offer.refund_policy == "RESTORE" and state.refunds == 0 and asked_fen == paid_fen and now < attempt.ends_at
    )
    return None


def _is_before_its_end(attempt: Attempt, now: datetime) -> bool:
    """Else the voucher that would be given back ran out since it was looked at: it is looked at again."""
    return not attempt.is_restored or attempt.ends_at is None or now < attempt.ends_at


def _word(
    attempt: Attempt, credit: str | None, subsidy_fen: int, back_fen: int, at: datetime, *, replayed: bool
) -> Done:
    assert attempt.state is not None
    is_lost = back_fen == attempt.state.subsidy_fen
    answer = RefundAnswer(
        refund_request_no=attempt.request.refund_request_no,
        use_request_no=attempt.request.use_request_no,
        refund_fen=attempt.request.refund_fen,
        voucher_state="EFFECTIVE" if credit == "ISSUED" else "RETURNED" if is_lost else "USED",
        subsidy_fen=subsidy_fen,
        refunded_at=rfc3339(at),
    )
    return Done(answer, replayed)


def _stakes(attempt: Attempt) -> Iterable[Hashable]:
    return (attempt.voucher_id, attempt.number.key)


def _take_back(attempt: Attempt) -> TakeBack:
    assert attempt.state is not None
    return TakeBack(
        voucher_id=attempt.voucher_id,
        merchant_no=attempt.caller.holder_no,
        use_request_no=attempt.request.use_request_no,
        refund_request_no=attempt.request.refund_request_no,
        refund_fen=attempt.request.refund_fen,
        subsidy_fen=attempt.subsidy_fen,
        is_restored=attempt.is_restored,
        refunds=attempt.state.refunds,
    )


def _not_so_much(asked_fen: int, left_fen: int) -> Refusal:
    if asked_fen == 0:
        detail = f"say how much goes back; up to {format_yuan(left_fen)} yuan"
    else:
        detail = f"{format_yuan(left_fen)} yuan of what was paid are left; {format_yuan(asked_fen)} yuan cannot go back"
    return Refusal(
        code=Code.RULE_LIMIT,
        rule="REFUND_EXCEEDS_PAID" if asked_fen else "REFUND_OF_NOTHING",
        detail=detail,
        pointer="refund_fen",
        facts={"left_fen": left_fen, "asked_fen": asked_fen},
    )
