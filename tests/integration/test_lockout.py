"""The lockout over a real Valkey, by an injected clock: boundaries, several workers, floods, a store that is away."""

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from kernel.clock import ManualClock, to_ms
from kernel.errors import Code, Refusal
from kernel.scripts import ScriptRunner
from kernel.signing import Caller
from kernel.valkey import open_valkey
from redemption import lockout
from redemption.lockout import LOCK_S, MERCHANT_MAX, NO_SUCH_CODE, STRICT_MAX, TERMINAL_MAX, WINDOW_S, Lockout
from redemption.locks import TAG, Terminal, let_go, read_locks, read_record
from redemption.tally import Tally
from stack.child import Child
from tests import stores

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOON = datetime(2020, 4, 23, 4, tzinfo=UTC)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[stores.Valkey]:
    async with stores.valkey(tmp_path_factory.mktemp("lockout")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(server: stores.Valkey) -> AsyncIterator[Redis]:
    await server.client.flushall()
    yield server.client


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOON)


def till(number: int = 1, merchant: int = 1) -> Caller:
    return Caller(kind="merchant", holder_id=f"shop-{merchant}", holder_no=merchant, terminal_no=number)


async def guess(worker: Lockout, caller: Caller) -> Code:
    """One wrong code, as the checkout treats it."""
    refusal = worker.refusal(caller) or await worker.failed(caller)
    return refusal.code


async def guesses(worker: Lockout, caller: Caller, count: int) -> list[Code]:
    return [await guess(worker, caller) for _ in range(count)]


# ---------------------------------------------------------------- one terminal


async def test_four_pass_and_the_fifth_locks(client: Redis, clock: ManualClock) -> None:
    worker = Lockout(client, clock)
    assert await guesses(worker, till(), TERMINAL_MAX - 1) == [Code.RESOURCE_NOT_EXISTS] * 4
    assert worker.refusal(till()) is None
    assert await worker.failed(till()) == NO_SUCH_CODE, "the last before the lock is answered like the first"
    assert worker.refusal(till()) == Refusal(
        code=Code.TERMINAL_LOCKED,
        detail="too many invalid codes came from this terminal; until the lock ends no code of it is looked at",
        retry_after_s=LOCK_S,
    )
    assert worker.refusal(till(2)) is None, "another terminal of the shop"
    assert worker.refusal(till(1, merchant=2)) is None


async def test_five_lock_only_within_ten_minutes(client: Redis, clock: ManualClock) -> None:
    worker = Lockout(client, clock)
    for number, last_step_s in ((1, WINDOW_S - 0.001), (2, WINDOW_S)):
        clock.set(NOON)
        await guesses(worker, till(number), TERMINAL_MAX - 1)
        clock.set(NOON)
        clock.advance(last_step_s)
        await guess(worker, till(number))
        assert (worker.refusal(till(number)) is not None) is (number == 1), last_step_s
        assert (Terminal(1, number) in (await read_locks(client, clock.now_ms(), within_s=1)).locked) is (number == 1)


async def test_the_lock_ends_after_ten_minutes_and_the_count_begins_anew(client: Redis, clock: ManualClock) -> None:
    worker = Lockout(client, clock)
    await guesses(worker, till(), TERMINAL_MAX)
    clock.advance(LOCK_S - 0.001)
    locked = worker.refusal(till())
    assert locked is not None and locked.retry_after_s == 1
    clock.advance(0.001)
    assert worker.refusal(till()) is None
    assert await guesses(worker, till(), TERMINAL_MAX + 1) == [Code.RESOURCE_NOT_EXISTS] * 5 + [Code.TERMINAL_LOCKED]


async def test_an_honest_cashier_is_never_locked(client: Redis, clock: ManualClock) -> None:
    """Four mistakes in any ten minutes, for three hours."""
    worker = Lockout(client, clock)
    for _ in range(4 * 6 * 3):
        assert await guess(worker, till()) is Code.RESOURCE_NOT_EXISTS
        assert worker.refusal(till()) is None
        clock.advance(WINDOW_S / 4)
    await worker.refresh()
    assert worker.refusal(till()) is None


async def test_keys_expire_by_themselves(client: Redis, clock: ManualClock) -> None:
    worker = Lockout(client, clock)
    await guesses(worker, till(), TERMINAL_MAX)
    keys = await client.keys("*")
    assert sorted(keys) == [b"{tills}:bad:1", b"{tills}:bad:1:1", b"{tills}:locked"]
    assert all([0 < await client.ttl(key) <= max(LOCK_S, WINDOW_S) for key in keys])
    assert await client.llen("{tills}:bad:1") == TERMINAL_MAX


