"""Repeat burst: a shop where the same few people redeem again and again.

REPEAT_BURST, family merchant. Cash-out needs many vouchers through one till in few hands, so one
person redeems several times a day there. Counted over some business days:

    repeats   redemptions by somebody who had already redeemed at this shop on the same day
    share     repeats among all redemptions of the shop
    each      redemptions per person

All three must be high at once. Honest: canteens and breakfast shops (regulars, but one voucher a day
each: no repeats), a banquet whose guests use two or three vouchers each (`each` stays low), a grand
opening or a coach (many different people), a family dinner in a busy place (`share` stays low).
Single-shop cash-out spread thinly over hundreds of people is not seen here: that takes statistics
over weeks (layer C).
"""

from collections import Counter, deque
from collections.abc import Iterable
from functools import lru_cache
from typing import Annotated

import msgspec

from antifraud.detectors.recent import Recent
from antifraud.finding import EVIDENCE_MAX, Family, Finding, Reason, SubjectKind
from antifraud.signals import RedeemSignal, Signal
from kernel.clock import business_day, from_ms

DAY_S = 86_400
QUARTER_MS = 900_000
SEEN_MAX = 64
"""A redemption that is told twice is told again soon."""


class RepeatBurstRules(msgspec.Struct, frozen=True, kw_only=True):
    """Thresholds. A share is in hundredths of a percent (bp)."""

    days: Annotated[int, msgspec.Meta(ge=1, le=31)] = 7
    """Business days counted, the newest included: the life of a voucher."""
    repeats_min: int = 12
    repeat_share_min_bp: int = 6_000
    each_min: int = 4
    """Redemptions per person. A partner grants one voucher of a category a round, and a banquet's
    guests come with what three partners gave them."""
    points: Annotated[int, msgspec.Meta(ge=1, le=40)] = 40
    merchants_max: int = 50_000
    people_max: int = 64
    """People remembered of one shop's day; with more than so many it is no longer "a few"."""


DEFAULT_RULES = RepeatBurstRules()


class _Day:
    """One shop's business day. Once another begins, those who came once are only a number."""

    __slots__ = ("others", "people", "since_ms", "total")

    def __init__(self, at_ms: int) -> None:
        self.since_ms = at_ms
        self.total = 0
        self.people: Counter[str] = Counter()
        self.others = 0

    def add(self, person: str, at_ms: int, people_max: int) -> bool:
        """Counts a redemption; True when the person had redeemed here that day before."""
        self.total += 1
        self.since_ms = min(self.since_ms, at_ms)
        if person not in self.people and len(self.people) >= people_max:
            self.others += 1
            return False
        self.people[person] += 1
        return self.people[person] > 1

    def settle(self) -> None:
        """Drops the names of those who came once."""
        repeaters = Counter({who: n for who, n in self.people.items() if n > 1})
        self.others += len(self.people) - len(repeaters)
        self.people = repeaters


class _Shop:
    """One shop's last days, and the voucher numbers of its latest repeats."""

    __slots__ = ("days", "evidence", "newest_ms", "seen", "told")

    def __init__(self) -> None:
        self.days: dict[int, _Day] = {}
        self.evidence: deque[str] = deque(maxlen=EVIDENCE_MAX)
        self.seen: deque[int] = deque(maxlen=SEEN_MAX)
        self.newest_ms = 0
        self.told = 0


class _Sums(msgspec.Struct, frozen=True):
    """A shop's counts over its days. `heads`: people, some counted once for each day they came."""

    total: int
    repeats: int
    heads: int
    repeaters: frozenset[str]

    def is_burst(self, rules: RepeatBurstRules) -> bool:
        return (
            self.repeats >= rules.repeats_min
            and self.repeats * 10_000 >= rules.repeat_share_min_bp * self.total
            and self.total >= rules.each_min * self.heads
        )


