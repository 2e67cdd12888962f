"""What vouchers would do to a bill here and now: the use case behind POST /v1/quotes. Nothing is kept or promised."""

from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec

from kernel.clock import Clock, business_day
from kernel.errors import Overloaded, Refusal
from kernel.ids import unpack_voucher_id
from kernel.partitions import bucket_of
from kernel.signing import Caller
from redemption.catalogue import LiveCatalogue
from redemption.checkout import REFUSALS
from redemption.ledger import Ledger, VoucherState, each_bucket
from redemption.lockout import NO_SUCH_CODE, Lockout
from redemption.offers import Offer, Saving, Shown, best_of
from redemption.refusals import CONFIRMING, HELD, LONG_OVER, USED
from redemption.till_codes import Presented, TillCodes, is_spent
from redemption.wire import QuoteRequest


class Quoted(msgspec.Struct, frozen=True):
    """What is said of one code: its offer and what it saves, or why not."""

    voucher_code: str
    outcome: Saving | Refusal
    offer: Offer | None = None


class QuoteDesk:
    """Quotes; asks the ledger once for all codes."""

    def __init__(
        self, ledger: Ledger, catalogue: LiveCatalogue, till_codes: TillCodes, lockout: Lockout, clock: Clock
    ) -> None:
        self._ledger = ledger
        self._catalogue = catalogue
        self._till_codes = till_codes
        self._lockout = lockout
        self._clock = clock

    async def quote(self, caller: Caller, request: QuoteRequest) -> list[Quoted] | Refusal:
        """What is said of each code, in the order sent; one at most saves. Wrong codes count as guesses."""
        catalogue, now = self._catalogue.current, self._clock.now()
        if not catalogue.shops.knows(caller):
            raise Overloaded("the merchant was enrolled a moment ago")
        shown: dict[str, Presented] = {}
        wrong: dict[str, Refusal] = {}
        for code in request.voucher_codes:
            if locked := self._lockout.refusal(caller):
                return locked
            read = self._till_codes.read(code, now)
            if read is not None:
                shown[code] = read
            elif self._till_codes.mistimed(code, now) is None:
                wrong[code] = await self._lockout.failed(caller)
            else:
                wrong[code] = NO_SUCH_CODE
        said = await self._say(caller, request, shown, now)
        return [Quoted(code, wrong[code]) if code in wrong else said[code] for code in request.voucher_codes]

    async def _say(
        self, caller: Caller, request: QuoteRequest, shown: Mapping[str, Presented], now: datetime
    ) -> dict[str, Quoted]:
        catalogue = self._catalogue.current
        states = await self._states(list(shown.values()), now)
        refused: dict[int, Refusal] = {}
        good: list[Shown] = []
        for read, state in states:
            offer = catalogue.offers.get(state.stock_no or 0)
            refusal = _refusal(read, state, offer, catalogue.oldest_id)
            if refusal is not None:
                refused[read.voucher_id] = refusal
            elif offer is not None and state.claimed_at is not None:
                is_rotating = read.window is not None
                good.append(
                    Shown(voucher_id=read.voucher_id, offer=offer, claimed_at=state.claimed_at, is_rotating=is_rotating)
                )
        verdicts = best_of(good, catalogue.shops.of(caller), request.bill_fen, now, other_offers=request.other_offers)
        outcomes = {verdict.voucher_id: verdict.outcome for verdict in verdicts} | refused
        offers = {read.voucher_id: catalogue.offers.get(state.stock_no or 0) for read, state in states}
        return {code: Quoted(code, outcomes[read.voucher_id], offers[read.voucher_id]) for code, read in shown.items()}

    async def _states(self, shown: Sequence[Presented], now: datetime) -> list[tuple[Presented, VoucherState]]:
        buckets = self._catalogue.current.buckets

        async def states(part: Sequence[Presented], bucket: int) -> list[VoucherState]:
            asked = [(read.voucher_id, 0, "", False, business_day(now)) for read in part]
            return await self._ledger.states(asked, bucket, now)

        read = await each_bucket(
            shown, lambda one: bucket_of(unpack_voucher_id(one.voucher_id).partition, buckets), states
        )
        return list(zip(shown, read, strict=True))


def _refusal(shown: Presented, state: VoucherState, offer: Offer | None, oldest_id: int) -> Refusal | None:
    if is_spent(shown.window, state.last_at):
        return NO_SUCH_CODE
    if state.person is None and shown.voucher_id < oldest_id:
        return LONG_OVER
    if offer is None or state.person is None:
        return CONFIRMING
    if state.last_attempt is not None and state.last_credit != "ISSUED":
        return USED
    if state.is_held:
        return HELD
    return None if state.cap is None else REFUSALS[state.cap]
