"""The watch's arithmetic, and its frames as a terminal of 80 columns and 24 lines shows them."""

import os
from datetime import datetime, timedelta
from io import StringIO
from time import monotonic

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from rich.cells import cell_len
from rich.console import Console

from kernel.clock import CITY_ZONE
from stack.watch.exposition import Series, Spread, added, by_label, increase, parse, spread, total
from stack.watch.frame import bar, clock, render, sparkline
from stack.watch.look import service_of
from stack.watch.machine import CpuMeter
from stack.watch.view import (
    Claims,
    Coalescing,
    Draining,
    Quantiles,
    RoundLine,
    StockLine,
    Store,
    View,
    Worker,
)

NOON = datetime(2020, 4, 23, 12, tzinfo=CITY_ZONE)


# ---------------------------------------------------------------- what /metrics says


def scraped(registry: CollectorRegistry, *wanted: str) -> Series:
    return parse(generate_latest(registry).decode(), frozenset(wanted))


def test_only_what_is_wanted_is_read_as_it_was_told() -> None:
    registry = CollectorRegistry()
    counter = Counter("asked", "Help with a } and a #", ("who", "why"), registry=registry)
    counter.labels('a "quoted" }\\ name', "x y").inc(3)
    counter.labels("b", "x y").inc(2.5)
    Gauge("away", "Nothing", registry=registry).set(float("nan"))
    Gauge("plain", "One", registry=registry).set(-1e-3)
    series = scraped(registry, "asked_total", "plain", "away")
    assert total(series, "asked_total") == 5.5
    assert by_label(series, "asked_total", "who") == {'a \\"quoted\\" }\\\\ name': 3.0, "b": 2.5}
    assert total(series, "plain") == -0.001
    assert {name for name, _ in series} == {"asked_total", "plain", "away"}
    assert "asked_created" not in {name for name, _ in series}


def test_a_counter_that_fell_was_reset_and_one_that_is_new_began_at_zero() -> None:
    before: Series = {("a", ()): 10.0, ("b", ()): 10.0}
    now: Series = {("a", ()): 13.0, ("b", ()): 4.0, ("c", ()): 5.0}
    assert increase(before, now) == {("a", ()): 3.0, ("b", ()): 4.0, ("c", ()): 5.0}
    assert added([now, now])["b", ()] == 8.0


def test_quantiles_of_what_was_added_to_a_histogram() -> None:
    registry = CollectorRegistry()
    histogram = Histogram("took", "s", ("route",), buckets=(1, 2, 4), registry=registry)
    wanted = ("took_bucket", "took_sum", "took_count")
    for _ in range(1_000):
        histogram.labels("/v1/claims").observe(3)  # all before the look, and none of it may count
    before = scraped(registry, *wanted)
    for value in [0.5] * 50 + [1.5] * 40 + [3] * 9 + [100]:
        histogram.labels("/v1/claims").observe(value)
    histogram.labels("/metrics").observe(100)
    found = spread(
        increase(before, scraped(registry, *wanted)), "took", lambda labels: labels["route"].startswith("/v1")
    )
    assert found.counts == {1: 50, 2: 40, 4: 9, float("inf"): 1}
    assert found.count == 100
    assert found.mean == pytest.approx((25 + 60 + 27 + 100) / 100)
    assert found.quantile(0.25) == 0.5  # half of the first bucket
    assert found.quantile(0.5) == 1.0
    assert found.quantile(0.7) == 1.5  # 20 of the 40 between 1 and 2
    assert found.quantile(0.99) == 4.0
    assert found.quantile(0.999) == 4.0  # above the last bound: a lower limit


def test_of_nothing_there_is_no_quantile() -> None:
    assert Spread({}, 0).quantile(0.5) is None
    assert Spread({1: 0, float("inf"): 0}, 0).quantile(0.5) is None
    assert Spread({1: 0}, 0).mean is None
    assert Spread({float("inf"): 3}, 9).quantile(0.5) == 0.0


def test_a_busy_process_is_seen_as_busy() -> None:
    meter, me = CpuMeter(), [os.getpid(), 2**22 + 1]
    assert meter.look(me) == {}
    deadline = monotonic() + 0.2
    while monotonic() < deadline:
        pass
    [share] = meter.look(me).values()
    assert 10 < share <= 150


@pytest.mark.parametrize(("name", "service"), [("issuer", "issuer"), ("issuer-2", "issuer"), ("valkey-3", "valkey")])
def test_workers_are_counted_by_service(name: str, service: str) -> None:
    assert service_of(name) == service


# ---------------------------------------------------------------- frames


def stock(name: str, quantity: int, left: int | None, issued: int = 0, *, paused: bool = False) -> StockLine:
    return StockLine(stock_id=name, partner_id="wechat", quantity=quantity, left=left, issued=issued, paused=paused)


def round_line(round_id: str, opens_at: datetime, state: str, stocks: list[StockLine]) -> RoundLine:
    return RoundLine(
        campaign_id="wuhan-2020",
        title_zh="武汉消费券",
        title_en="Wuhan vouchers",
        round_no=1,
        round_id=round_id,
        state=state,
        opens_at=opens_at,
        closes_at=opens_at + timedelta(hours=8),
        stocks=stocks,
    )


