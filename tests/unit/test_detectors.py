"""Detectors: the guilty are found, the honest who look like them are not, memory stays bounded."""

import random
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

import pytest

from antifraud.detectors.device_farm import DeviceFarm, DeviceFarmRules
from antifraud.detectors.first_seen import FirstSeen
from antifraud.detectors.recent import Recent
from antifraud.detectors.refund_loop import RefundLoop, RefundLoopRules
from antifraud.detectors.repeat_burst import RepeatBurst, RepeatBurstRules
from antifraud.finding import Detector, Finding
from antifraud.signals import ClaimSignal, RedeemSignal, RefundSignal, Signal
from kernel.clock import CITY_ZONE, to_ms

NOON_MS = to_ms(datetime(2020, 4, 23, 12, 0, tzinfo=CITY_ZONE))
MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS

_dice = random.Random(20200419)


def token() -> str:
    return _dice.randbytes(16).hex()


def people(count: int) -> list[str]:
    return [token() for _ in range(count)]


def device() -> str:
    return _dice.randbytes(8).hex()


def claim(person: str, on: str | None, at_ms: int, outcome: str = "GRANTED") -> ClaimSignal:
    return ClaimSignal(at_ms, person, on, 1, 1, outcome)


def redeem(person: str, at_ms: int, merchant_no: int = 7) -> RedeemSignal:
    return RedeemSignal(at_ms, _dice.getrandbits(40), person, merchant_no, 3, 9_000, 3_000, 9_000)


def refund(person: str, at_ms: int, merchant_no: int = 7) -> RefundSignal:
    return RefundSignal(at_ms, _dice.getrandbits(40), person, merchant_no, 3_000)


def hear(detector: Detector, signals: Iterable[Signal]) -> list[Finding]:
    return [finding for signal in signals for finding in detector.observe(signal)]


def names(findings: Iterable[Finding]) -> set[str]:
    return {finding.detector for finding in findings}


def jittered(signals: Sequence[Signal], by_ms: int) -> list[Signal]:
    """The same signals in the order in which they might arrive."""
    dice = random.Random(1)
    return sorted(signals, key=lambda one: one.at_ms + dice.randint(0, by_ms))


# ---------------------------------------------------------------- device farm: guilty


def a_farm(count: int = 30, gap_ms: int = 2_000, start_ms: int = NOON_MS) -> list[Signal]:
    phone = device()
    return [claim(who, phone, start_ms + i * gap_ms) for i, who in enumerate(people(count))]


def test_a_quick_farm_is_found_by_head_count_and_by_pace() -> None:
    findings = hear(DeviceFarm(), a_farm())
    assert names(findings) == {"DEVICE_PEOPLE", "DEVICE_PACE"}
    last = findings[-1]
    assert last.reason.value >= last.reason.threshold
    assert len(last.people) == 30
    assert "30" in next(one.reason.zh for one in reversed(findings) if one.detector == "DEVICE_PEOPLE")


def test_a_patient_farm_is_found_by_head_count_alone() -> None:
    assert names(hear(DeviceFarm(), a_farm(12, gap_ms=2 * HOUR_MS - 1))) == {"DEVICE_PEOPLE"}


def test_refused_tries_count_like_granted_ones() -> None:
    phone = device()
    tries = [claim(who, phone, NOON_MS + i * 9_000, "RULE_LIMIT") for i, who in enumerate(people(12))]
    assert "DEVICE_PEOPLE" in names(hear(DeviceFarm(), tries))


def test_the_same_people_on_two_farm_phones_are_a_ring() -> None:
    crowd, phones = people(12), (device(), device())
    tries = [claim(who, phone, NOON_MS + i * 9_000) for phone in phones for i, who in enumerate(crowd)]
    rings = [one for one in hear(DeviceFarm(), tries) if one.detector == "DEVICE_RING"]
    assert rings
    assert set(rings[-1].people) <= set(crowd)
    assert set(rings[-1].reason.evidence) == set(phones)


def test_one_person_less_than_the_threshold_is_not_flagged() -> None:
    rules = DeviceFarmRules()
    phone, crowd = device(), people(rules.people_min - 1)
    tries = [claim(who, phone, NOON_MS + i * MINUTE_MS) for i, who in enumerate(crowd * 3)]
    assert not hear(DeviceFarm(rules), tries)
    findings = hear(DeviceFarm(rules), [*tries, claim(token(), phone, NOON_MS + HOUR_MS)])
    assert [one.reason.value for one in findings] == [rules.people_min]


