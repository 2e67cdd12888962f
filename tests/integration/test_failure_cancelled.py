"""Tasks are cancelled and clients go away in mid-command; whoever comes next gets their own reply and nobody else's."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from random import Random

import msgspec
import pytest
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection

from issuer.app import make_app
from kernel.valkey import open_valkey
from tests import stores
from tests.city import City, open_city
from tests.crowds import AGREED, crowd_of, weigh_known
from tests.proxy import Where, Wire, wire_to

CALLS = 60
CONNECTIONS = 4

Echo = Callable[[str], Awaitable[object]]


@pytest.fixture
async def slow(valkey: stores.Valkey) -> AsyncIterator[Wire]:
    """A wire whose replies take up to 5 ms."""
    random = Random(13)
    async with wire_to(valkey.url) as wire:
        wire.delay = lambda: random.random() * 0.005
        yield wire


async def mixed_up(echo: Echo, wire: Wire) -> int:
    """Calls one after the other on every connection; every third is cancelled between its request and its reply.
    How many got another's reply."""
    random, mixed = Random(17), list[str]()

    async def ask(text: str) -> None:
        if await echo(text) != text.encode():
            mixed.append(text)

    async def ask_many(caller: int) -> None:
        for number in range(CALLS):
            text = f"caller-{caller}-call-{number}-"
            task = asyncio.create_task(ask(text))
            if number % 3 == 1:
                await _passed(wire, text)
                await asyncio.sleep(random.random() * 0.003)
                task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    await asyncio.gather(*(ask_many(caller) for caller in range(CONNECTIONS)))
    return len(mixed)


async def _passed(wire: Wire, text: str) -> None:
    """Waits until a request with this text has gone by."""
    passed = asyncio.Event()

    def note() -> bool:
        passed.set()
        return True

    wire.trap(Where.REQUEST, text.encode(), note)
    await passed.wait()


async def test_each_reply_is_for_its_own_call(valkey: stores.Valkey, slow: Wire) -> None:
    client = open_valkey(slow.url(valkey.url), connections=CONNECTIONS)
    try:
        assert await mixed_up(client.echo, slow) == 0
    finally:
        await client.aclose()


async def test_control_a_client_that_keeps_a_cancelled_connection_mixes_replies_up(
    valkey: stores.Valkey, slow: Wire
) -> None:
    client = open_valkey(slow.url(valkey.url), connections=CONNECTIONS)
    careless = Careless(client)
    try:
        assert await mixed_up(careless.echo, slow) > CALLS
    finally:
        await careless.close()
        await client.aclose()


class Careless:
    """Connections that go back to their pool with a reply still on its way."""

    def __init__(self, client: Redis) -> None:
        make: Callable[[], AbstractConnection] = client.connection_pool.make_connection
        self._idle = [make() for _ in range(CONNECTIONS)]
        self._all = [*self._idle]

    async def echo(self, text: str) -> object:
        connection = self._idle.pop()
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            await connection.send_command("ECHO", text)
            return await connection.read_response(disconnect_on_error=False)
        finally:
            self._idle.append(connection)

    async def close(self) -> None:
        for connection in self._all:
            await connection.disconnect()


async def test_clients_that_close_their_connections_mix_up_nobody(
    cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Over HTTP: half of them go away in mid-request; every answer carries its own request's id and number."""
    random = Random(19)
    async with open_city(cluster, tmp_path_factory.mktemp("gone")) as city, wire_to(city.valkey.url) as wire:
        wire.delay = lambda: random.random() * 0.01
        service = await _by(city, wire)
        crowd = crowd_of(city, "dining", services=[service])
        async with crowd.claims_go_on(8, pause_s=0):
            await crowd.go_away(200, 0.5)
        wire.delay = lambda: 0.0
        assert crowd.open, "nobody went away in time"
        await crowd.resolve()
        assert crowd.wrong == []
        assert await weigh_known(city, crowd) == AGREED
        await city.stack.aclose()


async def _by(city: City, wire: Wire) -> str:
    settings = msgspec.structs.replace(city.settings("hanquan_issuer"), valkey_url=wire.url(city.valkey.url))
    return await city.serve(await make_app(settings))
