"""Find redemptions and holds again: by the till's own number, by the shop's payment, by the voucher's code."""

import msgspec

from kernel.clock import Clock, business_day, rfc3339
from kernel.codes import CodeBook
from kernel.errors import Refusal
from kernel.ids import unpack_voucher_id
from kernel.partitions import bucket_of
from kernel.signing import Caller
from redemption.catalogue import LiveCatalogue
from redemption.checkout import hold_answer
from redemption.ledger import Ledger
from redemption.lockout import NO_SUCH_CODE, Lockout
from redemption.numbers import Scope, number
from redemption.refusals import NO_SUCH_HOLD, NO_SUCH_ORDER, NO_SUCH_REDEMPTION, NO_SUCH_USE
from redemption.till_codes import TillCodes
from redemption.wire import HoldAnswer


class RedemptionAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A redemption as its merchant sees it now.

    state               USED; PART_REFUNDED; REFUNDED: all the customer paid went back
    refund_request_no   of the last refund, refund_fen and subsidy_back_fen: of all
    """

    use_request_no: str
    order_no: str
    voucher_code: str
    state: str
    bill_fen: int
    subsidy_fen: int
    redeemed_at: str
    refund_request_no: str | None = None
    refund_fen: int | None = None
    subsidy_back_fen: int | None = None
    refunded_at: str | None = None


class UsesAnswer(msgspec.Struct, frozen=True):
    """What a merchant did with one payment, or with one voucher; newest first."""

    redemptions: list[RedemptionAnswer]
    holds: list[HoldAnswer]


class Finder:
    """Looks in PostgreSQL; changes nothing."""

    def __init__(
        self,
        ledger: Ledger,
        catalogue: LiveCatalogue,
        codes: CodeBook,
        till_codes: TillCodes,
        lockout: Lockout,
        clock: Clock,
    ) -> None:
        self._ledger = ledger
        self._catalogue = catalogue
        self._codes = codes
        self._till_codes = till_codes
        self._lockout = lockout
        self._clock = clock

    async def redemption(self, caller: Caller, use_request_no: str) -> RedemptionAnswer | Refusal:
        """The redemption under a merchant's number; RESOURCE_NOT_EXISTS when there is none of this merchant."""
        voucher_id = await self._voucher_of(Scope.USE, caller, use_request_no)
        found = None if voucher_id is None else await self._redemption(caller, voucher_id, use_request_no)
        return found or NO_SUCH_REDEMPTION

    async def hold(self, caller: Caller, hold_request_no: str) -> HoldAnswer | Refusal:
        """The hold under a merchant's number; RESOURCE_NOT_EXISTS when there is none of this merchant."""
        voucher_id = await self._voucher_of(Scope.HOLD, caller, hold_request_no)
        found = None if voucher_id is None else await self._hold(caller, voucher_id, hold_request_no)
        return found or NO_SUCH_HOLD

    async def by_order(self, caller: Caller, order_no: str) -> UsesAnswer | Refusal:
        """Everything of a payment."""
        voucher_id = await self._voucher_of(Scope.ORDER, caller, order_no)
        if voucher_id is None:
            return NO_SUCH_ORDER
        uses = await self._uses(caller, voucher_id)
        mine = UsesAnswer(
            [use for use in uses.redemptions if use.order_no == order_no],
            [hold for hold in uses.holds if hold.order_no == order_no],
        )
        return mine if mine.redemptions or mine.holds else NO_SUCH_ORDER

    async def by_code(self, caller: Caller, voucher_code: str) -> UsesAnswer | Refusal:
        """Everything that a merchant did with a voucher. A code that is not right counts as a guess."""
        if locked := self._lockout.refusal(caller):
            return locked
        shown = self._till_codes.read(voucher_code, self._clock.now())
        if shown is None and self._till_codes.mistimed(voucher_code, self._clock.now()) is not None:
            return NO_SUCH_CODE
        if shown is None:
            return await self._lockout.failed(caller)
        uses = await self._uses(caller, shown.voucher_id)
        return uses if uses.redemptions or uses.holds else NO_SUCH_USE

    async def _voucher_of(self, scope: Scope, caller: Caller, text: str) -> int | None:
        [voucher_id] = await self._ledger.find([number(scope, caller.holder_no, text)], self._catalogue.current.buckets)
        return voucher_id

    def _bucket(self, voucher_id: int) -> int:
        return bucket_of(unpack_voucher_id(voucher_id).partition, self._catalogue.current.buckets)

    async def _uses(self, caller: Caller, voucher_id: int) -> UsesAnswer:
        redemptions: list[RedemptionAnswer] = []
        holds: list[HoldAnswer] = []
        numbers = await self._ledger.uses_of_voucher(voucher_id, caller.holder_no, self._bucket(voucher_id))
        for use_request_no, hold_request_no in numbers:
            if use_request_no is not None:
                use = await self._redemption(caller, voucher_id, use_request_no)
                redemptions += [use] if use else []
            if hold_request_no is not None:
                hold = await self._hold(caller, voucher_id, hold_request_no)
                holds += [hold] if hold else []
        return UsesAnswer(redemptions, holds)

    async def _redemption(self, caller: Caller, voucher_id: int, use_request_no: str) -> RedemptionAnswer | None:
        asked = [(voucher_id, caller.holder_no, use_request_no, "")]
        [state] = await self._ledger.use_states(asked, self._bucket(voucher_id), business_day(self._clock.now()))
        offer = None if state.stock_no is None else self._catalogue.current.offers.get(state.stock_no)
        if offer is None or state.redeemed_at is None:
            return None
        assert state.order_no is not None and state.bill_fen is not None and state.subsidy_fen is not None
        is_whole = state.refunded_fen == state.bill_fen - offer.face_value_fen
        return RedemptionAnswer(
            use_request_no=use_request_no,
            order_no=state.order_no,
            voucher_code=self._codes.encode(voucher_id),
            state="USED" if not state.refunds else "REFUNDED" if is_whole else "PART_REFUNDED",
            bill_fen=state.bill_fen,
            subsidy_fen=state.subsidy_fen,
            redeemed_at=rfc3339(state.redeemed_at),
            refund_request_no=state.refund_request_no,
            refund_fen=state.refunded_fen if state.refunds else None,
            subsidy_back_fen=state.back_fen if state.refunds else None,
            refunded_at=None if state.refunded_at is None else rfc3339(state.refunded_at),
        )

    async def _hold(self, caller: Caller, voucher_id: int, hold_request_no: str) -> HoldAnswer | None:
        asked = [(voucher_id, caller.holder_no, hold_request_no)]
        [state] = await self._ledger.hold_states(asked, self._bucket(voucher_id))
        offer = None if state.stock_no is None else self._catalogue.current.offers.get(state.stock_no)
        if offer is None or state.held_at is None or state.expires_at is None:
            return None
        assert state.order_no is not None and state.bill_fen is not None
        running = "LOCKED" if state.expires_at > self._clock.now() else "RUN_OUT"
        return hold_answer(
            hold_request_no,
            state.order_no,
            self._codes.encode(voucher_id),
            offer,
            state.bill_fen,
            state.held_at,
            state.expires_at,
            state.ended or running,
        )
