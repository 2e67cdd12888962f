"""Redeem and hold at the till: the use case behind POST /v1/redemptions, /v1/holds and the offline upload.

Requests that arrive together are looked at together and booked together, each judged on its own (steps.py): one read,
one transaction in the voucher's bucket. What is refused leaves nothing behind.
"""

from collections.abc import Hashable, Iterable, Sequence
from datetime import datetime, timedelta
from uuid import UUID

import msgspec

from antifraud.gate import RedeemSignal, SignalWriter
from kernel.batching import Coalescer
from kernel.clock import Clock, business_day, rfc3339, to_ms
from kernel.codes import CodeBook
from kernel.errors import Broken, Overloaded, Refusal
from kernel.ids import unpack_voucher_id
from kernel.partitions import bucket_of
from kernel.signing import Caller
from redemption.catalogue import LiveCatalogue
from redemption.ledger import Ledger, Use, VoucherState, each_bucket
from redemption.lockout import NO_SUCH_CODE, Lockout
from redemption.numbers import Number, Scope, body_hash, number
from redemption.offers import Offer, Other, Saving, judge, valid_until_of
from redemption.refusals import (
    BEFORE_CLAIM,
    CAP_CAMPAIGN,
    CAP_MONTH,
    CONFIRMING,
    HELD,
    LONG_OVER,
    OFFLINE_AGE_MAX,
    ONE_A_PAYMENT,
    SKEW_MAX,
    TOO_OLD,
    USED,
    mismatch,
)
from redemption.steps import serve
from redemption.till_codes import Presented, TillCodes, is_spent
from redemption.wire import Done, HoldAnswer, HoldRequest, OfflineRedemption, RedeemAnswer, RedeemRequest

BATCH_MAX = 500
QUEUE_MAX = 5_000
DEADLINE_S = 5.0
FLUSHES_MAX = 2
"""One batch is read for while the other is booked."""

REFUSALS = {
    "ORDER_TAKEN": ONE_A_PAYMENT,
    "CONFIRMING": CONFIRMING,
    "USED": USED,
    "RETURNED": USED,
    "EXPIRED": USED,
    "HELD": HELD,
    "CAP_MONTH": CAP_MONTH,
    "CAP_CAMPAIGN": CAP_CAMPAIGN,
}
"""What a till_outcome means to a till."""


class Attempt(msgspec.Struct, kw_only=True):
    """One request on its way through the steps; `outcome` ends it.

    window      of the till code; None: the printed code
    is_mistimed its till code is of another time: good for hearing again what was answered, and for nothing else
    taken_at    when an offline till took it; None: now
    judged_at   the moment for which the rules were judged, and which is booked
    hold_ttl_s  None: redeem at once
    asks_numbers whether its numbers are looked at before it is booked
    """

    caller: Caller
    request_no: str
    order_no: str
    bill_fen: int
    other_offers: frozenset[Other]
    voucher_id: int
    bucket: int
    number: Number
    order: Number
    window: int | None = None
    is_mistimed: bool = False
    taken_at: datetime | None = None
    judged_at: datetime | None = None
    hold_ttl_s: int | None = None
    state: VoucherState | None = None
    saving: Saving | None = None
    expires_at: datetime | None = None
    asks_numbers: bool = False
    outcome: Done | Refusal | None = None


