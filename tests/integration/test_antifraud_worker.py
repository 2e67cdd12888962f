"""The worker as a process of its own on real stores: signals in, flags, holds and blocks out."""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import aiohttp
import asyncpg
import pytest

from antifraud import review
from antifraud.gate import BLOCK, digest_person, gate_source, risk_key, shard_tag
from antifraud.judge import Judge
from antifraud.rules import RuleSet
from antifraud.signals import STREAM, ClaimSignal, RedeemSignal, RefundSignal, Signal, SignalWriter, encode
from kernel.clock import from_ms, to_ms
from kernel.valkey import open_valkey
from stack.child import Child, Program
from stack.ports import free_port
from stack.services import SERVICES
from tests import stores

SHARDS = 2
MERCHANTS = 12
NOW_MS = to_ms(datetime.now(UTC))
MINUTE_MS = 60_000
DAY_MS = 86_400_000
WITHIN_S = 10.0  # two seconds, on a machine five times slower
ROOT = Path(__file__).parents[2]

(ANTIFRAUD,) = (service for service in SERVICES if service.name == "antifraud")


# ---------------------------------------------------------------- the worker and its city


@pytest.fixture
async def city(database: stores.Database) -> stores.Database:
    """A city of two shards with some merchants."""
    await database.pool.execute("INSERT INTO city (buckets, shards) VALUES (2, $1)", SHARDS)
    await database.pool.execute(
        "INSERT INTO merchant (merchant_id, name, category, district, payee_name, payee_account, payee_bank)"
        " SELECT 'shop-' || n, '面馆 ' || n, 'dining', 'wuchang', 'x', '6222000011', 'b' FROM generate_series(1, $1) n",
        MERCHANTS,
    )
    return database


def program(database: stores.Database, valkey: stores.Valkey, folder: Path) -> Program:
    """The worker as the stack starts it."""
    port = free_port()
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "HANQUAN_POSTGRES_DSN": database.dsn(ANTIFRAUD.role),
        "HANQUAN_VALKEY_URL": valkey.url,
        "HANQUAN_MASTER_KEY": "00" * 32,
        "HANQUAN_CODE_KEYS": "1:" + "00" * 16,
        "HANQUAN_PORT": str(port),
    }

    async def is_ready() -> bool:
        with suppress(aiohttp.ClientError):
            async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/readyz") as response:
                return response.status == 200
        return False

    return Program(
        name=f"antifraud on {port}",
        argv=ANTIFRAUD.argv,
        env=env,
        folder=folder,
        log=folder / "antifraud.log",
        is_ready=is_ready,
    )


@asynccontextmanager
async def running(what: Program) -> AsyncIterator[Child]:
    child = Child(what)
    try:
        await child.ready()
        yield child
        assert await child.stop() == 0, child.last_words()
    finally:
        if child.exit_status is None:
            child.kill()


async def tell(valkey: stores.Valkey, signals: Iterable[Signal]) -> None:
    """Offers signals as a service does, and waits until they are in the stream."""
    async with SignalWriter(valkey.client) as writer:
        for signal in signals:
            writer.offer(signal)
    assert writer.dropped == 0


async def flags(database: stores.Database) -> list[tuple[str, str]]:
    rows = await database.pool.fetch("SELECT subject, detector FROM flag ORDER BY subject, detector, flag_id")
    return [(row["subject"], row["detector"]) for row in rows]


async def holds(database: stores.Database) -> list[int]:
    rows = await database.pool.fetch("SELECT merchant_no FROM merchant_held ORDER BY merchant_no, hold_id")
    return [row["merchant_no"] for row in rows]


async def blocked(valkey: stores.Valkey, person: str) -> list[bool]:
    """What the gate says on each shard."""
    look = valkey.client.register_script(gate_source() + "return gate_check(ARGV[1], tonumber(ARGV[2]), ARGV[3], '')")
    digest = digest_person(bytes.fromhex(person))
    answers = [await look(args=[shard_tag(shard), NOW_MS, digest]) for shard in range(SHARDS)]
    return [answer == b"REQUEST_BLOCKED" for answer in answers]