# ---------------------------------------------------------------- several workers


async def test_workers_share_the_count(client: Redis, clock: ManualClock) -> None:
    first, second = Lockout(client, clock), Lockout(client, clock)
    await guesses(first, till(), 3)
    assert await guesses(second, till(), 3) == [Code.RESOURCE_NOT_EXISTS] * 2 + [Code.TERMINAL_LOCKED]
    # The first has not heard of it: for up to a second it would take a right code. A wrong one it does not judge.
    assert first.refusal(till()) is None
    refusal = await first.failed(till())
    assert (refusal.code, refusal.retry_after_s) == (Code.TERMINAL_LOCKED, LOCK_S)
    assert first.refusal(till()) is not None, "and has heard of it now"


async def test_a_worker_hears_of_a_lock_within_a_second(
    client: Redis, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lockout, "REFRESH_EVERY_S", 0.05)
    first, second = Lockout(client, clock), Lockout(client, clock)
    async with first.kept_fresh():
        await guesses(second, till(), TERMINAL_MAX)
        async with asyncio.timeout(1):
            while first.refusal(till()) is None:
                await asyncio.sleep(0.01)
    late = Lockout(client, clock)
    async with late.kept_fresh():
        assert late.refusal(till()) is not None, "a worker that starts knows it before it serves"


async def test_guesses_sent_all_at_once_get_no_further(client: Redis, clock: ManualClock) -> None:
    worker = Lockout(client, clock)
    told = Counter(await asyncio.gather(*(guess(worker, till()) for _ in range(500))))
    assert told == {Code.RESOURCE_NOT_EXISTS: TERMINAL_MAX, Code.TERMINAL_LOCKED: 500 - TERMINAL_MAX}
    assert await client.llen("{tills}:bad:1:1") == TERMINAL_MAX


# ---------------------------------------------------------------- the net around a merchant


async def test_a_busy_honest_merchant_is_not_hurt(client: Redis, clock: ManualClock) -> None:
    """100 terminals, each mistakes one code in ten minutes: nobody is locked. Who mistakes two then is."""
    worker = Lockout(client, clock)
    for number in range(1, 101):
        assert await guess(worker, till(number)) is Code.RESOURCE_NOT_EXISTS
        clock.advance(2)
    await worker.refresh()
    assert all(worker.refusal(till(number)) is None for number in range(1, 101))
    await guess(worker, till(7))
    assert [number for number in range(1, 101) if worker.refusal(till(number))] == [7]
    await guesses(worker, till(1, merchant=2), STRICT_MAX)
    assert worker.refusal(till(1, merchant=2)) is None, "another merchant's terminals have their five"


async def test_the_net_closes_with_the_fiftieth(client: Redis, clock: ManualClock) -> None:
    worker = Lockout(client, clock)
    for number in range(1, MERCHANT_MAX - 1):
        await guess(worker, till(number))
    await guess(worker, till(1))
    assert worker.refusal(till(1)) is None, "49 in all: two are none too many"
    await guess(worker, till(2))
    assert worker.refusal(till(2)) is not None, "the 50th, and the terminal's second"
    assert worker.refusal(till(1)) is None, "who made two before is not locked by others' mistakes"
    assert await guesses(worker, till(1), 2) == [Code.RESOURCE_NOT_EXISTS, Code.TERMINAL_LOCKED]


# ---------------------------------------------------------------- enumeration


MINUTES, TERMINALS, A_MINUTE = 20, 100, 50


