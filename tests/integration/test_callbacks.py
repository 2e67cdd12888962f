"""From a fact in the books to the partner's endpoint: what is written down, sent, retried, given up, sent again."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from datetime import timedelta
from functools import partial
from http.server import HTTPServer
from pathlib import Path

import asyncpg
import pytest

from issuer.callbacks.desk import (
    Refused,
    Wish,
    dead_letters,
    queues,
    redeliver,
    redeliver_since,
    rotate,
    subscribe,
    unsubscribe,
)
from issuer.callbacks.envelope import CallbackKey
from issuer.callbacks.event import EventKey, Kind
from issuer.callbacks.outbox import Outbox
from kernel.clock import ManualClock, SystemClock
from redemption.settlement.expire import EXPIRY_GRACE, expire_over
from tests import stores
from tests.callback_world import (
    CODES,
    MASTER_KEY,
    Receiver,
    Taken,
    World,
    as_keys,
    eventually,
    guides_example,
    open_world,
    take,
)
from tests.town import DAY, VALID_DAYS, at, later

AFTER = at(later(VALID_DAYS)) + EXPIRY_GRACE + timedelta(hours=1)


@pytest.fixture
async def world(database: stores.Database) -> AsyncIterator[World]:
    async with open_world(database) as opened:
        yield opened


def turn(world: World, seconds: float) -> None:
    """Moves the world's clock."""
    assert isinstance(world.clock, ManualClock)
    world.clock.advance(seconds)


# ---------------------------------------------------------------- what is told


async def test_each_kind_of_event_arrives_in_the_order_of_the_facts(world: World) -> None:
    town, shop = world.town, world.town.merchants[0]
    wepay, alipal = await world.subscribe("wepay"), await world.subscribe("alipal")
    used, unused, never_back = [*(await world.claim(2, bucket=1)), *(await world.claim(1, stock_no=2))]
    sales = await town.redeem([used], shop, at(DAY, 14), bucket=1)
    assert await town.refund(sales, at(DAY, 15)) == ["REFUNDED"]
    await town.redeem([used], shop, at(DAY, 16), bucket=1)
    lost = await town.redeem([never_back], shop, at(DAY, 14), stock_no=2)
    assert await town.refund(lost, at(DAY, 15)) == ["REFUNDED"]
    await expire_over(town.conn, AFTER)
    assert isinstance(world.clock, ManualClock)
    world.clock.set(AFTER)
    async with world.sending():
        await eventually(lambda: len(wepay.taken) == 6 and len(alipal.taken) == 3)
        await world.settled()
    told = [(call.kind, call.voucher["voucher_state"], call.voucher.get("merchant_id")) for call in wepay.taken]
    code = CODES.encode(used)
    mine = [each for each, call in zip(told, wepay.taken, strict=True) if call.voucher["voucher_code"] == code]
    assert mine == [
        ("CLAIMED", "EFFECTIVE", None),
        ("USED", "USED", "M0001"),
        ("REFUNDED", "EFFECTIVE", "M0001"),
        ("USED", "USED", "M0001"),
    ]
    (expired,) = [call.voucher for call in wepay.taken if call.kind == "EXPIRED"]
    assert (expired["voucher_code"], expired["voucher_state"]) == (CODES.encode(unused), "EXPIRED")
    assert [(call.kind, call.voucher["voucher_state"]) for call in alipal.taken] == [
        *(("CLAIMED", "EFFECTIVE"), ("USED", "USED"), ("REFUNDED", "RETURNED"))
    ]
    back = alipal.taken[-1].voucher
    assert (back["bill_fen"], back["subsidy_fen"], back["refund_fen"]) == (6_800, 2_000, 6_800)
    assert (back["out_request_no"], back["occurred_at"]) == (f"CLAIM-{never_back}", "2020-04-20T15:00:00+08:00")


async def test_who_does_not_subscribe_costs_no_row(world: World) -> None:
    town, shop = world.town, world.town.merchants[0]
    await world.subscribe("alipal", [Kind.USED])

    async def live(count: int, stock_no: int) -> None:
        ids = await town.issue(count, stock_no=stock_no)
        sales = await town.redeem(ids, shop, at(DAY, 14), stock_no=stock_no)
        await town.refund(sales[:1], at(DAY, 15))
        await town.issue(1, stock_no=stock_no)

    await live(3, stock_no=1)
    await live(2, stock_no=2)
    await unsubscribe(world.operator, "alipal", world.clock.now())
    await live(2, stock_no=2)
    await expire_over(town.conn, AFTER)
    assert [(row["partner_no"], row["kind"]) for row in await world.events()] == [(2, "USED")] * 2
    assert await town.conn.fetchval("SELECT count(*) FROM callback_expiry") == 0


