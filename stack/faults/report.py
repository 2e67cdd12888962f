"""What was injected and what came of it: for people a table, for programs one JSON object."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Self

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

RECOVERY_MAX_S = 10.0
SHOWN_MAX = 20


class Recovery(msgspec.Struct, kw_only=True):
    """Recoveries after one kind of fault."""

    p50_s: float
    max_s: float


class Report(msgspec.Struct, kw_only=True):
    """A whole drill. `holds` is what counts.

    faults      how often each took effect; `missed` how often one did not
    acknowledged   what clients were told was done: claims won, or redemptions and refunds
    lost        of these, what the books do not hold as told
    doubled     what the books hold twice: a number, a person with two vouchers, a voucher used twice
    violations  everything that may not be, these two among it
    outcomes    answers by code; UNKNOWN where none came
    """

    faults: dict[str, int] = msgspec.field(default_factory=dict)
    missed: dict[str, int] = msgspec.field(default_factory=dict)
    acknowledged: int = 0
    lost: int = 0
    doubled: int = 0
    recovery_s_p50: float = 0.0
    recovery_s_max: float = 0.0
    violations: int = 0
    seed: int = 0
    rounds: int = 0
    elapsed_s: float = 0.0
    recovery_by_fault: dict[str, Recovery] = msgspec.field(default_factory=dict)
    outcomes: dict[str, int] = msgspec.field(default_factory=dict)
    slowest_answer_s: float = 0.0
    examined: int = 0
    wrong: list[str] = msgspec.field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Nothing lost, nothing doubled, nothing that may not be, and every recovery in time."""
        return not (self.lost or self.doubled or self.violations) and self.recovery_s_max <= RECOVERY_MAX_S

    def add(self, *what: str, count: int | None = None) -> None:
        """Counts violations (as many as are named, unless told) and shows the first."""
        self.violations += len(what) if count is None else count
        self.wrong += what[: SHOWN_MAX - len(self.wrong)]

    def count_fault(self, name: str, took_effect: bool) -> None:
        """Counts one injection."""
        counts = self.faults if took_effect else self.missed
        counts[name] = counts.get(name, 0) + 1

    def over(self, seed: int, rounds: int, elapsed_s: float) -> Self:
        """The report of a drill that has ended."""
        self.seed, self.rounds, self.elapsed_s = seed, rounds, round(elapsed_s, 1)
        return self

    def note_recovery(self, by_fault: Mapping[str, Sequence[float]], rounds_s: Sequence[float]) -> None:
        """Sums up recoveries: by fault, and of all rounds."""
        self.recovery_s_p50 = round(median(rounds_s), 3)
        self.recovery_s_max = max(rounds_s)
        self.recovery_by_fault = {
            name: Recovery(p50_s=round(median(all_s), 3), max_s=max(all_s)) for name, all_s in by_fault.items()
        }


def render(report: Report) -> RenderableType:
    """An aligned table, and under it what is wrong."""
    table = Table(box=None, pad_edge=False)
    table.add_column("fault")
    for head in ("injected", "recovery p50, s", "max, s"):
        table.add_column(head, justify="right")
    for name, count in report.faults.items():
        recovery = report.recovery_by_fault.get(name)
        told = (f"{recovery.p50_s:.2f}", f"{recovery.max_s:.2f}") if recovery else ("", "")
        table.add_row(name.replace("_", " "), f"{count:,}", *told)
    table.add_row("all", f"{report.rounds:,} rounds", f"{report.recovery_s_p50:.2f}", f"{report.recovery_s_max:.2f}")
    unknown = sum(report.outcomes.get(code, 0) for code in ("UNKNOWN", "SYSTEM_BUSY"))
    sums = Text(
        f"\n{report.acknowledged:,} acknowledged, {report.lost:,} lost, {report.doubled:,} doubled, "
        f"{report.violations:,} violations; {unknown:,} answers left a client unsure; "
        f"{report.examined:,} rows and records examined; seed {report.seed}, {report.elapsed_s:,.0f} s",
        style="green" if report.holds else "bold red",
    )
    return Group(table, sums, *(Text(f"wrong: {what}", style="red") for what in report.wrong))
