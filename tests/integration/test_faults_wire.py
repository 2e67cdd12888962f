"""The wire between a service and its store: what it loses, holds back and cuts, and what it lets through."""

from collections.abc import AsyncIterator
from time import monotonic

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as ConnectionLost

from kernel.valkey import open_valkey
from tests import stores
from tests.proxy import Where, Wire, wire_to


@pytest.fixture
async def wired(valkey: stores.Valkey) -> AsyncIterator[tuple[Wire, Redis]]:
    """A wire to a Valkey, and a client at its near end."""
    async with wire_to(valkey.url) as wire:
        client = open_valkey(wire.url(valkey.url))
        yield wire, client
        await client.aclose()


Wired = tuple[Wire, Redis]


async def test_it_passes_everything_on(wired: Wired) -> None:
    _, client = wired
    large = b"x" * 300_000
    await client.set("large", large)
    assert await client.get("large") == large


async def test_a_lost_reply_was_to_work_that_is_done(wired: Wired) -> None:
    wire, client = wired
    wire.lose_reply_to(b"INCR")
    assert await client.get("n") is None
    with pytest.raises(ConnectionLost):
        await client.incr("n")
    assert (await client.get("n"), wire.lost, wire.armed) == (b"1", 1, False)
    wire.lose(b":2\r\n")
    with pytest.raises(ConnectionLost):
        await client.incr("n")
    assert await client.get("n") == b"2"


@pytest.mark.parametrize("passes", [True, False])
async def test_a_trap_at_the_request_decides_whether_it_arrives(wired: Wired, passes: bool) -> None:
    wire, client = wired
    wire.trap(Where.REQUEST, b"INCR", lambda: passes)
    if passes:
        await client.incr("n")
    else:
        with pytest.raises(ConnectionLost):
            await client.incr("n")
    assert await client.get("n") == (b"1" if passes else None)
    assert wire.sprung == 1


async def test_traps_taken_back_do_nothing(wired: Wired) -> None:
    wire, client = wired
    wire.lose_reply_to(b"INCR")
    wire.disarm()
    assert await client.incr("n") == 1


async def test_a_cut_wire_is_there_for_the_next_connection(wired: Wired) -> None:
    wire, client = wired
    await client.ping()
    assert wire.cut() == 1
    with pytest.raises(ConnectionLost):
        await client.ping()
    assert await client.ping()


async def test_replies_are_held_back(wired: Wired) -> None:
    wire, client = wired
    await client.ping()
    wire.delay = lambda: 0.1
    started = monotonic()
    await client.ping()
    assert monotonic() - started >= 0.1