async def until(condition: Any, within_s: float = WITHIN_S) -> float:
    """Seconds until an awaitable condition holds; fails when it does not in time."""
    started = monotonic()
    while not await condition():
        assert monotonic() - started < within_s, f"not within {within_s} s"
        await asyncio.sleep(0.02)
    return monotonic() - started


async def all_read(database: stores.Database, valkey: stores.Valkey, within_s: float = 60.0) -> None:
    """Waits until the stored position is the stream's end."""
    last = (await valkey.client.xinfo_stream(STREAM))["last-generated-id"].decode()

    async def arrived() -> bool:
        row = await database.pool.fetchrow("SELECT entry_ms, entry_seq FROM signal_position")
        return row is not None and f"{row['entry_ms']}-{row['entry_seq']}" == last

    await until(arrived, within_s)


# ---------------------------------------------------------------- what people do

_dice = random.Random(43_000_000)


def token() -> str:
    return _dice.randbytes(16).hex()


def people(count: int) -> list[str]:
    return [token() for _ in range(count)]


def claims(crowd: Sequence[str], device: str, start_ms: int = NOW_MS) -> list[Signal]:
    return [ClaimSignal(start_ms + i * 1_500, who, device, 1, 1, "GRANTED") for i, who in enumerate(crowd)]


def redeems(crowd: Sequence[str], merchant_no: int, start_ms: int = NOW_MS - 6 * 60 * MINUTE_MS) -> list[Signal]:
    return [
        RedeemSignal(start_ms + i * 1_000, _dice.getrandbits(40), who, merchant_no, 1, 9_000, 3_000, 9_000)
        for i, who in enumerate(crowd)
    ]


def loop(who: str, merchant_no: int, cycles: int) -> list[Signal]:
    events: list[Signal] = []
    for i in range(cycles):
        voucher_id, at_ms = _dice.getrandbits(40), NOW_MS + i * 10 * MINUTE_MS
        events.append(RedeemSignal(at_ms, voucher_id, who, merchant_no, 1, 9_000, 3_000, 9_000))
        events.append(RefundSignal(at_ms + MINUTE_MS, voucher_id, who, merchant_no, 3_000))
    return events


def device() -> str:
    return _dice.randbytes(8).hex()


# ---------------------------------------------------------------- from signal to effect


async def test_signals_become_flags_holds_and_blocks_within_two_seconds(
    city: stores.Database, valkey: stores.Valkey, tmp_path: Path
) -> None:
    farm, ring, looper, family = people(12), people(4), token(), people(5)
    phones = device(), device()
    honest = [*claims(family, device()), *redeems(people(40), 2), *loop(token(), 4, 2)]
    guilty = [
        *claims(farm, phones[0]),
        *claims(farm, phones[1], NOW_MS + MINUTE_MS),
        *redeems(ring * 6, 1),
        *loop(looper, 3, 3),
    ]

    async def all_flagged() -> bool:
        return len(await flags(city)) >= 7

    async def all_blocked() -> bool:
        return await blocked(valkey, farm[5]) == [True] * SHARDS

    async with running(program(city, valkey, tmp_path)):
        await tell(valkey, honest + guilty)
        took_s = await until(all_flagged)
        await until(all_blocked)
        await all_read(city, valkey)
    looper_uuid = str(await city.pool.fetchval("SELECT $1::uuid", looper))
    phone_flags = [(phone, kind) for phone in phones for kind in ("DEVICE_PACE", "DEVICE_PEOPLE")]
    assert set(await flags(city)) == {
        *phone_flags,
        (phones[1], "DEVICE_RING"),
        ("1", "REPEAT_BURST"),
        (looper_uuid, "REFUND_LOOP"),
    }
    assert await holds(city) == [1]
    assert took_s < WITHIN_S
    blocks = await city.pool.fetch("SELECT person, points, expires_at - placed_at AS span FROM person_block")
    assert {row["person"].hex for row in blocks} == set(farm)
    assert {(row["points"], row["span"]) for row in blocks} == {(100, timedelta(days=30))}
    for who in (*family, *ring, looper):
        assert await blocked(valkey, who) == [False] * SHARDS