async def test_a_transaction_that_is_rolled_back_leaves_no_event(world: World) -> None:
    town, shop = world.town, world.town.merchants[0]
    await world.subscribe("wepay")
    sales = await town.sell(shop, DAY)
    ids = await town.issue(1)
    before = await world.events()
    steps: dict[str, Callable[[], Awaitable[object]]] = {
        "claim": world.claim,
        "redeem": lambda: town.redeem(ids, shop, at(DAY, 14)),
        "refund": lambda: town.refund(sales, at(DAY, 15)),
        "expire": lambda: town.conn.execute("SELECT expire_stock(0::smallint, 1, $1)", AFTER),
    }
    for name, step in steps.items():
        transaction = town.conn.transaction()
        await transaction.start()
        await step()
        written = len(await world.events()) + await town.conn.fetchval("SELECT count(*) FROM callback_expiry")
        assert written == len(before) + 1, name
        await transaction.rollback()
        assert await world.events() == before, name
        assert await town.conn.fetchval("SELECT count(*) FROM callback_expiry") == 0


async def test_a_refused_or_repeated_request_tells_nothing(world: World) -> None:
    town, (shop, other, *_) = world.town, world.town.merchants
    await world.subscribe("wepay", [Kind.USED, Kind.REFUNDED])
    ids = await town.issue(1)
    sales = await town.redeem(ids, shop, at(DAY, 14))
    sales += await town.redeem(ids, shop, at(DAY, 14))
    assert [sale.outcome for sale in sales] == ["DONE", "USED"]
    await town.redeem(ids, other, at(DAY, 15))
    assert await town.refund(sales[:1], at(DAY, 16), numbers=["REF-1"]) == ["REFUNDED"]
    assert await town.refund(sales[:1], at(DAY, 17), numbers=["REF-1"]) == ["REPLAYED"]
    assert await town.refund(sales[:1], at(DAY, 17), numbers=["REF-2"]) == ["ALREADY_REFUNDED"]
    assert [row["kind"] for row in await world.events()] == ["USED", "REFUNDED"]


async def test_expiry_is_turned_into_events_part_by_part_and_once(world: World) -> None:
    town, shop = world.town, world.town.merchants[0]
    await world.subscribe("wepay", [Kind.EXPIRED])
    unused = set(await town.issue(20))
    await town.issue(5, stock_no=2)
    await town.sell(shop, DAY, 4)
    lives_again = await town.sell(shop, DAY, 2)
    await town.refund(lives_again, at(DAY, 15))
    await expire_over(town.conn, AFTER)
    outboxes = [await world.outbox(), await world.outbox()]

    async def unfold(outbox: Outbox) -> int:
        parts = 0
        while await outbox.unfold(3):
            parts += 1
        return parts

    parts = await asyncio.gather(*map(unfold, outboxes))
    rows = await world.events()
    assert sum(parts) >= 10
    assert {row["voucher_id"] for row in rows} == unused | {sale.voucher_id for sale in lives_again}
    assert {row["attempt"] for row in rows} == {0, 1}
    assert not await outboxes[0].unfold(3)


# ---------------------------------------------------------------- retries, dead letters, sending again


async def test_failures_are_tried_again_by_the_schedule_and_then_given_up(world: World) -> None:
    receiver = await world.subscribe("wepay", schedule=(10, 20, 40))

    async def refuse(call: Taken) -> int:
        return 500

    receiver.answer = refuse
    (voucher_id,) = await world.claim()
    async with world.sending():
        for tries, wait_s in ((1, 10), (2, 20), (3, 40)):
            await eventually(partial(has_calls, receiver, tries))
            await is_due_in(world, tries, wait_s)
            turn(world, wait_s - 1)
            await asyncio.sleep(0.1)
            assert len(receiver.calls) == tries, "not a second too early"
            turn(world, 1)
        await world.settled()
        (letter,) = await dead_letters(world.operator, "wepay", 10)
        event_id = str(EventKey(voucher_id, 0, Kind.CLAIMED))
        assert (letter.event_id, letter.tries, letter.last_error) == (event_id, 4, "HTTP 500 said the partner")
        assert {call.id for call in receiver.calls} == {event_id}
        receiver.answer = take
        assert await redeliver(world.operator, event_id, world.clock.now()) is None
        await eventually(lambda: len(receiver.taken) == 1)
        await world.settled()
    (row,) = await world.events()
    assert (row["tries"], row["delivered_at"], row["last_error"]) == (1, world.clock.now(), None)
    assert await dead_letters(world.operator, None, 10) == []


