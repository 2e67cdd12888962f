"""What a detector says: a finding, with a reason that a citizen can read."""

from collections.abc import Iterable
from enum import StrEnum
from typing import Protocol

import msgspec

from antifraud.signals import Signal

EVIDENCE_MAX = 20
"""A reason shows this many pieces of evidence at most; the value beside it is the full count."""


class SubjectKind(StrEnum):
    """Who or what is flagged."""

    PERSON = "person"
    DEVICE = "device"
    MERCHANT = "merchant"


class Family(StrEnum):
    """Kinds of evidence. Points of one family never add up beyond its cap (antifraud/scores.py)."""

    IDENTITY = "identity"
    TEMPO = "tempo"
    NETWORK = "network"
    MERCHANT = "merchant"
    GRAPH = "graph"
    REFUND = "refund"


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """Why, in numbers and in words.

    code       stable name of what was seen
    value      what was counted, against `threshold`, within `window_s` seconds of campaign time
    evidence   at most EVIDENCE_MAX voucher numbers, digests of devices or names of other findings
    rule_set   hash of all thresholds in force (antifraud/rules.py); filled in by the judge
    zh, en     one or two sentences for the person it concerns; they name no other person
    """

    code: str
    value: int
    threshold: int
    window_s: int
    evidence: tuple[str, ...]
    zh: str
    en: str
    rule_set: str = ""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A detector's word on one subject.

    subject     person: token, 32 hex digits; device: digest, 16 hex digits; merchant: merchant_no
    detector    stable name; with the subject it names the case, of which one is open at a time
    people      tokens of those whose own score these points go to
    since_ms    campaign time of the oldest evidence
    at_ms       campaign time of the newest
    """

    subject_kind: SubjectKind
    subject: str
    detector: str
    family: Family
    points: int
    reason: Reason
    people: tuple[str, ...]
    since_ms: int
    at_ms: int


class Detector(Protocol):
    """Watches signals and says when they look wrong.

    Signals come almost, not quite, in the order of their time, and now and then twice; a detector
    gives the same verdict all the same. It remembers a bounded number of things, whatever comes.
    """

    @property
    def reach_s(self) -> int:
        """How far back, in campaign time, a signal still matters."""
        ...

    def observe(self, signal: Signal) -> Iterable[Finding]:
        """Takes one signal in. Says the same finding again when there is more to it."""
        ...
