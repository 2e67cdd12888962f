"""Metrics of the issuer: what each function counts, exactly."""

import asyncio
from collections.abc import Awaitable
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY, generate_latest

from issuer import metrics
from issuer.words import Told
from kernel.errors import Code, Refusal, StoreDown
from kernel.pool_metrics import PoolCollector
from stack.watch.exposition import Series, increase, parse, spread
from tests import stores

WANTED = frozenset(
    [
        "hanquan_claims_total",
        "hanquan_claims_sold_out_from_memory_total",
        "hanquan_requests_over_quota_total",
        "hanquan_claim_store_failures_total",
        *(f"hanquan_claim_{name}_{part}" for name in ("batch_size", "store_seconds") for part in ("bucket", "sum")),
    ]
)


def scrape() -> Series:
    return parse(generate_latest(REGISTRY).decode(), WANTED)


def grown(before: Series) -> dict[tuple[str, ...], float]:
    """What grew, without histograms, by short name and values of labels."""
    more = increase(before, scrape())
    return {
        (
            name.removeprefix("hanquan_").removesuffix("_total"),
            *(value for _, value in sorted(labels, reverse=True)),
        ): count
        for (name, labels), count in more.items()
        if count and name.endswith("_total")
    }


def claims_of(*partner_nos: int) -> Any:
    return [SimpleNamespace(card=SimpleNamespace(offer=SimpleNamespace(partner_no=no))) for no in partner_nos]


async def done(answer: Any) -> Any:
    return answer


async def broken() -> Any:
    raise StoreDown("gone")


async def test_a_batch_is_counted_by_partner_and_outcome() -> None:
    before = scrape()
    metrics.name_partners({901: "wechat-901"})
    granted, replayed = Told(b"", replayed=False), Told(b"", replayed=True)
    sold_out = Refusal(code=Code.SOLD_OUT, detail="")
    limited = Refusal(code=Code.RULE_LIMIT, detail="", rule="DEVICE_LIMIT")
    answers = [granted, granted, replayed, sold_out, limited, granted]
    told = await metrics.counted(claims_of(901, 901, 901, 901, 901, 902), metrics.timed(7, done(answers)))
    assert told is answers
    assert grown(before) == {
        ("claims", "wechat-901", "GRANTED"): 2,
        ("claims", "wechat-901", "REPLAYED"): 1,
        ("claims", "wechat-901", "SOLD_OUT"): 1,
        ("claims", "wechat-901", "DEVICE_LIMIT"): 1,
        ("claims", "902", "GRANTED"): 1,
    }
    more = increase(before, scrape())
    sizes = spread(more, "hanquan_claim_batch_size")
    assert (sizes.count, sizes.sum) == (1, 6)
    assert {bound for bound, count in sizes.counts.items() if count} == {10.0}
    assert spread(more, "hanquan_claim_store_seconds", lambda labels: labels["shard"] == "7").count == 1


@pytest.mark.parametrize("work", [broken(), asyncio.sleep(10)], ids=["failed", "cancelled"])
async def test_a_batch_that_nobody_knows_the_outcome_of(work: Awaitable[Any]) -> None:
    before = scrape()
    with pytest.raises((StoreDown, TimeoutError)):
        async with asyncio.timeout(0.05):
            await metrics.counted(claims_of(903, 903), metrics.timed(8, work))
    assert grown(before) == {("claims", "903", "UNKNOWN"): 2, ("claim_store_failures", "8"): 1}


def test_what_is_refused_without_the_store() -> None:
    before = scrape()
    metrics.refused(904, Refusal(code=Code.SOLD_OUT, detail="all gone"))
    metrics.sold_out_from_memory(904)
    metrics.refused(904, Refusal(code=Code.RULE_LIMIT, detail="", rule="GRANT_ONLY"))
    metrics.overloaded(904, 3)
    metrics.over_quota(904)
    assert grown(before) == {
        ("claims", "904", "SOLD_OUT"): 1,
        ("claims", "904", "GRANT_ONLY"): 1,
        ("claims", "904", "SYSTEM_BUSY"): 3,
        ("claims_sold_out_from_memory", "904"): 1,
        ("requests_over_quota", "904"): 1,
    }


def test_a_stock_that_is_out_of_sight_is_no_longer_told() -> None:
    metrics.stocks_seen({"a": (10, 4), "b": (5, 0)})
    metrics.stocks_seen({"b": (5, 1)})
    text = generate_latest(REGISTRY).decode()
    assert 'hanquan_stock_left_vouchers{stock="b"} 1.0' in text
    assert 'hanquan_stock_quantity_vouchers{stock="b"} 5.0' in text
    assert 'stock="a"' not in text
    metrics.stocks_seen({})


async def test_a_log_is_as_old_as_its_oldest_entry(valkey: stores.Valkey) -> None:
    assert await metrics.look_at_log(valkey.client, 0) == (0, 0)
    seconds, _ = await valkey.client.time()
    await valkey.client.xadd("{s0}:log", {b"w": b""}, id=f"{seconds * 1000 - 5_000}-0")
    await valkey.client.xadd("{s0}:log", {b"w": b""})
    entries, oldest_s = await metrics.look_at_log(valkey.client, 0)
    assert entries == 2
    assert 4 <= oldest_s < 60


async def test_the_log_is_not_known_while_the_store_is_away(valkey: stores.Valkey) -> None:
    def told() -> str:
        lines = generate_latest(REGISTRY).decode().splitlines()
        return next(line for line in lines if line.startswith('hanquan_log_entries{shard="0"}')).split()[1]

    watching = asyncio.create_task(metrics.watch_logs(valkey.client, 1))
    try:
        await asyncio.sleep(0.1)
        assert told() == "0.0"
        valkey.child.kill()
        async with asyncio.timeout(60):
            while told() != "NaN":
                await asyncio.sleep(0.05)
    finally:
        watching.cancel()


async def test_pools_are_seen_as_they_are(database: stores.Database) -> None:
    collector = PoolCollector()
    collector.add("one", database.pool)

    def told() -> dict[tuple[str, ...], float]:
        return {
            tuple(sample.labels.values()): sample.value for family in collector.collect() for sample in family.samples
        }

    idle = told()
    async with database.pool.acquire():
        busy = told()
    assert busy["one", "busy"] == idle["one", "busy"] + 1
    assert sum(busy.values()) >= 1


def test_no_metric_is_without_help_and_unit() -> None:
    units = {"seconds": "second", "bytes": "byte"}
    families = [family for family in REGISTRY.collect() if family.name.startswith("hanquan_")]
    assert len(families) > 15
    for family in families:
        assert len(family.documentation) > 10, family.name
        for ending, word in units.items():
            if family.name.endswith(f"_{ending}"):
                assert word in family.documentation.lower(), family.name
        assert not family.name.endswith(("_ms", "_count", "_info")), family.name