def a_view(stocks: int = 4, rounds: int = 1) -> View:
    lines = [stock(f"wuhan-2020_r02_wechat_{i}", 20_000, 14_211 - i, 5_789) for i in range(stocks)]
    open_rounds = [round_line("r02", NOON, "OPEN", lines) for _ in range(rounds)]
    return View(
        now=NOON + timedelta(seconds=7),
        next_opening=NOON + timedelta(days=7),
        rounds=[*open_rounds, round_line("r03", NOON + timedelta(days=7), "NEXT", [stock("x", 10, None)])],
        claims=Claims(
            per_s=4_812.4,
            granted_per_s=1_210,
            replayed_per_s=3,
            refused_per_s={"SOLD_OUT": 3_000, "USER_ALREADY_CLAIMED": 500, "DEVICE_LIMIT": 99, "SYSTEM_BUSY": 1},
            total=93_000,
            last_minute_per_s=[i * 80.0 for i in range(60)],
        ),
        http_ms=Quantiles(p50=4.1, p99=220.4),
        store_ms=Quantiles(p50=1.25),
        coalescing=Coalescing(waiting=12, mean_batch=41.2, p99_batch=180, calls_per_s=117),
        draining=Draining(log_entries=1_210, oldest_s=0.31, lag_s=0.2, drained_per_s=1_180),
        postgres=Store(answer_ms=0.4, connections=14, operations_per_s=812),
        valkey=Store(answer_ms=0.2, connections=70, operations_per_s=8_120, memory_bytes=34_100_000),
        workers=[
            Worker(name="issuer-1", service="issuer", is_up=True, cpu_percent=62),
            Worker(name="issuer-2", service="issuer", is_up=False),
            Worker(name="drain", service="drain", is_up=True, cpu_percent=30),
        ],
    )


def frame(view: View, width: int = 80, height: int = 24) -> list[str]:
    console = Console(file=StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(render(view, width, height))
    return capture.get().rstrip("\n").split("\n")


@pytest.mark.parametrize(("stocks", "rounds"), [(0, 0), (4, 1), (7, 1), (8, 1), (300, 1), (12, 5), (3, 40)])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 60), (60, 20)])
def test_a_frame_fits(stocks: int, rounds: int, width: int, height: int) -> None:
    lines = frame(a_view(stocks, rounds), width, height)
    assert len(lines) <= height
    assert max(cell_len(line) for line in lines) <= width


def test_a_frame_says_what_an_operator_asks_first() -> None:
    text = "\n".join(lines := frame(a_view()))
    for words in (
        "2020-04-23 12:00:07",
        "next round in 6 d 23:59:53",
        "4,812   granted 1,210   replayed 3   refused 3,600   93,000 so far",
        "SOLD_OUT 3,000   USER_ALREADY_CLAIMED 500",
        "p50 4.1 ms  p99 220 ms   claim store p50 1.2 ms  p99 -",
        "41.2 claims on average   p99 180.0   117 calls/s   12 waiting",
        "1,210 entries   oldest 0.3 s   drained 1,180/s   lag 0.2 s",
        "PostgreSQL 0.4 ms  812/s   Valkey 0.2 ms  34 MB  8,120/s",
        "issuer 1/2   drain 1/1",
        "issuer-1 62   drain 30",
        "武汉消费券 r02  OPEN, closes in 7:59:53",
        "武汉消费券 r03  opens in 6 d 23:59:53",
    ):
        assert words in text, words
    rows = [line for line in lines if "wechat_" in line]
    assert [line.split()[:4] for line in rows[:1]] == [["wechat_0", "20,000", "14,211", "5,789"]]
    assert len({cell_len(line.rstrip()) for line in rows}) == 1


def test_rows_that_do_not_fit_are_added_up() -> None:
    lines = frame(a_view(300))
    [more] = [line for line in lines if " more" in line]
    shown = sum("wechat_" in line for line in lines)
    assert more.split()[:3] == [str(300 - shown), "more", f"{(300 - shown) * 20_000:,}"]
    assert shown > 3


def test_what_is_away_is_said() -> None:
    view = a_view()
    view.postgres, view.valkey, view.draining, view.rounds = Store(), Store(), Draining(), []
    view.claims, view.http_ms, view.store_ms, view.coalescing = Claims(), Quantiles(), Quantiles(), Coalescing()
    view.workers = []
    text = "\n".join(frame(view))
    assert "PostgreSQL does not answer   Valkey does not answer" in text
    assert "log         not known" in text
    assert "no round is open" in text


def test_a_wide_name_lines_up_with_the_others() -> None:
    view = a_view(0)
    view.rounds[0].stocks = [stock("餐饮_wechat", 10, 5), stock("dining_wechat_", 10, 5), stock("x" * 90, 10, 0)]
    rows = [line for line in frame(view) if "wechat" in line or "xxx" in line]
    assert {cell_len(line[: line.index(" 10 ")]) for line in rows} == {cell_len(rows[0][: rows[0].index(" 10 ")])}
    assert "…" in rows[2]


def test_small_shapes() -> None:
    assert sparkline([0, 1, 4, 8], 8) == " ▂▅█"
    assert sparkline([0, 0], 0) == "  "
    assert bar(1, 2, 4) == "██  "
    assert bar(1, 16, 4) == "▎   "
    assert bar(9, 8, 4) == "████"
    assert bar(0, 0, 2) == "  "
    assert clock(timedelta(seconds=-5)) == "0:00:00"
    assert clock(timedelta(days=1, hours=2, seconds=3)) == "1 d 2:00:03"