class Till:
    """Takes redemptions and holds, commits those that arrive together together, words the answers."""

    def __init__(
        self,
        ledger: Ledger,
        catalogue: LiveCatalogue,
        codes: CodeBook,
        till_codes: TillCodes,
        lockout: Lockout,
        clock: Clock,
        signals: SignalWriter,
    ) -> None:
        self._ledger = ledger
        self._catalogue = catalogue
        self._codes = codes
        self._till_codes = till_codes
        self._lockout = lockout
        self._clock = clock
        self._signals = signals
        self._desk = Coalescer(
            self._serve, batch_max=BATCH_MAX, queue_max=QUEUE_MAX, deadline_s=DEADLINE_S, flushes_max=FLUSHES_MAX
        )

    @property
    def depth(self) -> int:
        """Requests waiting for their turn."""
        return self._desk.depth

    async def drained(self) -> None:
        """Returns when nothing is under way."""
        await self._desk.drained()

    async def redeem(self, caller: Caller, request: RedeemRequest) -> Done | Refusal:
        """One redemption, durable when this returns. Raises Unavailable when the outcome is not known."""
        return await self._take(caller, request, Scope.USE, request.use_request_no)

    async def hold(self, caller: Caller, request: HoldRequest) -> Done | Refusal:
        """One hold, durable when this returns. Raises Unavailable when the outcome is not known."""
        return await self._take(caller, request, Scope.HOLD, request.hold_request_no)

    async def redeem_offline(self, caller: Caller, request: OfflineRedemption) -> Done | Refusal:
        """One redemption that was taken at `request.taken_at`; its rules are judged as of then."""
        return await self._take(caller, request, Scope.USE, request.use_request_no)

    async def _take(
        self, caller: Caller, request: RedeemRequest | HoldRequest | OfflineRedemption, scope: Scope, request_no: str
    ) -> Done | Refusal:
        if locked := self._lockout.refusal(caller):
            return locked
        taken_at = request.taken_at if isinstance(request, OfflineRedemption) else None
        shown = self._till_codes.read(request.voucher_code, taken_at or self._clock.now())
        is_mistimed = shown is None
        if shown is None:
            named = self._till_codes.mistimed(request.voucher_code, taken_at or self._clock.now())
            if named is None:
                return await self._lockout.failed(caller)
            shown = Presented(named, None)
        if not self._catalogue.current.shops.knows(caller):
            raise Overloaded("the merchant was enrolled a moment ago")
        attempt = self._attempt(caller, request, scope, request_no, shown)
        attempt.is_mistimed, attempt.taken_at = is_mistimed, taken_at
        attempt.hold_ttl_s = request.hold_ttl_s if isinstance(request, HoldRequest) else None
        return await self._desk.submit(attempt, caller.holder_no)

    def _attempt(
        self,
        caller: Caller,
        request: RedeemRequest | HoldRequest | OfflineRedemption,
        scope: Scope,
        request_no: str,
        shown: Presented,
    ) -> Attempt:
        voucher_id, holder_no = shown.voucher_id, caller.holder_no
        sent_with = body_hash(voucher_id, request.order_no, request.bill_fen)
        return Attempt(
            caller=caller,
            request_no=request_no,
            order_no=request.order_no,
            bill_fen=request.bill_fen,
            other_offers=request.other_offers,
            voucher_id=voucher_id,
            bucket=bucket_of(unpack_voucher_id(voucher_id).partition, self._catalogue.current.buckets),
            number=number(scope, holder_no, request_no, body_hash=sent_with, voucher_id=voucher_id),
            order=number(Scope.ORDER, holder_no, request.order_no, voucher_id=voucher_id),
            window=shown.window,
        )

    # ------------------------------------------------------------ together, from here on

    async def _serve(self, attempts: Sequence[Attempt]) -> list[Done | Refusal]:
        return await serve(attempts, self._look, self._book, _stakes)

    async def _look(self, attempts: Sequence[Attempt]) -> None:
        now, buckets = self._clock.now(), self._catalogue.current.buckets

        async def states(part: Sequence[Attempt], bucket: int) -> list[VoucherState]:
            asked = [
                (
                    a.voucher_id,
                    a.caller.holder_no,
                    a.request_no,
                    a.hold_ttl_s is not None,
                    business_day(a.taken_at or now),
                )
                for a in part
            ]
            return await self._ledger.states(asked, bucket, now)

        for attempt, state in zip(
            attempts, await each_bucket(attempts, lambda attempt: attempt.bucket, states), strict=True
        ):
            again = attempt.state is not None
            attempt.state = state
            attempt.outcome = self._judge(attempt, state, now)
            attempt.asks_numbers = again or isinstance(attempt.outcome, Refusal) or not _is_at_home(attempt, buckets)
        await self._look_at_numbers([attempt for attempt in attempts if attempt.asks_numbers])

    async def _look_at_numbers(self, attempts: Sequence[Attempt]) -> None:
        """A number that stands for something else is told before any rule. Booking finds it anyway: it is asked here
        only of those that a rule forbids, of those that met another request of their own batch, and of those whose
        numbers have another home, where booking would register one though the other stands for something else."""
        if not attempts:
            return
        catalogue = self._catalogue.current
        numbers = [sent for attempt in attempts for sent in (attempt.number, attempt.order)]
        taken = await self._ledger.taken(numbers, catalogue.oldest_id, catalogue.buckets)
        for attempt, is_taken, is_order_taken in zip(attempts, taken[::2], taken[1::2], strict=True):
            if isinstance(attempt.outcome, Done):
                continue
            if is_taken:
                attempt.outcome = _mismatch(attempt)
            elif is_order_taken and attempt.outcome not in (NO_SUCH_CODE, _mismatch(attempt)):
                attempt.outcome = ONE_A_PAYMENT

    def _judge(self, attempt: Attempt, state: VoucherState, now: datetime) -> Done | Refusal | None:
        offer = None if state.stock_no is None else self._catalogue.current.offers.get(state.stock_no)
        if state.mine_at is not None and offer is not None:
            is_same = (state.mine_bill_fen, state.mine_order_no) == (attempt.bill_fen, attempt.order_no)
            return self._word(attempt, state.mine_at, state.mine_expires_at, True) if is_same else _mismatch(attempt)
        if attempt.is_mistimed or is_spent(attempt.window, state.last_at):
            return NO_SUCH_CODE
        if offer is None and attempt.voucher_id < self._catalogue.current.oldest_id:
            return LONG_OVER
        if offer is None:  # not drained yet, or its round is newer than our catalogue
            return CONFIRMING
        if state.last_attempt is not None and state.last_credit != "ISSUED":
            return USED
        return HELD if state.is_held else self._judge_rules(attempt, offer, state, now)

    def _judge_rules(self, attempt: Attempt, offer: Offer, state: VoucherState, now: datetime) -> Refusal | None:
        if attempt.taken_at is not None and attempt.taken_at < now - OFFLINE_AGE_MAX:
            return TOO_OLD
        attempt.judged_at = now
        if attempt.taken_at is not None and state.claimed_at is not None:
            if attempt.taken_at < state.claimed_at - SKEW_MAX:
                return BEFORE_CLAIM
            attempt.judged_at = max(attempt.taken_at, state.claimed_at)
        saving = judge(
            offer,
            self._catalogue.current.shops.of(attempt.caller),
            attempt.bill_fen,
            attempt.judged_at,
            claimed_at=state.claimed_at,
            other_offers=attempt.other_offers,
            is_rotating=attempt.window is not None,
        )
        if isinstance(saving, Refusal):
            return saving
        if state.is_stock_expired:  # an upload of before whose money went back meanwhile
            return USED
        if state.cap is not None:
            return REFUSALS[state.cap]
        attempt.saving = saving
        if attempt.hold_ttl_s is not None:
            ends_at = valid_until_of(offer, state.claimed_at or offer.valid_from)
            attempt.expires_at = min(now + timedelta(seconds=attempt.hold_ttl_s), ends_at)
        return None

    async def _book(self, attempts: Sequence[Attempt]) -> None:
        catalogue, now = self._catalogue.current, self._clock.now()
        await self._register_elsewhere(attempts)

        async def book(part: Sequence[Attempt], bucket: int) -> list[tuple[str, datetime, datetime | None]]:
            uses = [_use(attempt, catalogue.buckets) for attempt in part]
            return await self._ledger.redeem(uses, bucket, now, catalogue.oldest_id)

        free = [attempt for attempt in attempts if attempt.outcome is None and _is_before_its_end(attempt, now)]
        booked = await each_bucket(free, lambda attempt: attempt.bucket, book)
        for attempt, (outcome, at, expires_at) in zip(free, booked, strict=True):
            attempt.outcome = self._settle(attempt, outcome, at, expires_at)

    async def _register_elsewhere(self, attempts: Sequence[Attempt]) -> None:
        catalogue = self._catalogue.current
        owned = [
            (attempt, sent)
            for attempt in attempts
            for sent in (attempt.number, attempt.order)
            if sent.home(catalogue.buckets) != attempt.bucket
        ]
        if not owned:
            return
        taken = await self._ledger.register([sent for _, sent in owned], catalogue.oldest_id, catalogue.buckets)
        for (attempt, sent), is_taken in zip(owned, taken, strict=True):
            if is_taken and attempt.outcome is None:
                attempt.outcome = _mismatch(attempt) if sent is attempt.number else ONE_A_PAYMENT

    def _settle(self, attempt: Attempt, outcome: str, at: datetime, expires_at: datetime | None) -> Done | Refusal:
        match outcome:
            case "DONE":
                self._signal(attempt, at)
                return self._word(attempt, at, expires_at, False)
            case "REPLAYED":
                return self._word(attempt, at, expires_at, True)
            case "MISMATCH":
                return _mismatch(attempt)
            case _ if outcome in REFUSALS:
                return REFUSALS[outcome]
            case _:
                raise Broken(f"redeem_batch answered {outcome!r}")

    def _word(self, attempt: Attempt, at: datetime, expires_at: datetime | None, replayed: bool) -> Done:
        assert attempt.state is not None and attempt.state.stock_no is not None
        offer = self._catalogue.current.offers[attempt.state.stock_no]
        code = self._codes.encode(attempt.voucher_id)
        if expires_at is not None:
            return Done(
                hold_answer(attempt.request_no, attempt.order_no, code, offer, attempt.bill_fen, at, expires_at),
                replayed,
            )
        return Done(redeem_answer(attempt.request_no, attempt.order_no, code, offer, attempt.bill_fen, at), replayed)

    def _signal(self, attempt: Attempt, at: datetime) -> None:
        state = attempt.state
        if attempt.hold_ttl_s is not None or state is None or state.person is None or state.stock_no is None:
            return
        offer = self._catalogue.current.offers[state.stock_no]
        self._signals.offer(
            redeem_signal(attempt.caller, attempt.voucher_id, state.person, offer, attempt.bill_fen, at)
        )


