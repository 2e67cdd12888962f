"""The benches at a tiny size on real stores, and what they notice: refusals, lost vouchers, stalls, broken servers."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from kernel.signing import Algorithm
from stack.bench import batch, checkout, claim, drain
from stack.bench.generator import Rush, run_rush
from stack.bench.presign import LENGTH_BYTES, Ground
from stack.bench.report import Report
from stack.bench.world import World, open_world
from stack.errors import StackError
from tests import stores

pytestmark = [pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
STALL_FROM_S, STALL_S = 0.2, 0.3


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with open_world(tmp_path_factory.mktemp("bench")) as made:
        yield made


def say_nothing(words: str) -> None: ...


def check_basics(report: Report, keys: set[str]) -> None:
    """A correct run, with all its figures there and none of them zero."""
    assert report.correct and not report.wrong, report.wrong
    for key in keys | {"rate_per_s", "limit_per_s", "ratio", "p50_ms", "p99_ms", "cpu_us_per_item"}:
        assert getattr(report, key) > 0, key
    assert report.size.items and report.size.people and report.size.seconds and report.size.valkey
    assert all(
        one.met == (one.measured >= one.target)
        for one in report.targets
        if "else" not in one.name and one.bound == "at least"
    )


# ---------------------------------------------------------------- each bench, small


async def test_bench_claim(world: World) -> None:
    wish = claim.Wish(seconds=0.3, connections=8, pairs=1, claims=5_000)
    report = await claim.bench_claim(world, wish, say_nothing)
    check_basics(report, {"cpu_us_issuer", "cpu_us_valkey", "cpu_us_limit", "flatness", "open_rate_per_s"})
    assert [phase.name for phase in report.phases][2:5] == ["bare", "claim", "open"]
    assert report.size.people > 5_000
    assert {one.name for one in report.targets} >= {"ratio, HMAC-SHA256", "cost, last to first"}


async def test_bench_batch(world: World) -> None:
    report = await batch.bench_batch(world, batch.Wish(people=4_000, steps=2, connections=2, workers=2), say_nothing)
    check_basics(report, {"cpu_us_issuer", "cpu_us_valkey", "cpu_us_limit", "flatness"})
    assert report.size.people == 4_000 and report.size.workers == 2
    assert report.bytes_per_claim is not None  # of so few claims it is what else came and went meanwhile
    assert report.pace_bytes_per_claim is not None  # nobody asked in vain: next to nothing


async def test_bench_drain(world: World) -> None:
    wish = drain.Wish(vouchers=4_000, steps=2, seconds=0.5, connections=8)
    report = await drain.bench_drain(world, wish, say_nothing)
    check_basics(report, {"lag_p99_s", "rush_per_s"})
    assert report.size.items == 4_000
    assert report.lag_p99_s and report.lag_p99_s * 1000 == pytest.approx(report.p99_ms, abs=0.1)


SMALL_CHECKOUT = checkout.Wish(vouchers=8_000, shops=40, seconds=0.3, connections=8, pairs=1, clients=4)


async def test_bench_checkout(world: World) -> None:
    report = await checkout.bench_checkout(world, SMALL_CHECKOUT, say_nothing)
    keys = {"cpu_us_redemption", "cpu_us_postgres", "open_rate_per_s", "hot_ratio", "ledger_only_per_s"}
    check_basics(report, keys | {"bytes_per_voucher", "bytes_per_voucher_grown", "fill_s"})
    assert report.size.people == 8_000
    told = {stored.relation: stored for stored in report.storage}
    assert told["voucher"].voucher > 60 and told["redemption"].redemption > 100
    assert told["redemption_pkey"].is_index and told["redemption_pkey"].packed < told["redemption_pkey"].grown
    assert report.bytes_per_voucher == pytest.approx(sum(each.packed for each in report.storage), abs=5)
    assert report.bytes_per_voucher_grown == pytest.approx(sum(each.grown for each in report.storage), abs=5)


# ---------------------------------------------------------------- what they notice


async def test_a_redemption_that_is_not_there_makes_a_run_wrong(world: World) -> None:
    """A trigger drops redemptions of some vouchers after their tills were told."""
    await stores.command(
        world.stack.dsn(),
        """CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
           CREATE TRIGGER lose BEFORE INSERT ON redemption FOR EACH ROW
           WHEN (NEW.voucher_id & 7 = 3) EXECUTE FUNCTION lose()""",
    )
    try:
        report = await checkout.bench_checkout(world, SMALL_CHECKOUT, say_nothing)
    finally:
        await stores.command(world.stack.dsn(), "DROP FUNCTION lose CASCADE")
    assert not report.correct
    assert any("redemptions were told, " in what for what in report.wrong), report.wrong


async def test_too_few_vouchers_are_told(world: World) -> None:
    wish = checkout.Wish(vouchers=300, shops=2, seconds=0.2, connections=2, pairs=1, clients=4)
    with pytest.raises(StackError, match="300 vouchers are too few"):
        await checkout.bench_checkout(world, wish, say_nothing)


async def test_refusals_and_a_lost_voucher_make_a_run_wrong(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven vouchers too few, so seven people are told SOLD_OUT; and a trigger drops one voucher in 1,024
    on its way into the ledger."""
    enough = world.open_round

    async def too_few(quantity: int, algorithm: Algorithm = Algorithm.HMAC, *, rounds: int = 1) -> Ground:
        return await enough(quantity - 7, algorithm, rounds=rounds)

    monkeypatch.setattr(world, "open_round", too_few)
    await stores.command(
        world.stack.dsn(),
        """CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
           CREATE TRIGGER lose BEFORE INSERT ON voucher FOR EACH ROW
           WHEN (NEW.voucher_id & 1023 = 3) EXECUTE FUNCTION lose()""",
    )
    try:
        report = await batch.bench_batch(world, batch.Wish(people=2_000, steps=1, connections=1), say_nothing)
    finally:
        await stores.command(world.stack.dsn(), "DROP FUNCTION lose CASCADE")
    assert not report.correct
    assert any("7 times SOLD_OUT" in what for what in report.wrong), report.wrong
    assert any("1,993 wins were told, 1,991 vouchers are there" in what for what in report.wrong), report.wrong