# ---------------------------------------------------------------- device farm: honest


@pytest.mark.parametrize("size", [1, 2, 4, 6])
def test_a_family_on_one_phone_is_not_flagged(size: int) -> None:
    phone, family = device(), people(size)
    rounds = range(4)
    tries = [
        claim(who, phone, NOON_MS + week * 7 * DAY_MS + i * 1_000)
        for week in rounds
        for i, who in enumerate(family * 5)
    ]
    assert not hear(DeviceFarm(), tries)


def test_relatives_on_two_phones_are_not_flagged() -> None:
    phones, clan = (device(), device()), people(8)
    tries = [claim(who, phone, NOON_MS + i * 15_000) for phone in phones for i, who in enumerate(clan)]
    assert not hear(DeviceFarm(), tries)


def test_a_campus_of_5000_phones_is_not_flagged() -> None:
    tries = [claim(who, device(), NOON_MS + i) for i, who in enumerate(people(5_000))]
    assert not hear(DeviceFarm(), tries)


def test_a_phone_handed_on_each_week_is_not_flagged() -> None:
    phone = device()
    tries = [claim(who, phone, NOON_MS + week * 7 * DAY_MS) for week, who in enumerate(people(15))]
    assert not hear(DeviceFarm(), tries)


def test_a_volunteer_who_helps_neighbours_is_never_more_than_asked_about() -> None:
    phone = device()
    tries = [claim(who, phone, NOON_MS + i * 4 * MINUTE_MS) for i, who in enumerate(people(12))]
    assert names(hear(DeviceFarm(), tries)) == {"DEVICE_PEOPLE"}


def test_a_young_clicker_with_20_tries_in_10_seconds_is_not_flagged() -> None:
    me, phone = token(), device()
    assert not hear(DeviceFarm(), [claim(me, phone, NOON_MS + i * 500) for i in range(20)])


def test_claims_without_a_device_say_nothing() -> None:
    assert not hear(DeviceFarm(), [claim(who, None, NOON_MS) for who in people(100)])


# ---------------------------------------------------------------- repeat burst: guilty


def daily(
    crowd: Sequence[str], each: int, days: int = 1, gap_ms: int = 5 * MINUTE_MS, start_ms: int = NOON_MS
) -> list[Signal]:
    """Every person redeems `each` times on each of `days` days."""
    return [
        redeem(who, start_ms + day * DAY_MS + i * gap_ms)
        for day in range(days)
        for i, who in enumerate(list(crowd) * each)
    ]


def test_cash_out_by_four_people_is_found_and_says_why() -> None:
    ring = people(4)
    findings = hear(RepeatBurst(), daily(ring, 6))
    assert names(findings) == {"REPEAT_BURST"}
    first = findings[0]
    assert first.subject == "7"
    assert set(first.people) == set(ring)
    assert first.reason.value == RepeatBurstRules().repeats_min
    assert first.reason.evidence
    assert first.since_ms == NOON_MS


def test_tier_sets_three_a_day_are_found_within_two_days() -> None:
    ring = people(4)
    days = [daily(ring, 3, start_ms=NOON_MS + day * DAY_MS) for day in range(6)]
    detector = RepeatBurst()
    assert not hear(detector, days[0])
    assert hear(detector, days[1])


def test_a_finding_is_said_again_only_when_it_has_doubled() -> None:
    assert [one.reason.value for one in hear(RepeatBurst(), daily(people(4), 15))] == [12, 24, 48]


# ---------------------------------------------------------------- repeat burst: honest


def test_a_canteens_regulars_are_not_flagged() -> None:
    assert not hear(RepeatBurst(), daily(people(40), 1, days=30, gap_ms=20_000))


def test_a_breakfast_shops_regulars_who_come_a_little_earlier_each_day_are_not_flagged() -> None:
    regulars = people(15)
    visits = [
        redeem(who, NOON_MS + day * (DAY_MS - 7 * MINUTE_MS) + i * MINUTE_MS)
        for day in range(30)
        for i, who in enumerate(regulars)
    ]
    assert not hear(RepeatBurst(), visits)


def test_a_grand_opening_and_a_coach_are_not_flagged() -> None:
    assert not hear(RepeatBurst(), daily(people(500), 1, gap_ms=2_000))
    assert not hear(RepeatBurst(), daily(people(45), 2, gap_ms=5_000))


