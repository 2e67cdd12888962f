"""What an operator sees of the issuer at noon, as Prometheus metrics: seconds, counts, names as Prometheus wants them.

Counting a claim is one step in a dictionary (0.1 us); names and text are made when somebody looks. Labels come from
the installation (partners, stocks, shards) and from our own words for outcomes: nothing that a client sends becomes
a label.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from time import perf_counter
from typing import Any, TypeVar

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector
from redis.asyncio import Redis
from redis.exceptions import RedisError

from issuer import keys
from issuer.catalogue import Catalogue
from issuer.record import Claim
from issuer.stock import StockStore
from issuer.words import Told
from kernel.cluster import Cluster
from kernel.errors import Code, Refusal

GRANTED, REPLAYED, UNKNOWN = "GRANTED", "REPLAYED", "UNKNOWN"
"""Outcomes beside the codes of refusals. UNKNOWN: the store did not answer; the partner asks again."""
LOOK_EVERY_S = 1.0
SIGHT_BEFORE, SIGHT_AFTER = timedelta(minutes=10), timedelta(hours=1)
"""Stocks are shown so long before their round opens and after it closes, so that a scrape stays small."""

Answer = TypeVar("Answer")
Answers = TypeVar("Answers", bound=Sequence[Told | Refusal])

_partners: dict[int, str] = {}


class Tally(Collector):
    """A counter whose first label is a partner: a dictionary until somebody looks."""

    def __init__(self, name: str, words: str, *labels: str) -> None:
        self._about = name, words, ("partner", *labels)
        self.counts: defaultdict[tuple[int, ...] | tuple[int, str], int] = defaultdict(int)
        REGISTRY.register(self)

    def collect(self) -> Iterator[CounterMetricFamily]:
        name, words, labels = self._about
        family = CounterMetricFamily(name, words, labels=labels)
        for (partner_no, *others), count in list(self.counts.items()):
            family.add_metric([_partners.get(partner_no, str(partner_no)), *map(str, others)], count)
        yield family


_claims = Tally("hanquan_claims", "Claims answered, by partner and outcome", "outcome")
_from_memory = Tally("hanquan_claims_sold_out_from_memory", "Claims answered SOLD_OUT without asking the store")
_over_quota = Tally("hanquan_requests_over_quota", "Requests turned away because a partner's quota was used up")
_batch = Histogram(
    "hanquan_claim_batch_size",
    "Claims decided together",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
)
_store_seconds = Histogram(
    "hanquan_claim_store_seconds",
    "Time of one call of the claim store, its fsync included, in seconds",
    ("shard",),
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
_store_failures = Counter(
    "hanquan_claim_store_failures", "Calls of the claim store whose outcome is not known", ("shard",)
)
waiting = Gauge("hanquan_claims_waiting", "Claims waiting for their turn in this worker")
_left = Gauge("hanquan_stock_left_vouchers", "Vouchers of a stock that can still be claimed, all shards", ("stock",))
_quantity = Gauge(
    "hanquan_stock_quantity_vouchers", "Vouchers of a stock as planned, claimed ones included", ("stock",)
)
fetches = Counter(
    "hanquan_stock_fetches",
    "Times a shard that had run dry asked the others for vouchers, by what came of it",
    ("outcome",),
)
round_not_funded = Counter(
    "hanquan_round_not_funded_looks", "Looks at a round that stays shut because BUDGET cannot pay for it"
)
_drained = Counter("hanquan_drained_vouchers", "Vouchers carried into PostgreSQL", ("shard",))
_lag = Gauge("hanquan_drain_lag_seconds", "Age in seconds of the youngest voucher when it was committed", ("shard",))
_log_entries = Gauge("hanquan_log_entries", "Entries of a shard's log that wait for the drain", ("shard",))
_log_oldest = Gauge(
    "hanquan_log_oldest_seconds", "Age in seconds of the oldest entry that waits for the drain", ("shard",)
)


# ---------------------------------------------------------------- claims


def name_partners(names: Mapping[int, str]) -> None:
    """Under which name each partner is shown; one that is not named is shown by its number."""
    _partners.update(names)


async def counted(claims: Sequence[Claim], answered: Awaitable[Answers]) -> Answers:
    """Awaits the answers to a batch and counts what they say, and the size of the batch."""
    counts = _claims.counts
    try:
        answers = await answered
    except BaseException:  # of a cancelled call, too, nobody knows whether it was carried out
        for claim in claims:
            counts[claim.card.offer.partner_no, UNKNOWN] += 1
        raise
    _batch.observe(len(claims))
    for claim, answer in zip(claims, answers, strict=True):
        counts[claim.card.offer.partner_no, _outcome(answer)] += 1
    return answers


async def timed(shard: int, call: Awaitable[Answer]) -> Answer:
    """Awaits one call of a shard's claim store and says how long it took, or that it failed."""
    started = perf_counter()
    try:
        answer = await call
    except BaseException:
        _store_failures.labels(shard).inc()
        raise
    _store_seconds.labels(shard).observe(perf_counter() - started)
    return answer