def has_calls(receiver: Receiver, count: int) -> bool:
    return len(receiver.calls) == count


async def is_due_in(world: World, tries: int, wait_s: int) -> None:
    """Waits until the failed attempt is on record with the time of the next one."""
    expected = (tries, world.clock.now() + timedelta(seconds=wait_s))
    async with asyncio.timeout(60):
        while [(row["tries"], row["next_at"]) for row in await world.events()] != [expected]:
            await asyncio.sleep(0.01)


async def test_dead_letters_of_a_partner_since_a_time_are_sent_again(world: World) -> None:
    receiver = await world.subscribe("wepay", [Kind.CLAIMED, Kind.USED])
    ids = await world.claim(3)
    await world.town.redeem(ids[:2], world.town.merchants[0], at(DAY, 11))
    await world.town.conn.execute(
        "UPDATE callback_event SET next_at = NULL, died_at = happened_at, last_error = 'x' WHERE kind = 'USED'"
    )
    now, noon = world.clock.now(), at(DAY)
    async with world.sending():
        await world.settled()
        assert {call.kind for call in receiver.taken} == {"CLAIMED"}
        assert await redeliver_since(world.operator, "wepay", noon, now, delivered_too=False) == 0
        assert await redeliver_since(world.operator, "wepay", at(DAY, 10), now, delivered_too=False) == 2
        await eventually(lambda: len(receiver.taken) == 5)
        await world.settled()
        assert await redeliver_since(world.operator, "wepay", at(DAY, 0), now, delivered_too=True) == 5
        await eventually(lambda: len(receiver.taken) == 10)
        await world.settled()
    assert len({call.id for call in receiver.taken}) == 5
    for refused in (
        await redeliver_since(world.operator, "nobody", noon, now, delivered_too=False),
        await redeliver(world.operator, "not an id", now),
        await redeliver(world.operator, str(EventKey(99, 0, Kind.CLAIMED)), now),
    ):
        assert isinstance(refused, Refused)


async def test_what_cannot_be_told_any_more_is_a_dead_letter_at_once(world: World) -> None:
    """Say, of a round whose tables were detached before everything was delivered."""
    await world.subscribe("wepay")
    await world.town.conn.execute(
        "INSERT INTO callback_event (bucket, voucher_id, attempt, kind, partner_no, happened_at, next_at)"
        " VALUES (0, 1, 0, 'CLAIMED', 1, $1, $1)",
        at(DAY, 1),
    )
    async with world.sending():
        await world.settled()
    (letter,) = await dead_letters(world.operator, None, 10)
    assert "are gone" in letter.last_error


# ---------------------------------------------------------------- subscriptions and keys


async def test_a_subscription_that_ends_stops_and_goes_on_where_it_was(world: World) -> None:
    receiver = await world.subscribe("wepay")
    await world.claim(2)
    assert await unsubscribe(world.operator, "wepay", world.clock.now()) is None
    assert isinstance(await unsubscribe(world.operator, "wepay", world.clock.now()), Refused)
    async with world.sending():
        await asyncio.sleep(0.3)
        assert (receiver.calls, await world.waiting()) == ([], 2)
        elsewhere = await world.receiver()
        elsewhere.keys = receiver.keys
        await world.subscribe_at("wepay", elsewhere.url, elsewhere)
        await eventually(lambda: len(elsewhere.taken) == 2)
    assert receiver.calls == []


async def test_a_new_key_takes_over_when_its_time_has_come(world: World) -> None:
    receiver = await world.subscribe("wepay")
    (old,) = receiver.keys
    key = await rotate(world.operator, MASTER_KEY, "wepay", world.clock.now() + timedelta(hours=1))
    assert isinstance(key, CallbackKey)
    receiver.keys |= as_keys(key)
    async with world.sending():
        await world.claim()
        await eventually(lambda: len(receiver.taken) == 1)
        turn(world, 3_600)
        await asyncio.sleep(1.2)
        await world.claim()
        await eventually(lambda: len(receiver.taken) == 2)
    assert [call.headers["Hanquan-Serial"] for call in receiver.taken] == [old, key.serial_no]