async def test_a_reason_can_be_read_and_checked(city: stores.Database, valkey: stores.Valkey, tmp_path: Path) -> None:
    async with running(program(city, valkey, tmp_path)):
        await tell(valkey, redeems(people(4) * 6, 1))
        await all_read(city, valkey)
    async with city.connection("hanquan_auditor") as conn:
        (flag,) = await review.read_flags(conn)
    reason = flag.reason
    assert (flag.merchant_id, flag.merchant_name, flag.is_held) == ("shop-1", "面馆 1", True)
    assert (reason.code, reason.rule_set) == ("REPEAT_BURST", RuleSet().name())
    assert reason.value >= reason.threshold
    assert 0 < len(reason.evidence) <= 20
    assert "核销" in reason.zh
    assert "redemptions" in reason.en
    hold = await city.pool.fetchrow("SELECT reason_code, reason FROM merchant_hold")
    assert hold is not None
    assert hold["reason_code"] == "REPEAT_BURST"
    assert reason.zh in hold["reason"]


async def test_the_worker_says_how_it_is(city: stores.Database, valkey: stores.Valkey, tmp_path: Path) -> None:
    what = program(city, valkey, tmp_path)
    address = f"http://127.0.0.1:{what.env['HANQUAN_PORT']}"
    async with running(what), aiohttp.ClientSession() as http:
        await tell(valkey, redeems(people(4) * 6, 1))
        await all_read(city, valkey)
        async with http.get(f"{address}/healthz") as response:
            assert response.status == 200
        async with http.get(f"{address}/metrics") as response:
            figures = await response.text()
    assert "hanquan_signals_read_total 24.0" in figures
    assert 'hanquan_flags_opened_total{detector="REPEAT_BURST"} 1.0' in figures
    assert "hanquan_merchant_holds_placed_total 1.0" in figures
    assert "hanquan_signal_lag_seconds" in figures


