"""Device farm: many people claiming from one device.

Three kinds of evidence, each a finding of its own family, because no single one is proof:

    DEVICE_PEOPLE  identity  far more people on the device within a day than a household has
    DEVICE_PACE    tempo     many of them within a minute: no hand signs out and in that fast
    DEVICE_RING    graph     the same people turn up together on several such devices

Honest: a family on one phone (up to six people), a volunteer who helps a dozen neighbours one after
the other, a phone handed on. Refused tries count like granted ones, for a farm whose fifth account
the gate refuses goes on trying. There is no network address here.
"""

from collections.abc import Iterable, Iterator
from typing import Annotated

import msgspec

from antifraud.detectors.first_seen import FirstSeen, Seen
from antifraud.detectors.recent import Recent
from antifraud.finding import EVIDENCE_MAX, Family, Finding, Reason, SubjectKind
from antifraud.signals import ClaimSignal, Signal

_Count = Annotated[int, msgspec.Meta(ge=2)]
_Points = Annotated[int, msgspec.Meta(ge=1, le=40)]


class DeviceFarmRules(msgspec.Struct, frozen=True, kw_only=True):
    """Thresholds. Counts are of different people on one device."""

    window_s: int = 86_400
    people_min: _Count = 10
    """Twice the gate's household and two more: three generations and the neighbours stay below."""
    people_points: _Points = 40
    pace_window_s: int = 60
    pace_people_min: _Count = 8
    """One person every 7.5 s, each with a sign-in of their own."""
    pace_points: _Points = 40
    ring_people_min: _Count = 5
    """So many people on two devices that are both over `people_min`."""
    ring_points: _Points = 40
    devices_max: int = 100_000
    """Devices with two people or more that are remembered."""
    people_max: int = 64
    """People remembered on one device; more change no verdict."""
    singles_slots: int = 1 << 21
    """Slots of 24 bytes for devices with one person."""


DEFAULT_RULES = DeviceFarmRules()


class _Device:
    """One device that several people use: when each was last seen, and what was said about it."""

    __slots__ = ("newest_ms", "people", "told")

    def __init__(self, first: Seen) -> None:
        self.people = {first.person: first.at_ms}
        self.newest_ms = first.at_ms
        self.told: dict[str, int] = {}

    def add(self, person: str, at_ms: int, rules: DeviceFarmRules) -> None:
        self.newest_ms = max(self.newest_ms, at_ms)
        if person in self.people or len(self.people) < rules.people_max:
            self.people[person] = max(at_ms, self.people.get(person, 0))
        floor_ms = self.newest_ms - rules.window_s * 1000
        if min(self.people.values()) <= floor_ms:
            self.people = {who: ms for who, ms in self.people.items() if ms > floor_ms}

    @property
    def count(self) -> int:
        return len(self.people)

    def pace(self, window_ms: int) -> int:
        """Most people whose last tries lie within one window."""
        times = sorted(self.people.values())
        start, best = 0, 0
        for end, at_ms in enumerate(times):
            while times[start] <= at_ms - window_ms:
                start += 1
            best = max(best, end - start + 1)
        return best

    def is_news(self, detector: str, count: int) -> bool:
        """Whether `count` is more than was said before."""
        if count <= self.told.get(detector, 0):
            return False
        self.told[detector] = count
        return True


