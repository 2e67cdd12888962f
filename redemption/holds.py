"""Confirm or cancel a hold: the use case behind POST /v1/holds/confirm and /v1/holds/cancel.

A hold ends once: confirmed, cancelled, or run out by the clock. Whoever books first under the bucket's lock decides.
"""

from collections.abc import Hashable, Iterable, Sequence
from datetime import datetime

import msgspec

from antifraud.gate import SignalWriter
from kernel.batching import Coalescer
from kernel.clock import Clock, business_day, rfc3339
from kernel.codes import CodeBook
from kernel.errors import Broken, Code, Refusal
from kernel.ids import unpack_voucher_id
from kernel.partitions import bucket_of
from kernel.signing import Caller
from redemption.catalogue import LiveCatalogue
from redemption.checkout import BATCH_MAX, DEADLINE_S, FLUSHES_MAX, QUEUE_MAX, redeem_answer, redeem_signal
from redemption.ledger import HoldEnd, HoldState, Ledger, each_bucket
from redemption.numbers import Number, Scope, body_hash, number
from redemption.refusals import HOLD_CANCELLED, HOLD_CONFIRMED, HOLD_RUN_OUT, NO_SUCH_HOLD, mismatch
from redemption.steps import serve
from redemption.wire import CancelAnswer, CancelRequest, ConfirmRequest, Done

SUSPENDED = Refusal(
    code=Code.RULE_LIMIT, rule="MERCHANT_SUSPENDED", detail="this merchant is suspended from the campaign"
)
REFUSALS = {
    "NOT_FOUND": NO_SUCH_HOLD,
    "CONFIRMED": HOLD_CONFIRMED,
    "CANCELLED": HOLD_CANCELLED,
    "RUN_OUT": HOLD_RUN_OUT,
}


class Attempt(msgspec.Struct, kw_only=True):
    """One request on its way through the steps; `outcome` ends it."""

    caller: Caller
    hold: Number
    number: Number
    voucher_id: int = 0
    bucket: int = 0
    state: HoldState | None = None
    outcome: Done | Refusal | None = None

    @property
    def is_confirm(self) -> bool:
        """Else it is a cancel."""
        return self.number.scope is Scope.USE