async def test_the_worker_may_only_what_its_role_may(city: stores.Database) -> None:
    async with city.connection("hanquan_antifraud") as conn:
        for statement in (
            "UPDATE flag SET closed_at = now()",
            "DELETE FROM flag",
            "UPDATE person_block SET lifted_at = now()",
            "INSERT INTO merchant_hold_release VALUES (1, 'x', 'x', now())",
            "SELECT FROM redemption",
            "UPDATE merchant SET suspended = true",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await conn.execute(statement)


# ---------------------------------------------------------------- crashes


def suspects(signals: Iterable[Signal]) -> set[tuple[str, str]]:
    """Cases of one uninterrupted judge."""
    findings = Judge(RuleSet()).hear(signals).findings
    return {(one.subject, one.detector) for one in findings if one.detector != "REFUND_LOOP"}


async def test_killed_in_mid_stream_again_and_again_nothing_is_missing_and_nothing_is_twice(
    city: stores.Database, valkey: stores.Valkey, tmp_path: Path
) -> None:
    """Each pattern is spread over the whole stream, so that every kill cuts through all of them."""
    farms = [claims(people(14), device()) for _ in range(20)]
    bursts = [redeems(people(4) * 7, merchant_no) for merchant_no in range(1, MERCHANTS + 1)]
    placed = [pair for pattern in (*farms, *bursts) for pair in spread(pattern)]
    signals = [one for _, one in sorted(placed, key=lambda pair: pair[0])]
    batches = [signals[i : i + 8] for i in range(0, len(signals), 8)]
    expected = suspects(signals)
    assert len(expected) == 2 * len(farms) + len(bursts)
    assert suspects(signals[len(signals) // 2 :]) < expected, "control: without its memory a worker misses some"

    feeding = asyncio.create_task(feed(valkey, batches))
    what = program(city, valkey, tmp_path)
    counts = []
    for _ in range(5):
        child = Child(what)
        await child.ready()
        await asyncio.sleep(_dice.uniform(0.02, 0.4))
        child.kill()
        counts.append(len(await flags(city)))
    assert not feeding.done() or counts[0] < len(expected), "control: the first kill came before the end"
    await feeding
    async with running(what):
        await all_read(city, valkey)
    found = await flags(city)
    assert sorted(set(found)) == found, "no flag twice"
    assert set(found) == expected
    assert await holds(city) == list(range(1, MERCHANTS + 1))


def spread(pattern: Sequence[Signal]) -> list[tuple[float, Signal]]:
    """A pattern's signals over the whole of the stream, in their order."""
    return [((i + _dice.random()) / len(pattern), one) for i, one in enumerate(pattern)]


async def feed(valkey: stores.Valkey, batches: Sequence[list[Signal]]) -> None:
    client = open_valkey(valkey.url, connections=1)
    for number, batch in enumerate(batches):
        await client.xadd(STREAM, {b"n": f"feed-{number}", b"b": encode(batch)})
        await asyncio.sleep(0.05)
    await client.aclose()


async def test_reading_everything_again_changes_nothing(
    city: stores.Database, valkey: stores.Valkey, tmp_path: Path
) -> None:
    signals = [*claims(people(14), device()), *redeems(people(4) * 7, 1)]
    what = program(city, valkey, tmp_path)
    for _ in range(2):
        async with running(what):
            await tell(valkey, signals) if not await flags(city) else None
            await all_read(city, valkey)
        before = await flags(city), await holds(city)
        assert len(before[0]) == 3
        await city.pool.execute("DELETE FROM signal_position")
    async with running(what):
        await all_read(city, valkey)
    assert (await flags(city), await holds(city)) == before


async def test_two_workers_at_once_write_each_case_once(
    city: stores.Database, valkey: stores.Valkey, tmp_path: Path
) -> None:
    first, second = program(city, valkey, tmp_path), program(city, valkey, tmp_path)
    signals = [one for merchant_no in range(1, MERCHANTS + 1) for one in redeems(people(4) * 7, merchant_no)]
    async with running(first), running(second):
        await tell(valkey, signals)
        await all_read(city, valkey)
        await asyncio.sleep(0.5)
    found = await flags(city)
    assert len(found) == len(set(found)) == MERCHANTS
    assert await holds(city) == list(range(1, MERCHANTS + 1))


async def test_a_lost_block_list_is_written_again_at_the_next_start(
    city: stores.Database, valkey: stores.Valkey, tmp_path: Path
) -> None:
    me, free = people(2)
    await city.pool.execute(
        "INSERT INTO person_block (person, points, reason, seen_from, placed_at, expires_at)"
        " VALUES ($1, 90, '[]', now(), now(), now() + interval '1 day'),"
        " ($2, 90, '[]', now() - interval '9 days', now() - interval '9 days', now() - interval '1 day')",
        me,
        free,
    )

    async def is_back() -> bool:
        return await blocked(valkey, me) == [True] * SHARDS

    async with running(program(city, valkey, tmp_path)):
        await until(is_back)
    digest = digest_person(bytes.fromhex(me))
    value: Any = await valkey.client.hget(risk_key(shard_tag(1), digest), digest)
    assert value is not None
    assert value.startswith(f"{BLOCK}@".encode())
    assert await blocked(valkey, free) == [False] * SHARDS


# ---------------------------------------------------------------- what people decide


async def test_a_released_merchant_is_not_held_again_on_the_same_evidence_but_on_new_one(
    city: stores.Database, valkey: stores.Valkey, tmp_path: Path
) -> None:
    ring = people(4)
    async with running(program(city, valkey, tmp_path)):
        await tell(valkey, redeems(ring * 7, 1))
        await all_read(city, valkey)
        async with city.connection("hanquan_finance") as conn:
            assert await review.release_merchant(conn, "nobody", "li", "-", from_ms(NOW_MS)) is None
            released = await review.release_merchant(conn, "shop-1", "li", "staff canteen", datetime.now(UTC))
        assert released is not None
        assert (len(released.hold_ids), len(released.flag_ids)) == (1, 1)
        await tell(valkey, redeems(ring * 20, 1))
        await all_read(city, valkey)
        assert await holds(city) == []
        await tell(valkey, redeems(ring * 7, 1, NOW_MS + 8 * DAY_MS))
        await all_read(city, valkey)
    assert await holds(city) == [1]
    assert await flags(city) == [("1", "REPEAT_BURST")] * 2


async def test_a_person_let_off_may_claim_at_once_and_stays_so(
    city: stores.Database, valkey: stores.Valkey, tmp_path: Path
) -> None:
    farm, phones = people(12), (device(), device())
    tries = [one for n, phone in enumerate(phones) for one in claims(farm, phone, NOW_MS - (9 - n) * MINUTE_MS)]
    what = program(city, valkey, tmp_path)
    async with running(what):
        await tell(valkey, tries)
        await all_read(city, valkey)
        assert await blocked(valkey, farm[3]) == [True] * SHARDS
        person = await city.pool.fetchval("SELECT $1::uuid", farm[3])
        async with city.connection("hanquan_finance") as conn:
            assert await review.lift_block(conn, valkey.client, person, "li", "a mistake", datetime.now(UTC))
            assert not await review.lift_block(conn, valkey.client, person, "li", "again", datetime.now(UTC))
        assert await blocked(valkey, farm[3]) == [False] * SHARDS
    await city.pool.execute("DELETE FROM signal_position")
    async with running(what):
        await all_read(city, valkey)
    assert await blocked(valkey, farm[3]) == [False] * SHARDS
    assert await blocked(valkey, farm[4]) == [True] * SHARDS


# ---------------------------------------------------------------- stream and writer


async def test_nonsense_in_the_stream_is_skipped_and_a_repeated_batch_counts_once(
    city: stores.Database, valkey: stores.Valkey, tmp_path: Path
) -> None:
    me = token()
    for blob in (b"", b"\xc1", b"\x91\x92\xa5claim\x01", encode([])):
        await valkey.client.xadd(STREAM, {b"n": os.urandom(4), b"b": blob})
    for i, signal in enumerate(loop(me, 1, 2)):
        for _ in range(3):
            await valkey.client.xadd(STREAM, {b"n": f"same-{i}", b"b": encode([signal])})
    await valkey.client.xadd(STREAM, {b"other": b"fields"})
    await tell(valkey, redeems(people(4) * 7, 999) + redeems(people(4) * 7, 1))
    async with running(program(city, valkey, tmp_path)):
        await all_read(city, valkey)
    assert await flags(city) == [("1", "REPEAT_BURST"), ("999", "REPEAT_BURST")]
    assert await holds(city) == [1], "a merchant that does not exist is flagged, and there is nothing to hold"


async def test_a_full_queue_drops_and_counts_and_never_waits(valkey: stores.Valkey) -> None:
    writer = SignalWriter(valkey.client, queue_max=10)
    started = monotonic()
    for signal in redeems(people(1) * 1_000, 1):
        writer.offer(signal)
    assert monotonic() - started < 5
    assert writer.dropped == 990
    async with writer:
        pass
    assert (writer.written, writer.dropped) == (10, 990)
    writer.offer(redeems(people(1), 1)[0])
    assert writer.dropped == 991, "after the end nothing is taken"


async def test_many_signals_share_an_entry_and_the_stream_has_an_end(valkey: stores.Valkey) -> None:
    async with SignalWriter(valkey.client, batch_max=50, stream_length_max=20) as writer:
        for signal in redeems(people(1) * 10_000, 1):
            writer.offer(signal)
        while writer.written < 10_000:
            await asyncio.sleep(0.01)
    assert 20 <= await valkey.client.xlen(STREAM) < 200, "trimmed by whole nodes"
    entries: Any = await valkey.client.xrange(STREAM, count=1)
    assert len(entries[0][1][b"b"]) < 50 * 100


async def test_a_store_that_comes_back_gets_what_was_queued(valkey: stores.Valkey) -> None:
    async with SignalWriter(valkey.client, linger_s=0.01) as writer:
        valkey.child.kill()
        for signal in redeems(people(1) * 50, 1):
            writer.offer(signal)
        await asyncio.sleep(0.1)
        assert (writer.written, writer.dropped) == (0, 0)
        again = Child(valkey.server.program())
        try:
            await again.ready()

            async def is_written() -> bool:
                return writer.written == 50

            await until(is_written, 5)
            assert await valkey.client.xlen(STREAM) == 1
        finally:
            again.kill()


async def test_a_store_that_stays_away_does_not_hold_up_the_end(valkey: stores.Valkey) -> None:
    valkey.child.kill()
    started = monotonic()
    async with SignalWriter(valkey.client) as writer:
        for signal in redeems(people(1) * 50, 1):
            writer.offer(signal)
    assert monotonic() - started < SignalWriter.STOP_S + 10
    assert writer.dropped == 50
