"""One measured stretch of a bench: how much was done, in what time, at whose cost."""

from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

from stack.bench.cpu import cpu_s
from stack.bench.generator import Told
from stack.bench.schedule import Latency, median
from stack.bench.script import Filled

Pids = Mapping[str, Sequence[int]]
"""Processes by the name under which their cost is told."""
Tell = Callable[[str], None]
"""Says on the terminal what goes on."""


class Phase(msgspec.Struct, kw_only=True, omit_defaults=True):
    """`cpu_us` per item and process; `busy`: what share of a processor each process had."""

    name: str
    items: int
    seconds: float
    rate_per_s: float
    cpu_us: dict[str, float]
    busy: dict[str, float]
    latency: Latency | None = None
    refused: dict[str, int] = {}

    @property
    def cpu_us_total(self) -> float:
        """Of all the processes."""
        return sum(self.cpu_us.values())


async def measured(name: str, pids: Pids, work: Callable[[], Awaitable[Told | Filled]]) -> Phase:
    """Does the work and says what it cost. StackError when a process ended over it."""
    before = {who: cpu_s(each) for who, each in pids.items()}
    done = await work()
    cost_s = {who: cpu_s(each) - before[who] for who, each in pids.items()}
    return Phase(
        name=name,
        items=done.wins,
        seconds=round(done.seconds, 3),
        rate_per_s=round(done.wins / done.seconds, 1),
        cpu_us={who: round(cost * 1e6 / max(done.wins, 1), 2) for who, cost in cost_s.items()},
        busy={who: round(cost / done.seconds, 2) for who, cost in cost_s.items()},
        latency=done.latency if isinstance(done, Told) else None,
        refused=done.refused,
    )


class Course:
    """The phases of a bench, in order."""

    def __init__(self) -> None:
        self.phases: list[Phase] = []

    def add(self, phase: Phase) -> Phase:
        """Takes in a phase."""
        self.phases.append(phase)
        return phase

    def named(self, name: str) -> list[Phase]:
        """All phases of a name, in order."""
        return [phase for phase in self.phases if phase.name == name]

    def rate(self, name: str) -> float:
        """Median rate of the phases of a name."""
        return median([phase.rate_per_s for phase in self.named(name)])

    def cpu_us(self, name: str, who: str) -> float:
        """Median cost of a process in the phases of a name."""
        return round(median([phase.cpu_us.get(who, 0.0) for phase in self.named(name)]), 2)

    def grown(self, first: str, last: str, who: Sequence[str]) -> float:
        """Cost of the processes in the phases named `last`, as a multiple of `first`; 0 if there are none."""
        if not (self.named(first) and self.named(last)):
            return 0.0
        before, after = (sum(self.cpu_us(name, each) for each in who) for name in (first, last))
        return after / before if before else 0.0

    def latency(self, name: str) -> Latency:
        """Medians of the latencies of the phases of a name."""
        each = [phase.latency for phase in self.named(name) if phase.latency]
        p50_ms, p99_ms = median([one.p50_ms for one in each]), median([one.p99_ms for one in each])
        return Latency(p50_ms=p50_ms, p99_ms=p99_ms, max_ms=max(one.max_ms for one in each))

    def wrong(self) -> list[str]:
        """Everything that was no win. People are new and vouchers are enough, so all should have won."""
        return [
            f"{phase.name}, phase {place}: {count:,} times {code}"
            for place, phase in enumerate(self.phases, start=1)
            for code, count in phase.refused.items()
        ]


def flatness(phases: Sequence[Phase], who: Sequence[str] = ("issuer", "valkey")) -> float:
    """What claims cost of processor time in the last third of the phases, as a multiple of the first third; medians."""
    third = max(len(phases) // 3, 1)
    costs = [sum(phase.cpu_us.get(each, 0.0) for each in who) for phase in phases]
    first, last = median(costs[:third]), median(costs[-third:])
    return round(last / first, 3) if first else 0.0
