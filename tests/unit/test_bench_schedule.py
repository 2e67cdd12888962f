"""Arithmetic of the benches: arrivals, latencies, lag, targets; and what their command prints."""

import json
import os
from collections import deque
from collections.abc import Callable, Mapping

import msgspec
import pytest

from stack.bench.cpu import cpu_s
from stack.bench.lag import Move, lag_of
from stack.bench.phases import Course, Phase, Tell, flatness
from stack.bench.report import Report, Size, target
from stack.bench.schedule import Latency, arrivals, latency, median, rank
from stack.bench.world import World
from stack.commands import bench as command
from stack.errors import StackError

STALL_FROM_S, STALL_UNTIL_S, SERVICE_S, CONNECTIONS = 1.0, 1.5, 0.001, 4


def answered_s(asked_s: float) -> float:
    """A server that answers within a ms, but for half a second in which it does nothing."""
    done = asked_s + SERVICE_S
    return STALL_UNTIL_S + SERVICE_S if STALL_FROM_S <= done < STALL_UNTIL_S else done


def open_waits(due_s: list[float]) -> list[float]:
    """Latencies counted from the schedule; a request waits for a free connection, first come, first served."""
    free = deque([0.0] * CONNECTIONS)
    waits = []
    for due in due_s:
        done = answered_s(max(due, free.popleft()))
        free.append(done)
        waits.append(done - due)
    return waits


def closed_waits(until_s: float) -> list[float]:
    """Latencies of a loop that sends the next request when it has the answer."""
    waits = []
    for _ in range(CONNECTIONS):
        now = 0.0
        while now < until_s:
            done = answered_s(now)
            waits.append(done - now)
            now = done
    return waits


def test_a_stall_shows_in_the_p99_of_an_open_schedule() -> None:
    told = latency(open_waits(arrivals(500, 1_000, seed=1)))
    assert told.p99_ms > 400
    assert told.max_ms >= 490


def test_control_a_closed_loop_hides_the_stall() -> None:
    told = latency(closed_waits(2.0))
    assert told.p99_ms < 5
    assert told.max_ms >= 490  # it was there, in one answer a connection


def test_arrivals_keep_their_rate_and_are_the_same_for_a_seed() -> None:
    due_s = arrivals(200, 4_000, seed=7)
    assert due_s == sorted(due_s) == arrivals(200, 4_000, seed=7) != arrivals(200, 4_000, seed=8)
    assert due_s[-1] == pytest.approx(20, rel=0.1)


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (0.991, 100), (1.0, 100), (0.001, 1)])
def test_rank_is_the_nearest(share: float, expected: int) -> None:
    assert rank(range(1, 101), share) == expected


def test_latency_of_nothing_is_zero_and_medians_hold_against_noise() -> None:
    assert latency([]) == Latency(p50_ms=0, p99_ms=0, max_ms=0)
    assert median([1, 900, 2]) == 2
    assert median([1, 2, 3, 900]) == 2.5


def test_lag_counts_each_ms_at_which_somebody_could_claim() -> None:
    # claimed at 1..100, seen at 110: 109..10 ms old; claimed at 101..200, seen at 205: 104..5 ms old
    lag = lag_of([Move(0, 100, 110), Move(100, 200, 205)])
    assert lag.max_s == 0.109
    assert 0.05 <= lag.p50_s <= 0.06
    assert lag_of([]).max_s == 0


def test_a_drain_that_stands_still_shows_in_the_lag() -> None:
    steady = [Move(at, at + 10, at + 15) for at in range(0, 10_000, 10)]
    held_up = [*steady[:-200], Move(8_000, 10_000, 10_005)]
    assert lag_of(steady).p99_s < 0.02
    assert lag_of(held_up).p99_s > 1.5


def test_processes_cost_what_they_burn_and_one_that_is_gone_is_said() -> None:
    before = cpu_s([os.getpid()])
    while cpu_s([os.getpid()]) < before + 0.02:
        sum(range(10_000))
    with pytest.raises(StackError, match="ended while"):
        cpu_s([2**22 + 1])


def phase(name: str, cost_us: float, refused: Mapping[str, int] | None = None) -> Phase:
    return Phase(
        name=name,
        items=10,
        seconds=1,
        rate_per_s=10,
        cpu_us={"issuer": cost_us, "valkey": 10.0, "generator": 99.0},
        busy={},
        refused=dict(refused or {}),
    )


def test_flatness_is_last_to_first_of_the_servers_only() -> None:
    assert flatness([phase("claim", 90), phase("claim", 140)]) == 1.5
    steps = [90, 10, 90, 30, 30, 30, 140, 140, 700]
    assert flatness([phase("claim", cost_us) for cost_us in steps]) == 1.5


def test_costs_grow_by_medians_of_the_named_servers() -> None:
    course = Course()
    for name, cost_us in (("claim", 90), ("claim", 10), ("claim", 120), ("last", 140), ("bare", 30)):
        course.add(phase(name, cost_us))
    assert course.grown("claim", "last", ["issuer", "valkey"]) == 1.5
    assert course.grown("claim", "bare", ["issuer"]) == pytest.approx(1 / 3)
    assert course.grown("claim", "no such", ["issuer"]) == 0.0


def test_targets_are_held_on_their_side_of_the_bound() -> None:
    assert target("ratio", "at least", 0.5, 0.5).met and not target("ratio", "at least", 0.5, 0.49).met
    assert target("p99", "at most", 25, 25).met and not target("p99", "at most", 25, 25.1).met
    assert target("rate", "at least", 100_000, 5, or_else=True).met


# ---------------------------------------------------------------- the command

KEYS = {"rate_per_s", "limit_per_s", "ratio", "p50_ms", "p99_ms", "cpu_us_per_item", "size", "targets", "correct"}


def a_report(wrong: list[str]) -> Report:
    return Report(
        bench="claim",
        rate_per_s=5_000,
        limit_per_s=20_000,
        ratio=0.25,
        p50_ms=1.5,
        p99_ms=12.25,
        cpu_us_per_item=100,
        correct=not wrong,
        wrong=wrong,
        targets=[target("ratio", "at least", 0.5, 0.25), target("p99, ms", "at most", 25, 12.25)],
        size=Size(items=1, people=1, connections=1, seconds=1, workers=1, keys="HMAC-SHA256"),
        phases=[phase("claim", 90)],
    )


def call(monkeypatch: pytest.MonkeyPatch, wrong: list[str], *, json: bool) -> int:
    async def told(bench: Callable[[World, Tell], object], buckets: int) -> Report:
        return a_report(wrong)

    monkeypatch.setattr(command, "_in_a_world", told)
    return command.claim(json=json)


def test_json_is_one_object_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, [], json=True) == 0  # a target is missed, which is told and is no error
    said = json.loads(capsys.readouterr().out)
    assert said.keys() >= KEYS
    assert [one["met"] for one in said["targets"]] == [False, True]
    assert said["size"]["python"] and said["size"]["processors"]


def test_a_run_that_was_wrong_ends_with_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, ["claim, phase 1: 3 times SOLD_OUT"], json=False) == 1
    said = capsys.readouterr().out
    assert "wrong: claim, phase 1: 3 times SOLD_OUT" in said and "not correct" in said
    assert "missed" in said and "met" in said


def test_a_report_can_be_read_again() -> None:
    report = a_report([])
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report
