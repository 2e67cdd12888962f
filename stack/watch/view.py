"""What one look at the city sees. This is also the object that `--json` prints, so names carry their units."""

from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec


class StockLine(msgspec.Struct, kw_only=True):
    """One stock. `left` can be claimed now (None: the store does not hold its round), `issued` is in the books."""

    stock_id: str
    partner_id: str
    quantity: int
    left: int | None
    issued: int
    paused: bool


class RoundLine(msgspec.Struct, kw_only=True):
    """One round, `OPEN`, `NEXT` (it has not opened) or `OVER`, at most an hour ago."""

    campaign_id: str
    title_zh: str
    title_en: str
    round_no: int
    round_id: str
    state: str
    opens_at: datetime
    closes_at: datetime
    stocks: list[StockLine]


class Quantiles(msgspec.Struct, kw_only=True):
    """Of what happened since the look before; None when nothing did."""

    p50: float | None = None
    p99: float | None = None


class Claims(msgspec.Struct, kw_only=True):
    """Claims answered a second, all workers; `total` since they started. Over quota or turned away are requests
    that were not read, of one claim or of many."""

    per_s: float = 0
    granted_per_s: float = 0
    replayed_per_s: float = 0
    refused_per_s: Mapping[str, float] = {}
    from_memory_per_s: float = 0
    over_quota_per_s: float = 0
    turned_away_per_s: float = 0
    by_partner_per_s: Mapping[str, float] = {}
    total: float = 0
    last_minute_per_s: Sequence[float] = ()


class Coalescing(msgspec.Struct, kw_only=True):
    """How requests gather before the claim store."""

    waiting: float = 0
    mean_batch: float | None = None
    p99_batch: float | None = None
    calls_per_s: float = 0


class Draining(msgspec.Struct, kw_only=True):
    """From the log into the books. `oldest_s` None: not known."""

    log_entries: int | None = None
    oldest_s: float | None = None
    lag_s: float | None = None
    drained_per_s: float = 0


class Store(msgspec.Struct, kw_only=True):
    """One of the two stores. `answer_ms` None: it does not answer."""

    answer_ms: float | None = None
    connections: int | None = None
    operations_per_s: float | None = None
    memory_bytes: int | None = None


class Worker(msgspec.Struct, kw_only=True):
    """One process. `is_up`: its /metrics answered, or, for a store, it runs. `cpu_percent` of one core."""

    name: str
    service: str
    is_up: bool
    cpu_percent: float | None = None


class View(msgspec.Struct, kw_only=True):
    """One look. Times are the campaign's."""

    now: datetime
    next_opening: datetime | None
    rounds: list[RoundLine]
    claims: Claims
    http_ms: Quantiles
    store_ms: Quantiles
    coalescing: Coalescing
    draining: Draining
    postgres: Store
    valkey: Store
    workers: list[Worker]
    signals_dropped: float = 0