class RepeatBurst:
    """Counts redemptions per shop, day and person."""

    def __init__(self, rules: RepeatBurstRules = DEFAULT_RULES) -> None:
        self._rules = rules
        self._shops: Recent[int, _Shop] = Recent(rules.merchants_max, lambda shop: shop.told > 0)

    @property
    def reach_s(self) -> int:
        return self._rules.days * DAY_S

    def observe(self, signal: Signal) -> Iterable[Finding]:
        """A finding about the shop of this redemption, or nothing."""
        if not isinstance(signal, RedeemSignal):
            return ()
        shop = self._shop(signal.merchant_no)
        event = hash((signal.voucher_id, signal.at_ms))
        if event in shop.seen:
            return ()
        shop.seen.append(event)
        if not self._add(shop, signal):
            return ()
        sums = _sum(shop)
        if not sums.is_burst(self._rules):
            shop.told = 0
            return ()
        if sums.repeats < shop.told * 2:
            return ()
        shop.told = sums.repeats
        return (self._finding(signal.merchant_no, shop, sums),)

    def _shop(self, merchant_no: int) -> _Shop:
        shop = self._shops.get(merchant_no)
        if shop is None:
            shop = _Shop()
            self._shops.put(merchant_no, shop)
        return shop

    def _add(self, shop: _Shop, signal: RedeemSignal) -> bool:
        """Counts a redemption; True when it is a repeat within the days that matter."""
        number = _day_number(signal.at_ms // QUARTER_MS)
        newest = max(shop.days, default=number)
        if number <= newest - self._rules.days:
            return False
        day = shop.days.get(number)
        if day is None:
            day = shop.days[number] = _Day(signal.at_ms)
            self._turn(shop, max(number, newest))
        shop.newest_ms = max(shop.newest_ms, signal.at_ms)
        if not day.add(signal.person, signal.at_ms, self._rules.people_max):
            return False
        shop.evidence.append(str(signal.voucher_id))
        return True

    def _turn(self, shop: _Shop, newest: int) -> None:
        """Forgets days that no longer matter. Yesterday keeps its names: a late signal may come."""
        for number in [n for n in shop.days if n <= newest - self._rules.days]:
            del shop.days[number]
        for number, day in shop.days.items():
            if number < newest - 1:
                day.settle()

    def _finding(self, merchant_no: int, shop: _Shop, sums: _Sums) -> Finding:
        rules = self._rules
        share = sums.repeats * 100 // sums.total
        reason = Reason(
            code="REPEAT_BURST",
            value=sums.repeats,
            threshold=rules.repeats_min,
            window_s=rules.days * DAY_S,
            evidence=tuple(shop.evidence),
            zh=f"{rules.days} 天内 {sums.total} 次核销只来自 {sums.heads} 个人，"
            f"其中 {share}% 是同一人当天再次核销。款项暂缓结算，等待核查。",
            en=f"{sums.total} redemptions within {rules.days} days came from {sums.heads} people only,"
            f" and {share}% were by somebody who had redeemed here that day before."
            " Payment waits until this has been looked into.",
        )
        return Finding(
            subject_kind=SubjectKind.MERCHANT,
            subject=str(merchant_no),
            detector="REPEAT_BURST",
            family=Family.MERCHANT,
            points=rules.points,
            reason=reason,
            people=tuple(sorted(sums.repeaters)),
            since_ms=min(day.since_ms for day in shop.days.values()),
            at_ms=shop.newest_ms,
        )


@lru_cache(maxsize=1024)
def _day_number(quarter: int) -> int:
    """The business day of a quarter of an hour; no city's midnight lies within one."""
    return business_day(from_ms(quarter * QUARTER_MS)).toordinal()


def _sum(shop: _Shop) -> _Sums:
    days = shop.days.values()
    named = {who for day in days for who in day.people}
    return _Sums(
        total=sum(day.total for day in days),
        repeats=sum(n - 1 for day in days for n in day.people.values()),
        heads=len(named) + sum(day.others for day in days),
        repeaters=frozenset(who for day in days for who, n in day.people.items() if n > 1),
    )