def test_a_banquet_that_splits_its_bill_is_not_flagged() -> None:
    assert not hear(RepeatBurst(), daily(people(12), 3, gap_ms=10_000))
    assert not hear(RepeatBurst(), daily(people(30), 3, gap_ms=10_000))


def test_a_24_hour_shop_is_not_flagged_over_midnight() -> None:
    visits = [redeem(who, NOON_MS + i * 20 * MINUTE_MS) for i, who in enumerate(people(72) + people(72))]
    assert not hear(RepeatBurst(), visits)


def test_families_who_use_three_vouchers_at_dinner_in_a_busy_place_are_not_flagged() -> None:
    dinners = daily(people(30), 3, gap_ms=30_000)
    others = daily(people(60), 1, gap_ms=30_000)
    assert not hear(RepeatBurst(), sorted(dinners + others, key=lambda one: one.at_ms))


def test_a_customer_who_came_once_to_a_guilty_shop_is_not_named() -> None:
    passer_by, ring = token(), people(4)
    findings = hear(RepeatBurst(), [redeem(passer_by, NOON_MS - HOUR_MS), *daily(ring, 8)])
    assert findings
    assert all(passer_by not in one.people for one in findings)


# ---------------------------------------------------------------- refund loop


def cycles(person: str, count: int, gap_ms: int = 20 * MINUTE_MS) -> list[Signal]:
    times = range(NOON_MS, NOON_MS + 2 * count * gap_ms, gap_ms)
    return [(refund if i % 2 else redeem)(person, at_ms) for i, at_ms in enumerate(times)]


@pytest.mark.parametrize("count", [3, 5, 9])
def test_a_loop_of_three_cycles_or_more_is_found(count: int) -> None:
    me = token()
    findings = hear(RefundLoop(), cycles(me, count))
    assert [one.reason.value for one in findings] == list(range(3, count + 1))
    assert {(one.subject_kind, one.subject) for one in findings} == {("person", me)}


@pytest.mark.parametrize("count", [1, 2])
def test_genuine_returns_are_not_flagged(count: int) -> None:
    assert not hear(RefundLoop(), cycles(token(), count))


def test_one_return_of_many_bills_is_one_cycle() -> None:
    me = token()
    trip: list[Signal] = [redeem(me, NOON_MS + i * 1_000) for i in range(5)]
    back: list[Signal] = [refund(me, NOON_MS + HOUR_MS + i * 1_000) for i in range(5)]
    assert not hear(RefundLoop(), trip + back)


def test_three_returns_at_three_shops_or_on_three_days_are_not_flagged() -> None:
    me = token()
    shops = [make(me, NOON_MS + i * 1_000, i) for i in range(3) for make in (redeem, refund)]
    days = [make(me, NOON_MS + i * 13 * HOUR_MS) for i in range(6) for make in (redeem, refund)]
    assert not hear(RefundLoop(), shops)
    assert not hear(RefundLoop(), days)


def test_a_busy_service_desk_is_not_a_loop() -> None:
    desk = [make(who, NOON_MS + i * 1_000) for i, who in enumerate(people(50)) for make in (redeem, refund)]
    assert not hear(RefundLoop(), desk)


# ---------------------------------------------------------------- order, repetition, memory


@pytest.mark.parametrize(
    ("make", "signals"),
    [
        (DeviceFarm, a_farm(30)),
        (RepeatBurst, daily(people(5), 8, gap_ms=10_000)),
        (RefundLoop, cycles(token(), 4, gap_ms=20_000)),
    ],
    ids=["device_farm", "repeat_burst", "refund_loop"],
)
class TestArrival:
    """Signals come a little out of order and now and then twice."""

    def test_out_of_order_by_seconds_the_verdict_is_the_same(self, make: type[Detector], signals: list[Signal]) -> None:
        mixed = jittered(signals, 30_000)
        assert mixed != signals
        assert names(hear(make(), mixed)) == names(hear(make(), signals)) != set()

    def test_hearing_everything_twice_adds_nothing(self, make: type[Detector], signals: list[Signal]) -> None:
        once = hear(make(), signals)
        twice = hear(make(), [signal for signal in signals for _ in range(2)])
        assert [one.reason for one in twice] == [one.reason for one in once]

    def test_hearing_everything_again_from_the_start_finds_no_new_case(
        self, make: type[Detector], signals: list[Signal]
    ) -> None:
        detector = make()
        subjects = {(one.subject, one.detector) for one in hear(detector, signals)}
        assert {(one.subject, one.detector) for one in hear(detector, signals)} <= subjects