async def test_a_key_that_does_not_open_stops_its_own_partner_only(world: World) -> None:
    await world.subscribe("wepay")
    fine = await world.subscribe("alipal")
    await world.town.conn.execute("UPDATE callback_key SET key_material = '\\x00' WHERE partner_no = 1")
    await world.claim()
    await world.claim(stock_no=2)
    async with world.sending():
        await eventually(lambda: len(fine.taken) == 1)
    assert await world.waiting() == 1


async def test_a_bad_subscription_is_refused_and_leaves_nothing(world: World) -> None:
    fine = "https://example.com/"
    for partner, wish, why in (
        ("nobody", Wish(url=fine), "there are: alipal, wepay"),
        ("wepay", Wish(url="http://example.com/"), "must begin with https"),
        ("wepay", Wish(url="https://127.0.0.1/"), "not a public address"),
        ("wepay", Wish(url=fine, kinds=()), "at least one kind"),
        ("wepay", Wish(url=fine, retry_after_s=()), "1 to 100 entries"),
        ("wepay", Wish(url=fine, retry_after_s=(10, 0)), "above zero"),
    ):
        done = await subscribe(world.operator, MASTER_KEY, partner, wish, world.clock.now())
        assert isinstance(done, Refused)
        assert why in done.detail
    assert await world.town.conn.fetchval("SELECT count(*) FROM callback_subscription") == 0


async def test_rights_end_where_the_work_ends(world: World) -> None:
    await world.subscribe("wepay")
    forbidden = {
        "hanquan_redemption": ["SELECT url FROM callback_subscription", "UPDATE callback_event SET tries = 0"],
        "hanquan_issuer": ["UPDATE callback_event SET voucher_id = 1", "DELETE FROM callback_event"],
        "hanquan_operator": ["SELECT key_material FROM callback_key", "DELETE FROM callback_event"],
        "hanquan_auditor": ["SELECT * FROM callback_key", "UPDATE callback_event SET tries = 0"],
        "hanquan_finance": ["SELECT * FROM callback_event"],
    }
    for role, statements in forbidden.items():
        async with world.database.connection(role) as conn:
            for statement in statements:
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await conn.execute(statement)


async def test_the_operator_sees_each_queue(world: World) -> None:
    await world.subscribe("wepay")
    await world.claim(3)
    await world.town.conn.execute(
        "UPDATE callback_event SET next_at = NULL, died_at = now()"
        " WHERE voucher_id = (SELECT min(voucher_id) FROM voucher)"
    )
    (queue,) = await queues(world.operator, world.clock.now())
    assert (queue.partner_id, queue.waiting, queue.due, queue.dead, queue.delivered) == ("wepay", 2, 2, 1, 0)
    assert queue.oldest_at == at(DAY, 0, 30)


# ---------------------------------------------------------------- the guide


async def test_the_receiver_in_the_guide_keeps_an_event_once(
    database: stores.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    guide = guides_example()
    server = guide["ThreadingHTTPServer"](("127.0.0.1", 0), guide["Receiver"])
    async with open_world(database, SystemClock()) as world, serving_in_a_thread(server):
        nobody = await world.receiver()
        await world.subscribe_at("wepay", f"http://127.0.0.1:{server.server_port}/", nobody)
        guide["KEYS"] |= nobody.keys
        (voucher_id,) = await world.claim()
        event_id = str(EventKey(voucher_id, 0, Kind.CLAIMED))
        async with world.sending():
            await world.settled()
            await redeliver(world.operator, event_id, world.clock.now())
            await world.settled()
        guide["KEYS"].clear()
        await redeliver(world.operator, event_id, world.clock.now())
        async with world.sending():
            await eventually_refused(world, "HTTP 401")
    with closing(sqlite3.connect(tmp_path / "events.db")) as db:
        ((kept_id, kind, voucher),) = db.execute("SELECT * FROM event").fetchall()
    assert (kept_id, kind, json.loads(voucher)["voucher_code"]) == (
        event_id,
        "VOUCHER.CLAIMED",
        CODES.encode(voucher_id),
    )


@asynccontextmanager
async def serving_in_a_thread(server: HTTPServer) -> AsyncIterator[None]:
    """The standard library's server at work inside the block."""
    serving_it = asyncio.create_task(asyncio.to_thread(server.serve_forever, 0.05))
    try:
        yield
    finally:  # a thread that serves for ever would be waited for for ever
        await asyncio.to_thread(server.shutdown)
        await serving_it
        server.server_close()


async def eventually_refused(world: World, error: str) -> None:
    """Waits until the one event has failed that way."""
    while (await world.events())[0]["last_error"] != error:
        await asyncio.sleep(0.02)