class HoldDesk:
    """Ends holds; commits those that arrive together together."""

    def __init__(
        self, ledger: Ledger, catalogue: LiveCatalogue, codes: CodeBook, clock: Clock, signals: SignalWriter
    ) -> None:
        self._ledger = ledger
        self._catalogue = catalogue
        self._codes = codes
        self._clock = clock
        self._signals = signals
        self._desk = Coalescer(
            self._serve, batch_max=BATCH_MAX, queue_max=QUEUE_MAX, deadline_s=DEADLINE_S, flushes_max=FLUSHES_MAX
        )

    async def drained(self) -> None:
        """Returns when nothing is under way."""
        await self._desk.drained()

    async def confirm(self, caller: Caller, request: ConfirmRequest) -> Done | Refusal:
        """Makes a hold a redemption, durable when this returns. Raises Unavailable when the outcome is not known."""
        return await self._end(caller, Scope.USE, request.use_request_no, request.hold_request_no)

    async def cancel(self, caller: Caller, request: CancelRequest) -> Done | Refusal:
        """Gives a hold up, durable when this returns. One that has run out is answered so, which is no refusal."""
        return await self._end(caller, Scope.CANCEL, request.cancel_request_no, request.hold_request_no)

    async def _end(self, caller: Caller, scope: Scope, request_no: str, hold_request_no: str) -> Done | Refusal:
        attempt = Attempt(
            caller=caller,
            hold=number(Scope.HOLD, caller.holder_no, hold_request_no),
            number=number(scope, caller.holder_no, request_no, body_hash=body_hash(hold_request_no)),
        )
        return await self._desk.submit(attempt, caller.holder_no)

    async def _serve(self, attempts: Sequence[Attempt]) -> list[Done | Refusal]:
        return await serve(attempts, self._look, self._book, _stakes)

    async def _look(self, attempts: Sequence[Attempt]) -> None:
        buckets = self._catalogue.current.buckets
        found = await self._ledger.find([attempt.hold for attempt in attempts], buckets)
        for attempt, voucher_id in zip(attempts, found, strict=True):
            if voucher_id is None:
                attempt.outcome = NO_SUCH_HOLD
                continue
            attempt.voucher_id = voucher_id
            attempt.bucket = bucket_of(unpack_voucher_id(voucher_id).partition, buckets)
            attempt.number = attempt.number._replace(voucher_id=voucher_id)
        known = [attempt for attempt in attempts if attempt.outcome is None]

        async def states(part: Sequence[Attempt], bucket: int) -> list[HoldState]:
            asked = [(a.voucher_id, a.caller.holder_no, a.hold.text) for a in part]
            return await self._ledger.hold_states(asked, bucket)

        read = await each_bucket(known, lambda attempt: attempt.bucket, states)
        for attempt, state in zip(known, read, strict=True):
            attempt.state = state
            attempt.outcome = self._judge(attempt, state, self._clock.now())
        await self._look_at_numbers([attempt for attempt in known if isinstance(attempt.outcome, Refusal)])

    def _judge(self, attempt: Attempt, state: HoldState, now: datetime) -> Done | Refusal | None:
        """What is over stays over: it is told here, and binds no number."""
        shops = self._catalogue.current.shops
        if state.stock_no not in self._catalogue.current.offers or state.expires_at is None:
            return NO_SUCH_HOLD
        outcome = "CONFIRMED" if attempt.is_confirm else "CANCELLED"
        is_over = state.ended == "CANCELLED" and state.ended_at is not None and state.ended_at >= state.expires_at
        if (state.ended, state.ended_by) == (outcome, attempt.number.text):
            at = state.expires_at if is_over else state.ended_at
            return self._settle(attempt, "RUN_OUT" if is_over else "REPLAYED", at)
        if attempt.is_confirm and (is_over or (state.ended is None and (state.is_past or state.expires_at <= now))):
            return HOLD_RUN_OUT
        if state.ended == "CONFIRMED" or (attempt.is_confirm and state.ended):
            return REFUSALS[state.ended]
        is_suspended = not shops.knows(attempt.caller) or shops.of(attempt.caller).suspended
        return SUSPENDED if attempt.is_confirm and is_suspended else None

    async def _look_at_numbers(self, attempts: Sequence[Attempt]) -> None:
        """A number that stands for something else is told before whatever else is wrong."""
        catalogue = self._catalogue.current
        numbers = [attempt.number for attempt in attempts]
        taken = await self._ledger.taken(numbers, catalogue.oldest_id, catalogue.buckets)
        for attempt, is_taken in zip(attempts, taken, strict=True):
            attempt.outcome = _mismatch(attempt) if is_taken else attempt.outcome

    async def _book(self, attempts: Sequence[Attempt]) -> None:
        catalogue, now = self._catalogue.current, self._clock.now()
        await self._register(attempts)

        async def book(part: Sequence[Attempt], bucket: int) -> list[tuple[str, datetime | None]]:
            ends = [_hold_end(attempt, catalogue.buckets) for attempt in part]
            return await self._ledger.end_holds(ends, bucket, now, business_day(now), catalogue.oldest_id)

        free = [attempt for attempt in attempts if attempt.outcome is None]
        told = await each_bucket(free, lambda attempt: attempt.bucket, book)
        for attempt, (outcome, at) in zip(free, told, strict=True):
            attempt.outcome = self._settle(attempt, outcome, at)

    async def _register(self, attempts: Sequence[Attempt]) -> None:
        """Every number but that of a redemption whose home is the voucher's: its row will be its registration."""
        catalogue = self._catalogue.current
        owned = [
            attempt
            for attempt in attempts
            if not (attempt.is_confirm and attempt.number.home(catalogue.buckets) == attempt.bucket)
        ]
        if not owned:
            return
        taken = await self._ledger.register(
            [attempt.number for attempt in owned], catalogue.oldest_id, catalogue.buckets
        )
        for attempt, is_taken in zip(owned, taken, strict=True):
            if is_taken:
                attempt.outcome = _mismatch(attempt)

    def _settle(self, attempt: Attempt, outcome: str, at: datetime | None) -> Done | Refusal:
        if outcome == "MISMATCH":
            return _mismatch(attempt)
        if not attempt.is_confirm and outcome in ("DONE", "REPLAYED", "CANCELLED", "RUN_OUT"):
            return _cancelled(attempt, outcome, at)
        if outcome in REFUSALS:
            return REFUSALS[outcome]
        if outcome not in ("DONE", "REPLAYED") or at is None:
            raise Broken(f"end_holds answered {outcome!r}")
        return self._confirmed(attempt, at, replayed=outcome == "REPLAYED")

    def _confirmed(self, attempt: Attempt, at: datetime, *, replayed: bool) -> Done:
        state = attempt.state
        assert state is not None and state.stock_no is not None and state.order_no is not None
        assert state.bill_fen is not None
        offer = self._catalogue.current.offers[state.stock_no]
        if not replayed and state.person is not None:
            self._signals.offer(
                redeem_signal(attempt.caller, attempt.voucher_id, state.person, offer, state.bill_fen, at)
            )
        code = self._codes.encode(attempt.voucher_id)
        return Done(redeem_answer(attempt.number.text, state.order_no, code, offer, state.bill_fen, at), replayed)


def _cancelled(attempt: Attempt, outcome: str, at: datetime | None) -> Done:
    assert at is not None
    state = "RUN_OUT" if outcome == "RUN_OUT" else "CANCELLED"
    return Done(CancelAnswer(attempt.number.text, attempt.hold.text, state, rfc3339(at)), outcome != "DONE")


def _mismatch(attempt: Attempt) -> Refusal:
    return mismatch("use_request_no" if attempt.is_confirm else "cancel_request_no")


def _stakes(attempt: Attempt) -> Iterable[Hashable]:
    return attempt.voucher_id, attempt.number.key


def _hold_end(attempt: Attempt, buckets: int) -> HoldEnd:
    text = attempt.number.text
    return HoldEnd(
        voucher_id=attempt.voucher_id,
        merchant_no=attempt.caller.holder_no,
        hold_request_no=attempt.hold.text,
        use_request_no=text if attempt.is_confirm else None,
        cancel_request_no=None if attempt.is_confirm else text,
        request_key=attempt.number.key,
        body_hash=attempt.number.body_hash,
        is_use_here=attempt.is_confirm and attempt.number.home(buckets) == attempt.bucket,
    )