def test_honest_signals_heard_twice_stay_honest() -> None:
    regulars = daily(people(40), 1, days=7)
    assert not hear(RepeatBurst(), [signal for signal in regulars for _ in range(2)])
    returned = cycles(token(), 2)
    assert not hear(RefundLoop(), [signal for signal in returned for _ in range(3)])


def test_a_signal_from_a_wrong_clock_far_in_the_past_changes_nothing() -> None:
    long_ago = NOON_MS - 60 * DAY_MS
    ring = people(4)
    guilty = daily(ring, 6)
    detector = RepeatBurst()
    assert hear(detector, [*guilty[:10], redeem(ring[0], long_ago), *guilty[10:]])


def test_device_memory_is_bounded_and_a_crowd_outlives_a_rush() -> None:
    rules = DeviceFarmRules(devices_max=100, singles_slots=1 << 10)
    detector = DeviceFarm(rules)
    farm = a_farm(20, gap_ms=30_000)
    couples = [
        claim(who, phone, NOON_MS + 1 + i)
        for i, phone in enumerate(device() for _ in range(3_000))
        for who in people(2)
    ]
    hear(detector, farm[:7])
    hear(detector, couples)
    assert len(detector._shared) == 100
    assert "DEVICE_PEOPLE" in names(hear(detector, farm[7:]))


def test_one_devices_people_are_bounded() -> None:
    rules = DeviceFarmRules(people_max=16)
    findings = hear(DeviceFarm(rules), a_farm(500, gap_ms=100))
    assert max(len(one.people) for one in findings) == 16
    assert len(findings) < 30


def test_shop_memory_is_bounded() -> None:
    rules = RepeatBurstRules(merchants_max=50, people_max=8)
    detector = RepeatBurst(rules)
    for merchant_no in range(500):
        hear(detector, [redeem(who, NOON_MS, merchant_no) for who in people(20)])
    assert len(detector._shops) == 50
    shop = detector._shops.get(499)
    assert shop is not None
    assert [len(day.people) for day in shop.days.values()] == [8]
    hear(detector, [redeem(token(), NOON_MS + day * DAY_MS, 499) for day in range(60)])
    assert len(shop.days) == rules.days


def test_pair_memory_is_bounded() -> None:
    rules = RefundLoopRules(pairs_max=100, events_max=8)
    detector = RefundLoop(rules)
    me = token()
    hear(detector, cycles(me, 2))
    hear(detector, [redeem(who, NOON_MS) for who in people(1_000)])
    assert len(detector._pairs) == 100
    assert hear(detector, cycles(me, 3)), "a pair with refunds outlives those without"
    hear(detector, cycles(me, 50, gap_ms=1_000))
    pair = detector._pairs.get((me, 7))
    assert pair is not None
    assert len(pair.events) <= 8


def test_first_seen_takes_24_bytes_a_slot_whatever_comes() -> None:
    table = FirstSeen(1 << 8)
    for _ in range(10_000):
        table.other_than(device(), token(), NOON_MS)
    assert len(table._table) == 24 << 8
    phone, me = device(), token()
    assert table.other_than(phone, me, NOON_MS) is None
    assert table.other_than(phone, me, NOON_MS + 5_999) is None
    assert table.other_than(phone, token(), NOON_MS + HOUR_MS) == (me, NOON_MS + 5_000)


def test_recent_forgets_the_longest_untouched_and_spares_the_precious() -> None:
    kept: Recent[str, int] = Recent(3, lambda value: value > 9)
    for key, value in (("a", 10), ("b", 1), ("c", 2)):
        kept.put(key, value)
    kept.get("b")
    kept.put("d", 3)
    assert list(kept) == ["b", "d", "a"]


def test_business_days_not_24_hours_count_as_days() -> None:
    """Yesterday's late dinner and today's breakfast are two visits, not a repeat."""
    evening = to_ms(datetime(2020, 4, 23, 23, 30, tzinfo=CITY_ZONE))
    hour = timedelta(hours=1) // timedelta(milliseconds=1)
    visits = [redeem(who, evening + i * hour) for i in range(2) for who in people(20)]
    assert not hear(RepeatBurst(), visits)