def redeem_answer(
    use_request_no: str, order_no: str, voucher_code: str, offer: Offer, bill_fen: int, at: datetime
) -> RedeemAnswer:
    """A redemption in words, from what stands in the books."""
    return RedeemAnswer(
        use_request_no=use_request_no,
        order_no=order_no,
        voucher_code=voucher_code,
        stock_id=offer.stock_id,
        state="USED",
        bill_fen=bill_fen,
        discount_fen=offer.face_value_fen,
        to_pay_fen=bill_fen - offer.face_value_fen,
        subsidy_fen=offer.funded_fen,
        redeemed_at=rfc3339(at),
    )


def hold_answer(
    hold_request_no: str,
    order_no: str,
    voucher_code: str,
    offer: Offer,
    bill_fen: int,
    held_at: datetime,
    expires_at: datetime,
    state: str = "LOCKED",
) -> HoldAnswer:
    """A hold in words, from what stands in the books."""
    return HoldAnswer(
        hold_request_no=hold_request_no,
        order_no=order_no,
        voucher_code=voucher_code,
        stock_id=offer.stock_id,
        state=state,
        bill_fen=bill_fen,
        discount_fen=offer.face_value_fen,
        to_pay_fen=bill_fen - offer.face_value_fen,
        held_at=rfc3339(held_at),
        expires_at=rfc3339(expires_at),
    )


