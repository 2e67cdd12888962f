"""The judge: signals in, cases out. Knows no store and no clock; the same signals give the same cases."""

from collections.abc import Iterable, Sequence

import msgspec

from antifraud.finding import Finding
from antifraud.rules import RuleSet, make_detectors
from antifraud.scores import Block, Scores
from antifraud.signals import Signal


class Cases(msgspec.Struct, frozen=True):
    """What follows from a batch of signals: the latest finding of each subject and detector, and blocks."""

    findings: Sequence[Finding] = ()
    blocks: Sequence[Block] = ()

    def __bool__(self) -> bool:
        return bool(self.findings or self.blocks)


class Judge:
    """All detectors and the scores. What it remembers is bounded by the rules' *_max."""

    def __init__(self, rules: RuleSet) -> None:
        self._rule_set = rules.name()
        self._detectors = make_detectors(rules)
        self._scores = Scores(rules.scores)

    @property
    def reach_s(self) -> int:
        """How far back a signal still matters to any detector."""
        return max(detector.reach_s for detector in self._detectors)

    def hear(self, signals: Iterable[Signal]) -> Cases:
        """Shows the signals to every detector. A finding of many people is scored for each of them."""
        findings: dict[tuple[str, str], Finding] = {}
        blocks: list[Block] = []
        for finding in self._findings(signals):
            findings[finding.subject, finding.detector] = finding
            blocks += self._scores.add(finding)
        return Cases(list(findings.values()), blocks)

    def _findings(self, signals: Iterable[Signal]) -> Iterable[Finding]:
        for signal in signals:
            for detector in self._detectors:
                for finding in detector.observe(signal):
                    reason = msgspec.structs.replace(finding.reason, rule_set=self._rule_set)
                    yield msgspec.structs.replace(finding, reason=reason)