async def judged(worker: Lockout, clock: ManualClock) -> Counter[int]:
    """100 terminals of a merchant send 50 guesses a minute each; how many were judged, by ten minutes."""
    told: Counter[int] = Counter()
    for minute in range(MINUTES):
        for _ in range(A_MINUTE):
            open_ = [number for number in range(TERMINALS) if worker.refusal(till(number)) is None]
            codes = await asyncio.gather(*(guess(worker, till(number)) for number in open_))
            told[minute // 10] += codes.count(Code.RESOURCE_NOT_EXISTS)
            clock.advance(60 / A_MINUTE)
    return told


def assert_bounded(told: Counter[int]) -> None:
    """What 100 terminals may guess in ten minutes: 50 of the merchant, and two each."""
    assert max(told.values()) <= MERCHANT_MAX + STRICT_MAX * TERMINALS, told
    assert sum(told.values()) > 0


async def test_enumeration_from_a_hundred_terminals_is_bounded(client: Redis, clock: ManualClock) -> None:
    assert_bounded(await judged(Lockout(client, clock), clock))


class Unlocked(Lockout):
    """The control: the very same checkout, but nobody is ever locked."""

    def refusal(self, caller: Caller) -> Refusal | None:
        return None

    async def failed(self, caller: Caller) -> Refusal:
        return NO_SUCH_CODE


async def test_without_the_lockout_enumeration_goes_on(client: Redis, clock: ManualClock) -> None:
    told = await judged(Unlocked(client, clock), clock)
    assert sum(told.values()) == MINUTES * TERMINALS * A_MINUTE
    with pytest.raises(AssertionError):
        assert_bounded(told)


class PerTerminal(Lockout):
    """The control: five a terminal, and no net around the merchant."""

    async def failed(self, caller: Caller) -> Refusal:
        apart = Caller(kind="merchant", holder_id="", holder_no=1_000 + caller.terminal_no, terminal_no=1)
        return await super().failed(apart)

    def refusal(self, caller: Caller) -> Refusal | None:
        return super().refusal(till(1, merchant=1_000 + caller.terminal_no))


async def test_a_slow_crowd_is_only_seen_by_the_net(client: Redis, clock: ManualClock) -> None:
    """Four guesses in ten minutes from each of 100 terminals: none of them is ever locked for its own sake."""

    async def slow(worker: Lockout) -> int:
        passed = 0
        for _ in range(4 * 3):
            codes = await asyncio.gather(*(guess(worker, till(number)) for number in range(TERMINALS)))
            passed += codes.count(Code.RESOURCE_NOT_EXISTS)
            clock.advance(WINDOW_S / 4)
        return passed

    assert await slow(PerTerminal(client, clock)) == 3 * 4 * TERMINALS
    await client.flushall()
    assert await slow(Lockout(client, clock)) <= 3 * STRICT_MAX * TERMINALS + MERCHANT_MAX


# ---------------------------------------------------------------- the script against a model


class Model:
    """The rule in words of Python: times are kept for good, and looked through."""

    def __init__(self) -> None:
        self.bad: dict[object, list[int]] = defaultdict(list)
        self.locked: dict[Terminal, int] = {}

    def count(self, terminal: Terminal, now: int, limits: tuple[int, int, int]) -> tuple[int, int]:
        until = self.locked.get(terminal, 0)
        if until > now:
            return until, 1
        for sender in (terminal, terminal.merchant_no):
            self.bad[sender].append(now)
        of_terminal = sum(now - at < WINDOW_S * 1000 for at in self.bad[terminal])
        of_merchant = sum(now - at < WINDOW_S * 1000 for at in self.bad[terminal.merchant_no])
        if of_terminal >= limits[0] or (of_merchant >= limits[1] and of_terminal >= limits[2]):
            self.locked[terminal] = now + LOCK_S * 1000
            return now + LOCK_S * 1000, 0
        return 0, 0


@pytest.mark.parametrize("limits", [(5, 50, 2), (3, 6, 2), (2, 2, 1), (1, 1, 1)])
async def test_the_script_does_what_the_rule_says(client: Redis, limits: tuple[int, int, int]) -> None:
    random_, model = random.Random(7), Model()
    count = ScriptRunner(client, Path(lockout.__file__).with_name("lockout.lua").read_text(encoding="utf-8"))
    now = to_ms(NOON)
    for _ in range(100):
        now += random_.choice((0, 1, 1_000, 30_000, 120_000, 599_999, 600_000))
        batch = [Terminal(random_.randrange(2), random_.randrange(4)) for _ in range(random_.choice((1, 1, 2, 9)))]
        numbers = [number for terminal in batch for number in terminal]
        answer = await count(TAG, [now, WINDOW_S * 1000, LOCK_S * 1000, *limits, *numbers])
        assert list(zip(answer[::2], answer[1::2], strict=True)) == [
            model.count(terminal, now, limits) for terminal in batch
        ]


# ---------------------------------------------------------------- the store is away


@pytest.fixture
def away(clock: ManualClock) -> Callable[[int], Lockout]:
    """Makes workers whose Valkey is not there."""
    return lambda workers: Lockout(open_valkey("redis://127.0.0.1:1/0"), clock, workers=workers)


@pytest.mark.parametrize(("workers", "each"), [(1, 5), (2, 2), (3, 1), (5, 1), (8, 1)])
async def test_without_the_store_each_worker_has_its_share(
    away: Callable[[int], Lockout], workers: int, each: int
) -> None:
    crowd = [away(workers) for _ in range(workers)]
    async with crowd[0].kept_fresh():  # starts all the same
        for worker in crowd:
            told = await guesses(worker, till(), 8)
            assert told == [Code.RESOURCE_NOT_EXISTS] * each + [Code.TERMINAL_LOCKED] * (8 - each)
    assert workers * each <= max(TERMINAL_MAX, workers)


async def test_without_the_store_a_flood_gets_no_more_than_the_share(away: Callable[[int], Lockout]) -> None:
    worker = away(2)
    await worker.refresh()
    told = Counter(await asyncio.gather(*(guess(worker, till()) for _ in range(50))))
    assert told == {Code.RESOURCE_NOT_EXISTS: 2, Code.TERMINAL_LOCKED: 48}


async def test_without_the_store_the_net_holds(away: Callable[[int], Lockout], clock: ManualClock) -> None:
    assert_bounded(await judged(away(1), clock))


async def test_valkey_is_killed_and_comes_back(tmp_path: Path, clock: ManualClock) -> None:
    """What was locked stays locked, what was counted stays counted, and what came meanwhile is not forgotten."""
    async with stores.valkey(tmp_path) as running:
        worker = Lockout(running.client, clock)
        await guesses(worker, till(1), TERMINAL_MAX)
        await guesses(worker, till(2), 3)
        running.child.kill()
        await worker.refresh()
        assert worker.refusal(till(1)) is not None
        assert await guesses(worker, till(2), 3) == [Code.RESOURCE_NOT_EXISTS] * 2 + [Code.TERMINAL_LOCKED]
        assert await guesses(worker, till(3), 4) == [Code.RESOURCE_NOT_EXISTS] * 4
        again = Child(running.server.program())
        try:
            await again.ready()
            fresh = Lockout(running.client, clock)
            await fresh.refresh()
            assert fresh.refusal(till(1)) is not None, "the log has it"
            assert await guesses(fresh, till(2), 3) == [Code.RESOURCE_NOT_EXISTS] * 2 + [Code.TERMINAL_LOCKED]
            assert await guesses(worker, till(3), 2) == [Code.RESOURCE_NOT_EXISTS, Code.TERMINAL_LOCKED]
        finally:
            again.kill()


async def test_a_store_that_hangs_delays_a_wrong_code_and_counts_it(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lockout, "COUNT_WITHIN_S", 0.2)
    closed = asyncio.Event()

    async def takes_and_never_answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        closed.set()

    async with asyncio.timeout(5), await asyncio.start_server(takes_and_never_answers, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with open_valkey(f"redis://127.0.0.1:{port}/0") as silent:
            worker = Lockout(silent, clock)
            told = await asyncio.gather(*(guess(worker, till()) for _ in range(9)))
            assert Counter(told) == {Code.RESOURCE_NOT_EXISTS: 5, Code.TERMINAL_LOCKED: 4}
        await closed.wait()


async def test_a_tally_is_bounded() -> None:
    tally = Tally(keep=5, senders_max=100)
    for at_ms in range(1_000):
        tally.add(at_ms % 300, at_ms)
        tally.add("busy", at_ms)
    assert len(tally) == 100
    assert tally.count("busy", 0) == 5, "who was quiet longest is forgotten first"
    assert tally.count(999 % 300, 998) == 1
    assert tally.count(0, 0) == 0


# ---------------------------------------------------------------- an operator lets go


async def test_an_operator_lets_a_terminal_go(client: Redis, clock: ManualClock) -> None:
    first, second = Lockout(client, clock), Lockout(client, clock)
    await guesses(first, till(), TERMINAL_MAX)
    await second.refresh()
    clock.advance(30)
    assert await let_go(client, Terminal(1, 1), "li.na", clock.now_ms())
    for worker in (first, second):
        assert worker.refusal(till()) is not None
        await worker.refresh()
        assert worker.refusal(till()) is None
    assert await guesses(first, till(), TERMINAL_MAX + 1) == [Code.RESOURCE_NOT_EXISTS] * 5 + [Code.TERMINAL_LOCKED]
    clock.advance(1)
    await first.refresh()
    assert first.refusal(till()) is not None, "letting go once is not letting go for ever"
    [record] = await read_record(client, 10)
    assert (record.terminal, record.by, record.was_locked) == (Terminal(1, 1), "li.na", True)
    assert not await let_go(client, Terminal(9, 9), "li.na", clock.now_ms())


async def test_what_a_worker_locked_alone_is_let_go_too(tmp_path: Path, clock: ManualClock) -> None:
    async with stores.valkey(tmp_path) as running:
        running.child.kill()
        worker = Lockout(running.client, clock)
        await guesses(worker, till(), TERMINAL_MAX)
        again = Child(running.server.program())
        try:
            await again.ready()
            await worker.refresh()
            assert worker.refusal(till()) is not None
            clock.advance(1)
            await let_go(running.client, Terminal(1, 1), "li.na", clock.now_ms())
            await worker.refresh()
            assert worker.refusal(till()) is None
        finally:
            again.kill()