def redeem_signal(
    caller: Caller, voucher_id: int, person: UUID, offer: Offer, bill_fen: int, at: datetime
) -> RedeemSignal:
    """What anti-fraud hears of a redemption."""
    return RedeemSignal(
        at_ms=to_ms(at),
        voucher_id=voucher_id,
        person=person.hex,
        merchant_no=caller.holder_no,
        terminal_no=caller.terminal_no,
        bill_fen=bill_fen,
        subsidy_fen=offer.funded_fen,
        minimum_fen=offer.transaction_minimum_fen,
    )


def _is_at_home(attempt: Attempt, buckets: int) -> bool:
    return attempt.number.home(buckets) == attempt.order.home(buckets) == attempt.bucket


def _is_before_its_end(attempt: Attempt, now: datetime) -> bool:
    """Else the voucher ran out since it was looked at: it is looked at again."""
    return attempt.expires_at is None or now < attempt.expires_at


def _mismatch(attempt: Attempt) -> Refusal:
    return mismatch("hold_request_no" if attempt.number.scope is Scope.HOLD else "use_request_no")


def _stakes(attempt: Attempt) -> Iterable[Hashable]:
    assert attempt.state is not None
    return attempt.voucher_id, attempt.number.key, attempt.order.key, attempt.state.person


def _use(attempt: Attempt, buckets: int) -> Use:
    assert attempt.saving is not None and attempt.state is not None and attempt.state.stock_no is not None
    assert attempt.judged_at is not None
    return Use(
        voucher_id=attempt.voucher_id,
        stock_no=attempt.state.stock_no,
        merchant_no=attempt.caller.holder_no,
        terminal_no=attempt.caller.terminal_no,
        bill_fen=attempt.bill_fen,
        subsidy_fen=attempt.saving.subsidy_fen,
        request_no=attempt.request_no,
        order_no=attempt.order_no,
        expires_at=attempt.expires_at,
        request_key=attempt.number.key,
        order_key=attempt.order.key,
        body_hash=attempt.number.body_hash,
        is_use_here=attempt.number.home(buckets) == attempt.bucket,
        is_order_here=attempt.order.home(buckets) == attempt.bucket,
        taken_at=attempt.judged_at,
        taken_on=business_day(attempt.judged_at),
        is_offline=attempt.taken_at is not None,
    )
