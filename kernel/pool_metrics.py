"""How full the PostgreSQL pools of this process are. Nothing is counted on the way: a scrape looks."""

from collections import Counter
from collections.abc import Iterator
from typing import Protocol

from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector


class Sized(Protocol):
    """The part of asyncpg's pool that is looked at."""

    def get_size(self) -> int: ...

    def get_idle_size(self) -> int: ...

    def is_closing(self) -> bool: ...


class PoolCollector(Collector):
    """Connections by pool and state. Pools that were closed are forgotten; pools of one name add up."""

    def __init__(self) -> None:
        self._pools: list[tuple[str, Sized]] = []

    def add(self, name: str, pool: Sized) -> None:
        """From now on the pool is seen under this name."""
        self._pools = [*self._open(), (name, pool)]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        self._pools = self._open()
        counts = Counter[tuple[str, str]]()
        for name, pool in self._pools:
            counts[name, "busy"] += pool.get_size() - pool.get_idle_size()
            counts[name, "idle"] += pool.get_idle_size()
        family = GaugeMetricFamily(
            "hanquan_postgres_connections", "Connections of a PostgreSQL pool, by state", labels=("pool", "state")
        )
        for labels, count in counts.items():
            family.add_metric(labels, count)
        yield family

    def _open(self) -> list[tuple[str, Sized]]:
        return [(name, pool) for name, pool in self._pools if not pool.is_closing()]


pools = PoolCollector()
REGISTRY.register(pools)
