"""What an audit finds, as data."""

from datetime import datetime
from enum import StrEnum

import msgspec

SHOWN_MAX = 20
"""Violating rows that are named; the full count always stands beside them."""


class Verdict(StrEnum):
    """What became of a statement."""

    HOLDS = "HOLDS"
    BROKEN = "BROKEN"
    SKIPPED = "SKIPPED"


class StatementReport(msgspec.Struct, frozen=True, kw_only=True):
    """One statement about the city's books, and whether its rows bear it out."""

    id: str
    """Stable: scripts and tickets may name it."""
    sentence_en: str
    sentence_zh: str
    verdict: Verdict
    examined: int
    violations: int
    """All of them, also those not shown."""
    shown: tuple[str, ...]
    """At most SHOWN_MAX violating rows, each in words that find it."""
    remark_en: str | None
    remark_zh: str | None
    """Why it was skipped, or what was left out."""
    elapsed_ms: int


class AuditReport(msgspec.Struct, frozen=True, kw_only=True):
    """A whole audit. Every statement speaks of the same moment of the database."""

    taken_at: datetime
    """When the snapshot was taken, by the database's clock."""
    statements: tuple[StatementReport, ...]
    elapsed_s: float

    @property
    def violations(self) -> int:
        """Violating rows over all statements."""
        return sum(statement.violations for statement in self.statements)

    @property
    def examined(self) -> int:
        """Rows examined over all statements; a row counts once for each that looked at it."""
        return sum(statement.examined for statement in self.statements)

    @property
    def broken(self) -> tuple[str, ...]:
        """Ids of the statements that do not hold."""
        return tuple(s.id for s in self.statements if s.verdict is Verdict.BROKEN)

    @property
    def holds(self) -> bool:
        """Whether no statement is broken."""
        return not self.broken
