"""Order, several senders, a slow partner, and a sender that is killed between sending and noting it.

Where a rule of the outbox is what keeps order, the control takes the rule away and must be caught.
"""

import asyncio
import os
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from random import Random
from time import monotonic

import aiohttp
import pytest

from issuer.callbacks import endpoint
from issuer.callbacks import outbox as outbox_module
from issuer.callbacks.event import Kind, parse_event_id
from kernel.clock import FileClock, ManualClock
from stack.child import Child, Program
from stack.ports import free_port
from tests import stores
from tests.callback_world import MASTER_KEY, Taken, World, eventually, open_world
from tests.town import DAY, at

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def world(database: stores.Database) -> AsyncIterator[World]:
    async with open_world(database) as opened:
        yield opened


async def lives(world: World, vouchers: int) -> int:
    """Vouchers claimed, used, given back and used again, in both buckets; how many events that makes."""
    town, shop = world.town, world.town.merchants[0]
    for bucket in (0, 1):
        ids = await world.claim(vouchers // 2, bucket=bucket)
        sales = await town.redeem(ids, shop, at(DAY, 9), bucket=bucket)
        await town.refund(sales, at(DAY, 10))
        await town.redeem(ids, shop, at(DAY, 11), bucket=bucket)
    return vouchers // 2 * 2 * 4


def out_of_order(calls: Sequence[Taken], taken: Sequence[Taken]) -> list[str]:
    """Events that were sent while an earlier one of their voucher had not been taken yet."""
    first_yes = {call.id: number for number, call in reversed(list(enumerate(calls))) if call in taken}
    lives_of: dict[int, list[str]] = defaultdict(list)
    for event_id in sorted({call.id for call in calls}, key=_place):
        lives_of[_place(event_id)[0]].append(event_id)
    first_sent = {call.id: number for number, call in reversed(list(enumerate(calls)))}
    return [
        later
        for events in lives_of.values()
        for place, later in enumerate(events)
        for earlier in events[:place]
        if first_sent[later] < first_yes.get(earlier, len(calls))
    ]


def _place(event_id: str) -> tuple[int, int, int]:
    key = parse_event_id(event_id)
    assert key is not None, event_id
    return key.voucher_id, key.attempt, list(Kind).index(key.kind)


async def storm(world: World) -> list[str]:
    """Two senders, a receiver that fails half of the time, a clock that jumps ahead; what came out of order."""
    random = Random(11)
    receiver = await world.subscribe("wepay", schedule=(1,) * 40)

    async def sometimes(call: Taken) -> int:
        await asyncio.sleep(random.random() / 200)
        return 204 if random.random() < 0.5 else 503

    receiver.answer = sometimes
    count = await lives(world, 20)
    async with world.sending(), world.sending():
        deadline = monotonic() + 60
        while await world.waiting():
            assert monotonic() < deadline
            assert isinstance(world.clock, ManualClock)
            world.clock.advance(1)
            await asyncio.sleep(0.02)
    assert {call.id for call in receiver.taken} == {call.id for call in receiver.calls}
    assert len({call.id for call in receiver.taken}) == count
    assert len(receiver.calls) > count, "nothing ever failed"
    return out_of_order(receiver.calls, receiver.taken)


async def test_a_vouchers_events_come_in_order_whatever_fails(world: World) -> None:
    assert await storm(world) == []


async def test_without_the_order_rule_it_is_seen(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the same storm with a lease that looks at no earlier event."""
    rule = "(b.attempt, b.kind, b.part) < (d.attempt, d.kind, d.part)"
    lease = outbox_module._queries["lease"]
    assert rule in lease
    monkeypatch.setattr(outbox_module, "_queries", {**_as_dict(), "lease": lease.replace(rule, "false")})
    assert await storm(world)


def _as_dict() -> dict[str, str]:
    return {name: outbox_module._queries[name] for name in outbox_module._queries}


async def test_several_senders_send_each_event_once(world: World) -> None:
    receiver = await world.subscribe("wepay")
    count = await lives(world, 60)
    async with world.sending(), world.sending(), world.sending():
        await world.settled()
    assert len(receiver.calls) == len({call.id for call in receiver.calls}) == count
    assert out_of_order(receiver.calls, receiver.taken) == []


async def test_a_partner_that_hangs_does_not_slow_another(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "DEADLINE_S", 2.0)
    hangs, quick = await world.subscribe("wepay"), await world.subscribe("alipal")
    hanging = asyncio.Event()

    async def hang(call: Taken) -> int:
        await hanging.wait()
        return 204

    hangs.answer = hang
    await world.claim(100)
    await world.claim(100, stock_no=2)
    started = monotonic()
    async with world.sending():
        await eventually(lambda: len(quick.taken) == 100)
        assert monotonic() - started < 10, "one behind the other, sixteen at a time, they would take 7 deadlines"
        await eventually(lambda: hangs.calls)
        assert not hangs.taken
        await asyncio.sleep(max(0.0, 2.3 - (monotonic() - started)))
        assert len(hangs.calls) <= 16 + 2 + (monotonic() - started) / 2, "while it fails it gets one at a time"
        hanging.set()
        await eventually(lambda: len(hangs.taken) > 50)


# ---------------------------------------------------------------- a process that is killed


def sender_process(world: World, folder: Path, exits: AsyncExitStack) -> Child:
    """`python -m issuer.callbacks` on the world's database and clock."""
    port = free_port()

    async def is_ready() -> bool:
        try:
            async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/readyz") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "HANQUAN_POSTGRES_DSN": world.database.dsn("hanquan_issuer"),
        "HANQUAN_VALKEY_URL": "redis://127.0.0.1:1",
        "HANQUAN_MASTER_KEY": MASTER_KEY.hex(),
        "HANQUAN_CODE_KEYS": "1:" + bytes(range(16)).hex(),
        "HANQUAN_CLOCK_FILE": str(folder / "clock"),
        "HANQUAN_PORT": str(port),
    }
    argv = (sys.executable, "-m", "issuer.callbacks")
    child = Child(
        Program(name="callbacks", argv=argv, env=env, folder=ROOT, log=folder / "callbacks.log", is_ready=is_ready)
    )
    exits.callback(child.kill)
    return child


async def test_a_sender_killed_before_it_noted_an_answer_sends_again_under_the_same_id(
    database: stores.Database, tmp_path: Path
) -> None:
    clock = FileClock(tmp_path / "clock")
    clock.move_to(at(DAY))
    async with open_world(database, clock) as world, AsyncExitStack() as exits:
        receiver = await world.subscribe("wepay")
        first = sender_process(world, tmp_path, exits)
        await first.ready()

        async def kill_first(call: Taken) -> int:
            first.kill()  # the event has arrived; its sender will never know
            return 204

        receiver.answer = kill_first
        await world.claim(5)
        assert await first.exited() != 0
        await eventually(lambda: receiver.calls)
        met = {call.id for call in receiver.calls}
        assert await world.waiting() == 5
        second = sender_process(world, tmp_path, exits)
        await second.ready()
        clock.move_to(clock.now() + timedelta(seconds=40))
        await world.settled()
        assert await second.stop() == 0
    ids = [call.id for call in receiver.calls]
    assert len(set(ids)) == 5, "nothing is lost"
    assert met <= {each for each in ids if ids.count(each) == 2}, "what was met twice has one id"
    assert max(ids.count(each) for each in ids) == 2