async def test_stores_that_answer_too_early_make_a_run_wrong(world: World) -> None:
    assert (await world.durability()).lasts
    await world.valkey.config_set("appendfsync", "everysec")
    try:
        assert not (await world.durability()).lasts
    finally:
        await world.valkey.config_set("appendfsync", "always")


async def test_own_stores_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANQUAN_VALKEY_URL", "redis://127.0.0.1:1/0")
    with pytest.raises(StackError, match="unset HANQUAN_VALKEY_URL"):
        async with open_world(tmp_path):
            pass


# ---------------------------------------------------------------- the generator against odd servers

Answering = Callable[[asyncio.StreamWriter], Any]


@asynccontextmanager
async def server(answer: Answering) -> AsyncIterator[int]:
    """Answers every request of 4 bytes as told; its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readexactly(4):
                await answer(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield listening.sockets[0].getsockname()[1]


def requests(path: Path, count: int) -> list[str]:
    path.write_bytes(((4).to_bytes(LENGTH_BYTES) + b"GET\n") * count)
    return [str(path)]


@pytest.fixture
def stalling() -> Answering:
    """A moment after the first request nothing is answered for 0.3 s."""
    began: list[float] = []

    async def answer(writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        began.append(now := loop.time()) if not began else None
        now = loop.time() - began[0]
        if STALL_FROM_S <= now < STALL_FROM_S + STALL_S:
            await asyncio.sleep(STALL_FROM_S + STALL_S - now)
        writer.write(ANSWER)

    return answer


async def test_the_generator_sees_a_stall_on_an_open_schedule(tmp_path: Path, stalling: Answering) -> None:
    async with server(stalling) as port:
        files = requests(tmp_path / "requests", 300)
        told = await run_rush(Rush(port=port, files=files, connections=4, rate_per_s=400, seconds=5))
    assert told.wins == told.calls == 300
    assert told.latency.p99_ms > STALL_S * 1000 * 0.8
    assert told.seconds > 0.5


async def test_control_in_a_closed_loop_the_stall_hides(tmp_path: Path, stalling: Answering) -> None:
    async with server(stalling) as port:
        files = requests(tmp_path / "requests", 10)
        told = await run_rush(Rush(port=port, files=files, connections=4, seconds=0.8, again=True))
    assert told.latency.p99_ms < STALL_S * 1000 * 0.5
    assert told.latency.max_ms > STALL_S * 1000 * 0.8


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b'HTTP/1.1 503 Busy\r\ncontent-length: 22\r\n\r\n{"code":"SYSTEM_BUSY"}', "SYSTEM_BUSY"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", "STATUS_502"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "CONNECTION_LOST"),
        (b"", "CONNECTION_LOST"),
    ],
)
async def test_what_is_no_win_is_counted_by_its_name(tmp_path: Path, answer: bytes, code: str) -> None:
    async def broken(writer: asyncio.StreamWriter) -> None:
        if answer:
            writer.write(answer)
        else:
            writer.close()

    async with server(broken) as port:
        told = await run_rush(Rush(port=port, files=requests(tmp_path / "requests", 3), connections=1, seconds=5))
    assert told.wins == 0
    assert told.refused[code] == (1 if code == "CONNECTION_LOST" else 3)


async def test_answers_in_pieces_are_put_together(tmp_path: Path) -> None:
    async def slow(writer: asyncio.StreamWriter) -> None:
        for at in range(0, len(ANSWER), 20):
            writer.write(ANSWER[at : at + 20])
            await asyncio.sleep(0.002)

    async with server(slow) as port:
        told = await run_rush(Rush(port=port, files=requests(tmp_path / "requests", 5), connections=2, seconds=5))
    assert told.wins == 5 and not told.refused
