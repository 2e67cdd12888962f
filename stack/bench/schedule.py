"""Arrivals on an open schedule, and latencies that hide no stall.

An open schedule says beforehand when each request is due; latency counts from then on. Where the next
request waits for the answer before it (a closed loop), a server that stalls for a second delays one
request a connection, and the hundreds that would have come meanwhile are never counted.
"""

from collections.abc import Sequence
from random import Random

import msgspec


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Half of the requests, 99 in 100, and all of them were answered within so many ms."""

    p50_ms: float
    p99_ms: float
    max_ms: float


def arrivals(rate_per_s: float, count: int, seed: int) -> list[float]:
    """When each of `count` requests is due, s after the start, ascending: independent people at that rate (Poisson)."""
    random, due_s, now_s = Random(seed), [], 0.0
    for _ in range(count):
        now_s += random.expovariate(rate_per_s)
        due_s.append(now_s)
    return due_s


def rank(ascending: Sequence[float], share: float) -> float:
    """The smallest figure that at least `share` of all do not exceed (nearest rank). IndexError for none."""
    at = -(-len(ascending) * round(share * 10_000) // 10_000)
    return ascending[max(at, 1) - 1]


def latency(waits_s: Sequence[float]) -> Latency:
    """Of waits in seconds; all zero when there are none."""
    ascending = sorted(waits_s) or [0.0]
    return Latency(
        p50_ms=round(rank(ascending, 0.50) * 1000, 3),
        p99_ms=round(rank(ascending, 0.99) * 1000, 3),
        max_ms=round(ascending[-1] * 1000, 3),
    )


def median(figures: Sequence[float]) -> float:
    """The middle one, or the mean of both middle ones: what one noisy stretch cannot move far."""
    ascending, half = sorted(figures), len(figures) // 2
    return ascending[half] if len(ascending) % 2 else (ascending[half - 1] + ascending[half]) / 2
