"""Refund loop: a person who redeems and refunds at one shop, over and over.

REFUND_LOOP, family refund. A cycle is one or more redemptions followed by one or more refunds, so
that a shopping trip of three bills brought back at once is one cycle, not three. Honest: one return
or two in a day; a till that mistyped and tried again.

The flag is on the person. A shop where several people loop shows up in the merchant's statistics.
"""

from collections.abc import Iterable
from typing import Annotated

import msgspec

from antifraud.detectors.recent import Recent
from antifraud.finding import EVIDENCE_MAX, Family, Finding, Reason, SubjectKind
from antifraud.signals import RedeemSignal, RefundSignal, Signal


class RefundLoopRules(msgspec.Struct, frozen=True, kw_only=True):
    """Thresholds."""

    window_s: int = 86_400
    cycles_min: Annotated[int, msgspec.Meta(ge=2)] = 3
    points: Annotated[int, msgspec.Meta(ge=1, le=40)] = 40
    pairs_max: int = 50_000
    """Pairs of person and shop that are remembered; those with a refund outlive the others."""
    events_max: int = 64
    """Events remembered of one pair."""


DEFAULT_RULES = RefundLoopRules()

_REDEEM, _REFUND = 0, 1


class _Pair:
    """What one person did at one shop: (time, kind, voucher), each event once."""

    __slots__ = ("events", "refunds", "told")

    def __init__(self) -> None:
        self.events: set[tuple[int, int, int]] = set()
        self.refunds = 0
        self.told = 0

    def add(self, event: tuple[int, int, int], rules: RefundLoopRules) -> None:
        self.events.add(event)
        floor_ms = max(self.events)[0] - rules.window_s * 1000
        if min(self.events)[0] <= floor_ms or len(self.events) > rules.events_max:
            kept = sorted(one for one in self.events if one[0] > floor_ms)
            self.events = set(kept[-rules.events_max :])
        self.refunds = sum(kind for _, kind, _ in self.events)

    def cycles(self) -> int:
        """Turns from redeeming to refunding; a refund of something redeemed earlier is one, too."""
        kinds = [kind for _, kind, _ in sorted(self.events)]
        before = [_REDEEM, *kinds]
        return sum(a == _REDEEM and b == _REFUND for a, b in zip(before, kinds, strict=False))


class RefundLoop:
    """Counts cycles per person and shop."""

    def __init__(self, rules: RefundLoopRules = DEFAULT_RULES) -> None:
        self._rules = rules
        self._pairs: Recent[tuple[str, int], _Pair] = Recent(rules.pairs_max, lambda pair: pair.refunds > 0)

    @property
    def reach_s(self) -> int:
        return self._rules.window_s

    def observe(self, signal: Signal) -> Iterable[Finding]:
        """A finding about the person of this redemption or refund, or nothing."""
        if not isinstance(signal, RedeemSignal | RefundSignal):
            return ()
        pair = self._pair(signal.person, signal.merchant_no)
        kind = _REFUND if isinstance(signal, RefundSignal) else _REDEEM
        pair.add((signal.at_ms, kind, signal.voucher_id), self._rules)
        if pair.refunds < self._rules.cycles_min:
            return ()
        cycles = pair.cycles()
        if cycles < self._rules.cycles_min or cycles <= pair.told:
            pair.told = min(pair.told, cycles)
            return ()
        pair.told = cycles
        return (self._finding(signal.person, signal.merchant_no, pair, cycles),)

    def _pair(self, person: str, merchant_no: int) -> _Pair:
        pair = self._pairs.get((person, merchant_no))
        if pair is None:
            pair = _Pair()
            self._pairs.put((person, merchant_no), pair)
        return pair

    def _finding(self, person: str, merchant_no: int, pair: _Pair, cycles: int) -> Finding:
        rules = self._rules
        hours = rules.window_s // 3600
        vouchers = sorted({voucher_id for _, kind, voucher_id in pair.events if kind == _REFUND})
        reason = Reason(
            code="REFUND_LOOP",
            value=cycles,
            threshold=rules.cycles_min,
            window_s=rules.window_s,
            evidence=tuple(map(str, vouchers[:EVIDENCE_MAX])),
            zh=f"{hours} 小时内在同一商户（{merchant_no} 号）核销后退款 {cycles} 轮。",
            en=f"{cycles} rounds of redeeming and refunding within {hours} hours at one shop (no. {merchant_no}).",
        )
        return Finding(
            subject_kind=SubjectKind.PERSON,
            subject=person,
            detector="REFUND_LOOP",
            family=Family.REFUND,
            points=rules.points,
            reason=reason,
            people=(person,),
            since_ms=min(pair.events)[0],
            at_ms=max(pair.events)[0],
        )
