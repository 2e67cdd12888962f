"""A histogram of latencies: bounded memory, 1 % wide buckets, the largest value exact."""

import math
from collections import Counter
from collections.abc import Mapping

GROWTH = math.log(1.01)
LEAST_MS = 0.01


class Histogram:
    """Counts latencies in ms."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self.max_ms = 0.0

    def add(self, ms: float) -> None:
        """Counts one."""
        self._counts[math.ceil(math.log(max(ms, LEAST_MS)) / GROWTH)] += 1
        self.max_ms = max(self.max_ms, ms)

    @property
    def count(self) -> int:
        """How many were counted."""
        return self._counts.total()

    def quantile_ms(self, share: float) -> float:
        """The latency that `share` of all stayed within, at most 1 % too high; 0 when nothing was counted."""
        wanted, seen = share * self.count, 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if seen >= wanted:
                return min(math.exp(bucket * GROWTH), self.max_ms)
        return 0.0

    def merge(self, sent: Mapping[str, float]) -> None:
        """Adds what `to_send` of another process answered."""
        for bucket, count in sent.items():
            if bucket == "max_ms":
                self.max_ms = max(self.max_ms, count)
            else:
                self._counts[int(bucket)] += int(count)

    def to_send(self) -> dict[str, float]:
        """The whole of it in plain types."""
        return {**{str(bucket): count for bucket, count in self._counts.items()}, "max_ms": self.max_ms}

    def summary_ms(self) -> dict[str, float]:
        """p50, p99 and max, rounded to 0.1 ms."""
        return {
            "p50": round(self.quantile_ms(0.5), 1),
            "p99": round(self.quantile_ms(0.99), 1),
            "max": round(self.max_ms, 1),
        }
