"""A small pure model of the checkout and its money: what every request must be answered, and what every balance
must be after it. Written from the rules (docs/, docs/adr/), in plain words. No store, no SQL, nothing of ours but the
clock's business day.

`judge` says what a request must be answered now and changes nothing; `commit` books it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any

from kernel.clock import business_day
from tests.money_requests import Answer, Cancel, Confirm, Lock, Redeem, Refund, Request
from tests.money_terms import (
    CAMPAIGNS,
    CAP_CAMPAIGN_FEN,
    CAP_MONTH_PER_PARTNER_FEN,
    CAPPED,
    DEBT_MAX,
    OFFLINE_AGE_MAX,
    OPENS,
    SKEW_MAX,
    TERMS,
    VALID_UNTIL,
    Terms,
)

Account = tuple[int, int, int, str]
"""bucket, campaign_no, merchant_no, kind."""


Verdict = tuple[Answer, Callable[[], None] | None]
"""What is answered, and what books it; None: nothing changes."""


@dataclass
class Part:
    """One refund of a use."""

    number: str
    cash_fen: int
    subsidy_fen: int
    credit: str
    at: datetime
    booked_on: date


@dataclass
class Attempt:
    """A hold, a use, or a hold that became a use: the n-th of its voucher. `capped_on`: the day caps count it for."""

    voucher: "Voucher"
    attempt: int
    shop: int
    order: str
    bill_fen: int
    capped_on: date
    hold_number: str | None = None
    held_at: datetime | None = None
    expires_at: datetime | None = None
    cancel: tuple[str, datetime] | None = None
    use_number: str | None = None
    used_at: datetime | None = None
    booked_on: date = date.max
    is_offline: bool = False
    parts: list[Part] = field(default_factory=list)

    @property
    def paid_fen(self) -> int:
        return self.bill_fen - self.voucher.terms.face_fen

    @property
    def cash_back_fen(self) -> int:
        return sum(part.cash_fen for part in self.parts)

    @property
    def subsidy_back_fen(self) -> int:
        return sum(part.subsidy_fen for part in self.parts)

    @property
    def is_cancelled_late(self) -> bool:
        """It had run out before."""
        return self.cancel is not None and self.expires_at is not None and self.cancel[1] >= self.expires_at

    def is_held(self, now: datetime) -> bool:
        """It keeps the voucher from others, and may be confirmed."""
        return (
            self.expires_at is not None
            and self.use_number is None
            and self.cancel is None
            and now < self.expires_at
            and self is self.voucher.attempts[-1]
        )

    def is_paid_for(self, now: datetime) -> bool:
        """The city pays for it, or has promised to: it counts for caps. A hold counts until its time is over on the
        clock of whoever looks, even when somebody whose clock was ahead went on from there."""
        if self.use_number is None:
            return self.expires_at is not None and self.cancel is None and now < self.expires_at
        return self.subsidy_back_fen < self.voucher.terms.funded_fen


@dataclass
class Voucher:
    """One voucher."""

    voucher_id: int
    stock: int
    bucket: int
    person: int
    claimed_at: datetime
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def terms(self) -> Terms:
        return TERMS[self.stock]

    @property
    def uses(self) -> list[Attempt]:
        return [attempt for attempt in self.attempts if attempt.use_number is not None]

    @property
    def is_live(self) -> bool:
        """It was not used, or a refund gave it back."""
        uses = self.uses
        return not uses or any(part.credit == "ISSUED" for part in uses[-1].parts)


CHANGED = ("fen", "use_of", "hold_of", "voucher_of_order", "refund_of", "cancel_of")


class Model:
    """The whole of it. Numbers stand for what they made, for ever."""

    def __init__(self, funds_fen: Mapping[int, int]) -> None:
        self.now = OPENS + timedelta(minutes=1)
        self.vouchers: dict[int, Voucher] = {}
        self.fen: dict[Account, int] = defaultdict(int)
        self.closed: dict[int, date] = {}
        self.expired: set[tuple[int, int]] = set()
        self.use_of: dict[tuple[int, str], Attempt] = {}
        self.hold_of: dict[tuple[int, str], Attempt] = {}
        self.voucher_of_order: dict[tuple[int, str], int] = {}
        self.refund_of: dict[tuple[int, str], tuple[Attempt, Part, Answer]] = {}
        self.cancel_of: dict[tuple[int, str], Attempt] = {}
        for campaign, fund_fen in funds_fen.items():
            self.fen[0, campaign, 0, "CITY_FUND"] = -fund_fen
            self.fen[0, campaign, 0, "BUDGET"] = fund_fen

    # ------------------------------------------------------------ what is tried may be taken back

    def kept(self) -> list[dict[str, Any]]:
        """What requests may change, to be put back."""
        mine = {name: dict(getattr(self, name)) for name in CHANGED}
        attempts = [attempt for voucher in self.vouchers.values() for attempt in voucher.attempts]
        return [mine, *({"": each, **vars(each), "parts": list(each.parts)} for each in attempts)]

    def put_back(self, kept: list[dict[str, Any]]) -> None:
        """As it was when that was kept."""
        for name, value in kept[0].items():
            getattr(self, name).clear()
            getattr(self, name).update(value)
        for voucher in self.vouchers.values():
            voucher.attempts.clear()
        for each in kept[1:]:
            attempt = each[""]
            vars(attempt).update({**each, "parts": list(each["parts"])})
            del vars(attempt)[""]
            attempt.voucher.attempts.append(attempt)

    # ------------------------------------------------------------ what is asked

    def judge(self, request: Request) -> Verdict:
        """What a request must be answered now."""
        match request:
            case Redeem():
                return self._redeem(request)
            case Lock():
                return self._lock(request)
            case Confirm():
                return self._confirm(request)
            case Cancel():
                return self._cancel(request)
            case Refund():
                return self._refund(request)

    def _redeem(self, request: Redeem) -> Verdict:
        if request.taken_at is not None and request.taken_at > self.now + SKEW_MAX:
            return _no("OFFLINE_FROM_FUTURE")
        mine = self.use_of.get((request.shop, request.number))
        if mine is not None:
            return (Answer("REPLAYED", (mine.used_at,)), None) if _is_same(mine, request) else MISMATCH
        at = min(request.taken_at or self.now, self.now)
        voucher = self.vouchers.get(request.voucher_id)
        is_offline = request.taken_at is not None
        if is_offline and voucher is not None and voucher.claimed_at - SKEW_MAX <= at < voucher.claimed_at:
            at = voucher.claimed_at  # a till's clock that is behind
        if refused := self._not_usable(request, at):
            return refused

        def commit() -> None:
            self._use(self._attempt(request, at), request.number, at, is_offline=is_offline)

        return Answer("DONE", (at,)), commit

    def _lock(self, request: Lock) -> Verdict:
        mine = self.hold_of.get((request.shop, request.number))
        if mine is not None:
            is_same = _is_same(mine, request)
            return (Answer("REPLAYED", (mine.held_at, mine.expires_at)), None) if is_same else MISMATCH
        if refused := self._not_usable(request, self.now):
            return refused
        expires_at = min(self.now + timedelta(seconds=request.ttl_s), VALID_UNTIL)

        def commit() -> None:
            attempt = self._attempt(request, self.now)
            attempt.hold_number, attempt.held_at, attempt.expires_at = request.number, self.now, expires_at
            self.hold_of[request.shop, request.number] = attempt

        return Answer("DONE", (self.now, expires_at)), commit

    def _not_usable(self, request: Redeem | Lock, at: datetime) -> Verdict | None:
        """Why a voucher cannot be redeemed or held for this payment: the first reason there is."""
        voucher = self.vouchers.get(request.voucher_id)
        if self.voucher_of_order.get((request.shop, request.order), request.voucher_id) != request.voucher_id:
            return _no("ONE_VOUCHER_PER_PAYMENT")
        if voucher is None:
            return _no("CONFIRMING")
        if not voucher.is_live:
            return _no("USED_BY_ANOTHER_ORDER")
        if any(attempt.is_held(self.now) for attempt in voucher.attempts):
            return _no("LOCKED_BY_ANOTHER_ORDER")
        if isinstance(request, Redeem) and (request.taken_at or self.now) < self.now - OFFLINE_AGE_MAX:
            return _no("OFFLINE_TOO_OLD")
        if at < min(voucher.claimed_at, self.now):
            return _no("OFFLINE_BEFORE_CLAIM")
        if at >= VALID_UNTIL:
            return _no("EXPIRED")
        if request.bill_fen < voucher.terms.minimum_fen:
            return _no("TRANSACTION_MINIMUM")
        if (voucher.bucket, voucher.stock) in self.expired:
            return _no("USED_BY_ANOTHER_ORDER")
        return self._over_cap(voucher, business_day(at))

    def _over_cap(self, voucher: Voucher, day: date) -> Verdict | None:
        if voucher.terms.campaign != CAPPED:
            return None
        face_fen, counted = voucher.terms.face_fen, list(self._counted(voucher))
        month_fen = sum(
            attempt.voucher.terms.face_fen
            for attempt in counted
            if attempt.voucher.terms.partner == voucher.terms.partner
            and (attempt.capped_on.year, attempt.capped_on.month) == (day.year, day.month)
        )
        if month_fen + face_fen > CAP_MONTH_PER_PARTNER_FEN:
            return _no("REDEEM_CAP_MONTH")
        if sum(attempt.voucher.terms.face_fen for attempt in counted) + face_fen > CAP_CAMPAIGN_FEN:
            return _no("REDEEM_CAP_CAMPAIGN")
        return None

    def _counted(self, voucher: Voucher) -> Iterator[Attempt]:
        """What the person has of the campaign that the city pays for, or has promised to."""
        for other in self.vouchers.values():
            if (other.person, other.terms.campaign) == (voucher.person, voucher.terms.campaign):
                yield from (attempt for attempt in other.attempts if attempt.is_paid_for(self.now))

    def _attempt(self, request: Redeem | Lock, at: datetime) -> Attempt:
        voucher = self.vouchers[request.voucher_id]
        order, bill_fen, number = request.order, request.bill_fen, len(voucher.attempts) + 1
        voucher.attempts.append(Attempt(voucher, number, request.shop, order, bill_fen, business_day(at)))
        self.voucher_of_order[request.shop, order] = voucher.voucher_id
        return voucher.attempts[-1]

    def _use(self, attempt: Attempt, number: str, at: datetime, *, is_offline: bool = False) -> None:
        attempt.use_number, attempt.used_at, attempt.is_offline = number, at, is_offline
        attempt.booked_on = self.day(attempt.voucher.bucket, at)
        self.use_of[attempt.shop, number] = attempt
        funded_fen = attempt.voucher.terms.funded_fen
        self.move(funded_fen, self.issued(attempt.voucher), self.payable(attempt.voucher, attempt.shop))

    # ------------------------------------------------------------ holds end

    def _confirm(self, request: Confirm) -> Verdict:
        hold = self.hold_of.get((request.shop, request.hold_number))
        if hold is None:
            return _no("RESOURCE_NOT_EXISTS")
        made = self.use_of.get((request.shop, request.number))
        if made is not None and made is not hold:
            return MISMATCH
        if made is hold:
            return Answer("REPLAYED", (hold.used_at,)), None
        if refused := self._ended(hold):
            return refused

        assert hold.held_at is not None
        at = max(self.now, hold.held_at)  # no use is older than its hold, whatever this worker's clock says

        def commit() -> None:
            self._use(hold, request.number, at)

        return Answer("DONE", (at,)), commit

    def _ended(self, hold: Attempt) -> Verdict | None:
        if hold.use_number is not None:
            return _no("HOLD_CONFIRMED")
        if hold.cancel is not None and not hold.is_cancelled_late:
            return _no("HOLD_CANCELLED")
        if not hold.is_held(self.now) or (hold.voucher.bucket, hold.voucher.stock) in self.expired:
            return _no("HOLD_RUN_OUT")
        return None

    def _cancel(self, request: Cancel) -> Verdict:
        """A hold that was cancelled before, or ran out, is told so: what was asked for is the case. From then on it is
        over on every clock."""
        hold = self.hold_of.get((request.shop, request.hold_number))
        if hold is None:
            return _no("RESOURCE_NOT_EXISTS")
        if self.cancel_of.get((request.shop, request.number), hold) is not hold:
            return MISMATCH
        ended = self._ended(hold)
        if ended is not None and ended[0].outcome == "HOLD_CONFIRMED":
            return ended
        assert hold.held_at is not None and hold.expires_at is not None
        at = max(self.now, hold.held_at if ended is None else hold.expires_at)

        def commit() -> None:
            self.cancel_of[request.shop, request.number] = hold
            if hold.cancel is None:
                hold.cancel = request.number, at

        if ended is None:
            return Answer("DONE", ("CANCELLED", at)), commit
        if hold.cancel is not None and not hold.is_cancelled_late:
            return Answer("REPLAYED", ("CANCELLED", hold.cancel[1])), commit
        return Answer("REPLAYED", ("RUN_OUT", hold.expires_at)), commit

    # ------------------------------------------------------------ refunds

    def _refund(self, request: Refund) -> Verdict:
        use = self.use_of.get((request.shop, request.use_number))
        if use is None:
            return _no("RESOURCE_NOT_EXISTS")
        made = self.refund_of.get((request.shop, request.number))
        if made is not None:
            is_same = (made[0], made[1].cash_fen) == (use, request.cash_fen)
            return (made[2]._replace(outcome="REPLAYED"), None) if is_same else MISMATCH
        left_fen = use.paid_fen - use.cash_back_fen
        if use.parts and left_fen == 0:
            return _no("ALREADY_REFUNDED")
        if request.cash_fen > left_fen:
            return _no("REFUND_EXCEEDS_PAID")
        if request.cash_fen == 0 and use.paid_fen > 0:
            return _no("REFUND_OF_NOTHING")
        back_fen = self._taken_back_fen(use, request.cash_fen)
        if use.booked_on < self.day(use.voucher.bucket, self.now) and self._room_fen(use) < back_fen:
            return _no("REFUND_DEBT")
        return self._give_back(use, request, back_fen)

    def _taken_back_fen(self, use: Attempt, cash_fen: int) -> int:
        """RETURN_TO_BUDGET: all of the subsidy at once. Else in proportion to the cash, rounded down, and all of it
        with the last fen."""
        funded_fen, cash_back_fen = use.voucher.terms.funded_fen, use.cash_back_fen + cash_fen
        if use.voucher.terms.policy == "RETURN_TO_BUDGET" or cash_back_fen == use.paid_fen:
            return funded_fen - use.subsidy_back_fen
        return funded_fen * cash_back_fen // use.paid_fen - use.subsidy_back_fen

    def _give_back(self, use: Attempt, request: Refund, back_fen: int) -> Verdict:
        voucher = use.voucher
        lives = (
            voucher.terms.policy == "RESTORE"
            and not use.parts
            and request.cash_fen == use.paid_fen
            and self.now < VALID_UNTIL
            and (voucher.bucket, voucher.stock) not in self.expired
        )
        credit = "ISSUED" if lives else "RETURNED"
        is_lost = use.subsidy_back_fen + back_fen == voucher.terms.funded_fen
        answer = Answer("DONE", ("EFFECTIVE" if lives else "RETURNED" if is_lost else "USED", back_fen, self.now))

        def commit() -> None:
            booked_on = self.day(voucher.bucket, self.now)
            part = Part(request.number, request.cash_fen, back_fen, credit, self.now, booked_on)
            use.parts.append(part)
            self.refund_of[request.shop, request.number] = use, part, answer
            back = self.issued(voucher) if lives else (0, voucher.terms.campaign, 0, "RETURNED")
            self.move(back_fen, self.payable(voucher, use.shop), back)

        return answer, commit

    def _room_fen(self, use: Attempt) -> int:
        """What a shop may still give back of sales of earlier days: the agreed debt, less what it owes since the last
        close. What a campaign owes it for closed days is no room: it may be on its way to the bank."""
        bucket, first_open = use.voucher.bucket, self.first_open(use.voucher.bucket)
        closed_fen = {campaign: self.fen[bucket, campaign, use.shop, "PAYABLE"] for campaign in CAMPAIGNS}
        back_fen = 0
        for each in self.uses():
            if (each.voucher.bucket, each.shop) != (bucket, use.shop):
                continue
            terms = each.voucher.terms
            closed_fen[terms.campaign] -= terms.funded_fen if each.booked_on >= first_open else 0
            for part in each.parts:
                if part.booked_on >= first_open:
                    closed_fen[terms.campaign] += part.subsidy_fen
                    back_fen += part.subsidy_fen if each.booked_on < part.booked_on else 0
        return DEBT_MAX[use.shop] + sum(min(0, fen) for fen in closed_fen.values()) - back_fen

    # ------------------------------------------------------------ money and days

    def move(self, amount_fen: int, debit: Account, credit: Account) -> None:
        """One movement between two accounts of a campaign."""
        assert debit[1] == credit[1]
        self.fen[debit] -= amount_fen
        self.fen[credit] += amount_fen

    def balances(self) -> dict[Account, int]:
        """What every account holds; a city's fund is what the city gave."""
        return {account: -fen if account[3] == "CITY_FUND" else fen for account, fen in self.fen.items() if fen}

    def day(self, bucket: int, at: datetime) -> date:
        """The day on which something that happened then is booked."""
        return max(business_day(at), self.first_open(bucket))

    def first_open(self, bucket: int) -> date:
        """The first day that is not closed."""
        closed = self.closed.get(bucket)
        return date.min if closed is None else closed + timedelta(days=1)

    def issued(self, voucher: Voucher) -> Account:
        return voucher.bucket, voucher.terms.campaign, 0, "ISSUED"

    def payable(self, voucher: Voucher, shop: int) -> Account:
        return voucher.bucket, voucher.terms.campaign, shop, "PAYABLE"

    def uses(self) -> Iterator[Attempt]:
        """Every redemption there is."""
        return iter(self.use_of.values())

    def live(self, bucket: int, stock: int) -> int:
        """How many vouchers of a stock money is set aside for in a bucket."""
        if (bucket, stock) in self.expired:
            return 0
        return sum((v.bucket, v.stock) == (bucket, stock) and v.is_live for v in self.vouchers.values())

    def add(self, vouchers: list[Voucher]) -> None:
        """Claims are carried over: of one stock and bucket."""
        first = vouchers[0]
        self.vouchers |= {voucher.voucher_id: voucher for voucher in vouchers}
        budget = (0, first.terms.campaign, 0, "BUDGET")
        self.move(len(vouchers) * first.terms.funded_fen, budget, self.issued(first))


def _is_same(mine: Attempt, request: Redeem | Lock) -> bool:
    asked = (request.voucher_id, request.order, request.bill_fen)
    return (mine.voucher.voucher_id, mine.order, mine.bill_fen) == asked


def _no(name: str) -> Verdict:
    return Answer(name), None


MISMATCH: Verdict = (Answer("IDEMPOTENCY_MISMATCH"), None)