def refused(partner_no: int, refusal: Refusal) -> None:
    """A claim that was refused without asking the store."""
    _claims.counts[partner_no, _outcome(refusal)] += 1


def overloaded(partner_no: int, count: int = 1) -> None:
    """Claims that found no room to wait in, or waited too long for their turn."""
    _claims.counts[partner_no, Code.SYSTEM_BUSY._value_] += count


def sold_out_from_memory(partner_no: int) -> None:
    """A claim that memory knew to be sold out. It is refused, too, and counted there as well."""
    _from_memory.counts[(partner_no,)] += 1


def over_quota(partner_no: int) -> None:
    """A request, of one claim or of many, that was turned away unread because its partner's quota is used up."""
    _over_quota.counts[(partner_no,)] += 1


def _outcome(answer: Told | Refusal) -> str:
    """The rule that forbade it, else the code. As bare text: an Enum's own hash is a call of Python code."""
    if isinstance(answer, Refusal):
        return answer.rule or answer.code._value_
    return REPLAYED if answer.replayed else GRANTED


# ---------------------------------------------------------------- stock


async def look_at_stock(store: StockStore, catalogue: Catalogue, now: datetime) -> None:
    """Sets what is left of every stock in sight: one small read a round and shard. Every worker sees all of it,
    so any worker's answer is the whole; take the maximum over workers, not the sum."""
    seen: dict[str, tuple[int, int]] = {}
    for round_ in catalogue.rounds.values():
        if round_.opens_at - SIGHT_BEFORE <= now < round_.closes_at + SIGHT_AFTER:
            left = await _left_of(store, catalogue, round_.round_no)
            seen |= {catalogue.stocks[no].stock_id: (catalogue.stocks[no].quantity, left[no]) for no in left}
    stocks_seen(seen)


def stocks_seen(seen: Mapping[str, tuple[int, int]]) -> None:
    """Quantity and what is left by stock, all shards; stocks that are not named are no longer shown."""
    _left.clear()
    _quantity.clear()
    for stock_id, (quantity, left) in seen.items():
        _quantity.labels(stock_id).set(quantity)
        _left.labels(stock_id).set(left)


async def _left_of(store: StockStore, catalogue: Catalogue, round_no: int) -> dict[int, int]:
    """By stock number, all shards; empty while no shard holds the round."""
    numbers = [stock.stock_no for stock in catalogue.stocks_of(round_no)]
    parts = [await store.left(shard, round_no, numbers) for shard in range(catalogue.shards)]
    known = [part for part in parts if part is not None]
    return {no: sum(part.get(no, 0) for part in known) for no in numbers} if known else {}


# ---------------------------------------------------------------- log and drain


def drained(shard: int, count: int, lag_s: float) -> None:
    """A chunk was committed; `lag_s` is the age of its youngest voucher."""
    _drained.labels(shard).inc(count)
    _lag.labels(shard).set(lag_s)


async def watch_logs(valkey: Redis, shards: int) -> None:
    """For ever: how long each shard's log is and how old its oldest entry. Looks by itself, so that it tells
    also while the drain is stuck; NaN while the store is away."""
    while True:
        for shard in range(shards):
            try:
                entries, oldest_s = await look_at_log(valkey, shard)
            except (RedisError, OSError):
                entries, oldest_s = float("nan"), float("nan")
            _log_entries.labels(shard).set(entries)
            _log_oldest.labels(shard).set(oldest_s)
        await asyncio.sleep(LOOK_EVERY_S)


async def look_at_log(valkey: Redis, shard: int) -> tuple[float, float]:
    """How many entries wait and how old the oldest is in seconds, by the clock of the node that numbered it."""
    key = keys.log_key(shard)
    first: Any = await valkey.xrange(key, count=1)
    if not first:
        return 0, 0
    node = await valkey.node_of(key) if isinstance(valkey, Cluster) else valkey
    seconds, micros = await node.time()
    numbered_ms = int(first[0][0].partition(b"-")[0])
    return await valkey.xlen(key), max(0.0, seconds + micros / 1e6 - numbered_ms / 1000)
