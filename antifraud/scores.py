"""Points, and what may follow from them.

A person's score is the sum over families of evidence, each family counted up to its cap, 0 to 100 in
all. Under 40 nothing happens; from 40 the person may be asked for more (step up); from 70 money is
held and somebody looks; from 90 claims are refused for at most 30 days and somebody looks, and only
when two families other than `network` speak. With the caps that takes three families, so that no
single kind of evidence, however loud, ever refuses anybody. For good, only a person refuses.

A merchant is never refused anything here: from 40 points its settlement lines are held, which stops
the money, disturbs nobody at the till, and is undone in full by a release.
"""

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from antifraud.detectors.recent import Recent
from antifraud.finding import Family, Finding, Reason

FAMILY_CAPS: Mapping[Family, int] = dict.fromkeys(Family, 40) | {Family.NETWORK: 20}
SCORE_MAX = 100
DAY_MS = 86_400_000


class Verdict(StrEnum):
    """What a score allows."""

    ALLOW = "ALLOW"
    STEP_UP = "STEP_UP"
    HOLD = "HOLD"
    BLOCK = "BLOCK"


class ScoreRules(msgspec.Struct, frozen=True, kw_only=True):
    """Thresholds in points, times in days."""

    step_up_min: int = 40
    hold_min: int = 70
    block_min: int = 90
    block_families_min: int = 2
    """Families other than `network` that must speak before anybody is blocked."""
    merchant_hold_min: int = 40
    evidence_days: int = 30
    penalty_days: int = 30
    people_max: int = 200_000


DEFAULT_RULES = ScoreRules()


class Block(msgspec.Struct, frozen=True):
    """A person whose claims are to be refused for a while. `since_ms`: time of the oldest evidence."""

    person: str
    points: int
    reasons: tuple[Reason, ...]
    since_ms: int


def score_of(points: Mapping[Family, int]) -> int:
    """Points of each family up to its cap, 0 to 100 in all."""
    return min(SCORE_MAX, sum(min(value, FAMILY_CAPS[family]) for family, value in points.items()))


def verdict_of(points: Mapping[Family, int], rules: ScoreRules = DEFAULT_RULES) -> Verdict:
    """What may follow from these points."""
    score = score_of(points)
    speaking = sum(family is not Family.NETWORK for family, value in points.items() if value > 0)
    if score >= rules.block_min and speaking >= rules.block_families_min:
        return Verdict.BLOCK
    if score >= rules.hold_min:
        return Verdict.HOLD
    return Verdict.STEP_UP if score >= rules.step_up_min else Verdict.ALLOW


class _Person:
    """The strongest finding of each family, and whether a block was asked for."""

    __slots__ = ("findings", "is_blocked")

    def __init__(self) -> None:
        self.findings: dict[Family, Finding] = {}
        self.is_blocked = False

    def add(self, finding: Finding, floor_ms: int) -> None:
        held = self.findings.get(finding.family)
        if held is None or held.points <= finding.points or held.at_ms < floor_ms:
            self.findings[finding.family] = finding
        self.findings = {family: one for family, one in self.findings.items() if one.at_ms >= floor_ms}

    @property
    def points(self) -> dict[Family, int]:
        return {family: one.points for family, one in self.findings.items()}


class Scores:
    """People's scores from the findings that name them; at most `people_max` of them."""

    def __init__(self, rules: ScoreRules = DEFAULT_RULES) -> None:
        self._rules = rules
        self._people: Recent[str, _Person] = Recent(rules.people_max, lambda one: len(one.findings) > 1)

    def add(self, finding: Finding) -> list[Block]:
        """Counts a finding for everybody it names. Says once who is to be blocked by now."""
        return [block for who in finding.people if (block := self._add(who, finding)) is not None]

    def points_of(self, person: str) -> dict[Family, int]:
        """A person's points by family."""
        held = self._people.get(person)
        return held.points if held else {}

    def _add(self, who: str, finding: Finding) -> Block | None:
        person = self._people.get(who)
        if person is None:
            person = _Person()
            self._people.put(who, person)
        person.add(finding, finding.at_ms - self._rules.evidence_days * DAY_MS)
        was_blocked = person.is_blocked
        person.is_blocked = verdict_of(person.points, self._rules) is Verdict.BLOCK
        if was_blocked or not person.is_blocked:
            return None
        findings = person.findings.values()
        reasons = tuple(one.reason for one in findings)
        return Block(who, score_of(person.points), reasons, min(one.since_ms for one in findings))