class DeviceFarm:
    """Counts people per device. Keeps `devices_max` shared devices and a fixed table for the rest."""

    def __init__(self, rules: DeviceFarmRules = DEFAULT_RULES) -> None:
        self._rules = rules
        self._singles = FirstSeen(rules.singles_slots)
        self._shared: Recent[str, _Device] = Recent(
            rules.devices_max, lambda device: device.count > rules.people_min // 2
        )
        self._crowds_of: Recent[str, dict[str, int]] = Recent(rules.devices_max)

    @property
    def reach_s(self) -> int:
        return self._rules.window_s

    def observe(self, signal: Signal) -> Iterable[Finding]:
        """Findings about the device of this claim; nothing for other signals."""
        if not isinstance(signal, ClaimSignal) or signal.device is None:
            return ()
        device = self._shared.get(signal.device)
        if device is None:
            first = self._singles.other_than(signal.device, signal.person, signal.at_ms)
            if first is None:
                return ()
            device = _Device(first)
            self._shared.put(signal.device, device)
        device.add(signal.person, signal.at_ms, self._rules)
        if device.count < min(self._rules.people_min, self._rules.pace_people_min):
            device.told.clear()
            return ()
        return self._judge(signal.device, device)

    def _judge(self, name: str, device: _Device) -> Iterator[Finding]:
        rules = self._rules
        if device.count >= rules.people_min:
            if device.is_news("DEVICE_PEOPLE", device.count):
                yield _people_finding(name, device, rules)
            yield from self._judge_ring(name, device)
        pace = device.pace(rules.pace_window_s * 1000)
        if pace >= rules.pace_people_min and device.is_news("DEVICE_PACE", pace):
            yield _pace_finding(name, device, pace, rules)

    def _judge_ring(self, name: str, device: _Device) -> Iterator[Finding]:
        floor_ms = device.newest_ms - self._rules.window_s * 1000
        ring = [who for who in device.people if len(self._crowds(who, name, device, floor_ms)) > 1]
        if len(ring) >= self._rules.ring_people_min and device.is_news("DEVICE_RING", len(ring)):
            devices = sorted({crowd for who in ring for crowd in self._crowds_of.get(who) or ()})
            yield _ring_finding(name, device, ring, devices, self._rules)

    def _crowds(self, who: str, name: str, device: _Device, floor_ms: int) -> dict[str, int]:
        """The crowded devices on which a person was seen since `floor_ms`, this one included."""
        known = self._crowds_of.get(who) or {}
        recent = {crowd: ms for crowd, ms in known.items() if ms > floor_ms}
        recent[name] = device.people[who]
        self._crowds_of.put(who, recent)
        return recent


def _people_finding(name: str, device: _Device, rules: DeviceFarmRules) -> Finding:
    hours = rules.window_s // 3600
    reason = Reason(
        code="DEVICE_PEOPLE",
        value=device.count,
        threshold=rules.people_min,
        window_s=rules.window_s,
        evidence=_short(device.people),
        zh=f"{hours} 小时内有 {device.count} 个人在同一部设备上领券，远多于一家人。",
        en=f"{device.count} people claimed vouchers on one device within {hours} hours, many more than a household.",
    )
    return _finding(name, device, reason, device.people, family=Family.IDENTITY, points=rules.people_points)


def _pace_finding(name: str, device: _Device, pace: int, rules: DeviceFarmRules) -> Finding:
    reason = Reason(
        code="DEVICE_PACE",
        value=pace,
        threshold=rules.pace_people_min,
        window_s=rules.pace_window_s,
        evidence=_short(device.people),
        zh=f"{rules.pace_window_s} 秒内有 {pace} 个人在同一部设备上轮流领券，快过人手切换账号。",
        en=f"{pace} people claimed on one device within {rules.pace_window_s} seconds,"
        " faster than a hand can change accounts.",
    )
    return _finding(name, device, reason, device.people, family=Family.TEMPO, points=rules.pace_points)


def _ring_finding(name: str, device: _Device, ring: list[str], devices: list[str], rules: DeviceFarmRules) -> Finding:
    reason = Reason(
        code="DEVICE_RING",
        value=len(ring),
        threshold=rules.ring_people_min,
        window_s=rules.window_s,
        evidence=tuple(devices[:EVIDENCE_MAX]),
        zh=f"同样的 {len(ring)} 个人一起出现在 {len(devices)} 部多人共用的设备上。",
        en=f"The same {len(ring)} people appear together on {len(devices)} crowded devices.",
    )
    return _finding(name, device, reason, ring, family=Family.GRAPH, points=rules.ring_points)


def _finding(
    name: str, device: _Device, reason: Reason, people: Iterable[str], *, family: Family, points: int
) -> Finding:
    return Finding(
        subject_kind=SubjectKind.DEVICE,
        subject=name,
        detector=reason.code,
        family=family,
        points=points,
        reason=reason,
        people=tuple(people),
        since_ms=min(device.people.values()),
        at_ms=device.newest_ms,
    )


def _short(people: Iterable[str]) -> tuple[str, ...]:
    """The first 8 digits of some tokens: enough for an analyst to find the rows, useless elsewhere."""
    return tuple(sorted(who[:8] for who in people)[:EVIDENCE_MAX])
