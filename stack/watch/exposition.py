"""Reads the text that /metrics answers, as much of it as the watch wants, and the arithmetic on it.

A full parser of the format costs ten times as much; this one skips every line of a metric nobody asked for.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

Labels = tuple[tuple[str, str], ...]
Series = Mapping[tuple[str, Labels], float]
"""Value by name and labels."""
Keep = Callable[[Mapping[str, str]], bool]
"""Which labels are wanted."""

_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def everything(labels: Mapping[str, str]) -> bool:
    """Keeps all."""
    return True


def parse(text: str, wanted: frozenset[str]) -> Series:
    """The samples whose name is wanted, such as `hanquan_claims_total` or `hanquan_claim_batch_size_bucket`."""
    series: dict[tuple[str, Labels], float] = {}
    for line in text.splitlines():
        brace = line.find("{")
        name = line[: brace if brace >= 0 else line.find(" ")]
        if name in wanted:
            labels, _, value = line[len(name) :].rpartition("}") if brace >= 0 else ("", "", line[len(name) :])
            series[name, tuple(_LABEL.findall(labels))] = float(value.split()[0])
    return series


def increase(before: Series, now: Series) -> Series:
    """How much counters have grown. One that is smaller than before was reset by a restart, so all of it is new;
    one that was not there before began at zero."""
    return {what: value - old if value >= (old := before.get(what, 0.0)) else value for what, value in now.items()}


def added(parts: Iterable[Series]) -> Series:
    """Sums over processes."""
    sums: dict[tuple[str, Labels], float] = defaultdict(float)
    for part in parts:
        for what, value in part.items():
            sums[what] += value
    return dict(sums)


def pick(series: Series, name: str, keep: Keep = everything) -> Iterator[tuple[Mapping[str, str], float]]:
    """Labels and values of one metric."""
    for (found, labels), value in series.items():
        if found == name and keep(named := dict(labels)):
            yield named, value


def total(series: Series, name: str, keep: Keep = everything) -> float:
    """Sum over all labels that are kept."""
    return sum(value for _, value in pick(series, name, keep))


def by_label(series: Series, name: str, label: str) -> dict[str, float]:
    """Sums by one label, the largest first."""
    sums: dict[str, float] = defaultdict(float)
    for labels, value in pick(series, name):
        sums[labels.get(label, "")] += value
    return dict(sorted(sums.items(), key=lambda pair: -pair[1]))


class Spread(msgspec.Struct, frozen=True):
    """A histogram, or what was added to one: how many fell under each upper bound and over the one before."""

    counts: Mapping[float, float]
    sum: float

    @property
    def count(self) -> float:
        """How many values there are."""
        return sum(self.counts.values())

    @property
    def mean(self) -> float | None:
        """None without values."""
        return self.sum / self.count if self.count else None

    def quantile(self, share: float) -> float | None:
        """As Prometheus's histogram_quantile: linear within a bucket, because the true place in it is not known;
        above the last bound that bound, which then is a lower limit. None without values."""
        if not self.count:
            return None
        rank, below, floor = share * self.count, 0.0, 0.0
        for bound, count in self.counts.items():
            if bound == float("inf"):
                break
            if count and below + count >= rank:
                return floor + (bound - floor) * (rank - below) / count
            below, floor = below + count, bound
        return floor


def spread(series: Series, name: str, keep: Keep = everything) -> Spread:
    """The histogram `name`, summed over all labels that are kept."""
    cumulative: dict[float, float] = defaultdict(float)
    for labels, value in pick(series, f"{name}_bucket", keep):
        cumulative[float(labels["le"])] += value
    counts, below = {}, 0.0
    for bound in sorted(cumulative):
        counts[bound], below = cumulative[bound] - below, cumulative[bound]
    return Spread(counts, total(series, f"{name}_sum", keep))
