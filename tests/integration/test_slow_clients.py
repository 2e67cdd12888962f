"""Slow, silent and hostile clients against the real services: closed in time, and nobody else notices.

The wire is spoken byte by byte here; no HTTP client would do what these do.
"""

import asyncio
import resource
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from statistics import median

import pytest
import pytest_asyncio
from aiohttp import web

from kernel import slow_clients
from kernel.errors import Code
from kernel.web import new_app, serving
from tests import stores
from tests.city import City, Reply, assert_problem, open_city, unchanged
from tests.city_plan import person
from tests.hostile import Ask

pytestmark = pytest.mark.asyncio(loop_scope="module")

SLOW = 2_000
CONTROLS = 50
CLAIM = Ask(
    "issuer",
    "wechat",
    "POST",
    "/v1/claims",
    {"out_request_no": "slowly-1", "stock_id": "dining", "person_token": person(0)},
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    async with open_city(cluster, tmp_path_factory.mktemp("slow")) as made:
        yield made


def port_of(service: str) -> int:
    return int(service.rpartition(":")[2])


# ---------------------------------------------------------------- two thousand at once


class Trickler(asyncio.Protocol):
    """A client that sends its headers a byte at a time, and notes when it was hung up on."""

    HEAD = b"POST /v1/claims HTTP/1.1\r\nHost: hanquan\r\nX-Slow: " + b"z" * 500

    def __init__(self) -> None:
        self.began_s = 0.0
        self.sent = 0
        self.answer = b""
        self.ended_after_s: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.began_s = time.perf_counter()

    def trickle(self) -> None:
        """One more byte."""
        if self.ended_after_s is None and not self.transport.is_closing():
            self.transport.write(self.HEAD[self.sent : self.sent + 1])
            self.sent += 1

    def data_received(self, data: bytes) -> None:
        self.answer += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended_after_s = time.perf_counter() - self.began_s


@asynccontextmanager
async def tricklers(port: int, count: int) -> AsyncIterator[list[Trickler]]:
    """So many of them, each sending a byte every half second while the block runs."""
    loop = asyncio.get_running_loop()
    made: list[Trickler] = []

    async def trickle() -> None:
        while True:
            for trickler in made:
                trickler.trickle()
            await asyncio.sleep(0.5)

    for _ in range(count // 50):
        pairs = [loop.create_connection(Trickler, "127.0.0.1", port) for _ in range(50)]
        made += [trickler for _, trickler in await asyncio.gather(*pairs)]
    task = asyncio.create_task(trickle())
    try:
        yield made
    finally:
        task.cancel()
        for trickler in made:
            trickler.transport.abort()


@asynccontextmanager
async def no_deadlines() -> AsyncIterator[int]:
    """The control: a server of the same library as it comes, and its port."""
    runner = web.AppRunner(web.Application())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def claims_s(city: City, service: str, start: int, for_s: float) -> list[float]:
    """Seconds that signed claims took, one after the other."""
    took: list[float] = []
    until_s = time.perf_counter() + for_s
    while time.perf_counter() < until_s:
        began_s = time.perf_counter()
        assert (await city.claim("mall", person(start + len(took)), service=service)).status == 200
        took.append(time.perf_counter() - began_s)
        await asyncio.sleep(0.02)
    return took


@asynccontextmanager
async def many_files() -> AsyncIterator[None]:
    """This process may open enough files for its own ends of the connections."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    slow_clients.raise_file_limit(SLOW + 1_000)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def test_two_thousand_tricklers_harm_nobody_and_are_closed_in_time(city: City) -> None:
    child, service = city.process("issuer", "hanquan_issuer")
    try:
        await child.ready()
        calm = await claims_s(city, service, 20_000, 0.6)
        async with (
            many_files(),
            no_deadlines() as careless,
            tricklers(port_of(service), SLOW) as slow,
            tricklers(careless, CONTROLS) as control,
        ):
            beset = await claims_s(city, service, 21_000, slow_clients.HEAD_S + 2.0)
            async with asyncio.timeout(60):
                while any(trickler.ended_after_s is None for trickler in slow):
                    await asyncio.sleep(0.1)
            assert [trickler for trickler in control if trickler.ended_after_s is not None] == []
            ended = [trickler.ended_after_s for trickler in slow]
        calm += await claims_s(city, service, 22_000, 0.6)
        in_time_s = 3 * slow_clients.HEAD_S  # one and a sweep, and room for a machine that is slow
        assert all(seconds is not None and seconds < in_time_s for seconds in ended), sorted(map(str, ended))[-3:]
        assert min(seconds or 0 for seconds in ended) > slow_clients.HEAD_S - 1
        assert {trickler.answer.partition(b"\r\n")[0] for trickler in slow} == {b"HTTP/1.1 408 Request Timeout"}
        assert median(beset) < 4 * median(calm) + 0.05, (median(beset), median(calm))
    finally:
        child.kill()


# ---------------------------------------------------------------- one of each kind


@asynccontextmanager
async def connected(
    port: int, count: int = 1
) -> AsyncIterator[list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]:
    """Connections, all cut off at the end of the block."""
    made = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
    try:
        yield made
    finally:
        for _, writer in made:
            writer.transport.abort()


async def talk(service: str, data: bytes, *, half_close: bool = False, within_s: float = 30.0) -> bytes:
    """What comes back until the service hangs up; TimeoutError if it does not."""
    async with connected(port_of(service)) as [(reader, writer)], asyncio.timeout(within_s):
        writer.write(data)
        if half_close:
            writer.write_eof()
        with suppress(ConnectionError):
            return await reader.read()
        return b""


def reading_of(writer: asyncio.StreamWriter) -> asyncio.ReadTransport:
    assert isinstance(writer.transport, asyncio.ReadTransport)
    return writer.transport


async def read_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """What still comes, up to the end or to being cut off."""
    reading_of(writer).resume_reading()
    pieces = []
    with suppress(ConnectionError):
        while piece := await reader.read(1 << 20):
            pieces.append(piece)
    return b"".join(pieces)


def wire(city: City, *, version: str = "1.1", last: bool = True, body: bytes = CLAIM.data) -> bytes:
    """A signed claim as bytes."""
    lines = [
        f"{CLAIM.method} {CLAIM.path} HTTP/{version}",
        "Host: hanquan",
        f"Authorization: {CLAIM.authorization(city, CLAIM.data)}",
        f"Content-Length: {len(CLAIM.data)}",
        *(["Connection: close"] if last else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def read(answer: bytes) -> Reply:
    """One answer as it came over the wire."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *fields = head.decode().split("\r\n")
    return Reply(int(first.split()[1]), body, dict(field.split(": ", 1) for field in fields))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same deadlines, shorter."""
    for name, seconds in {"HEAD_S": 0.3, "IDLE_S": 0.6, "WRITE_S": 0.5, "SWEEP_EVERY_S": 0.05}.items():
        monkeypatch.setattr(slow_clients, name, seconds)


async def test_who_says_nothing_is_hung_up_on(city: City, impatient: None) -> None:
    assert await talk(await city.new_issuer(), b"") == b""


async def test_who_says_nothing_more_is_hung_up_on(city: City, impatient: None) -> None:
    for way in (wire(city, last=False), wire(city, last=False) + wire(city, last=False)):
        answer = await talk(await city.new_issuer(), way)
        assert answer.count(b"HTTP/1.1 200 OK") == way.count(b"HTTP/1.1")


async def test_who_trickles_after_a_request_is_too_slow_too(city: City, impatient: None) -> None:
    answer = await talk(await city.new_issuer(), wire(city, last=False) + b"POST /v1/cl")
    assert answer.startswith(b"HTTP/1.1 200 OK")


async def test_who_reads_nothing_is_cut_off(city: City, impatient: None) -> None:
    app = new_app(city.clock)

    async def much(request: web.Request) -> web.Response:
        return web.Response(body=b"x" * 50_000_000)

    app.router.add_get("/much", much)
    service = await city.serve(app)
    async with connected(port_of(service)) as [(reader, writer)]:
        writer.write(b"GET /much HTTP/1.1\r\nHost: x\r\n\r\n")
        reading_of(writer).pause_reading()
        await asyncio.sleep(1.2)
        assert len(await read_all(reader, writer)) < 50_000_000


async def test_who_closes_their_half_is_answered(city: City) -> None:
    """As `nc -N` does: all sent, nothing more to say, waiting for the answer."""
    for last in (True, False):
        assert read(await talk(city.issuer, wire(city, last=last), half_close=True)).status == 200
    halves = wire(city).partition(b"\r\n\r\n")
    for cut in (wire(city, body=b""), wire(city, body=CLAIM.data[:-9]), halves[0]):
        async with unchanged(city):
            assert not (await talk(city.issuer, cut, half_close=True)).startswith(b"HTTP/1.1 200")


async def test_pipelined_requests_are_answered_in_order_and_garbage_behind_them_ends_it(city: City) -> None:
    for count in (2, 5, 40):
        answer = await talk(city.issuer, wire(city, last=False) * (count - 1) + wire(city))
        assert answer.count(b"HTTP/1.1 200 OK") == count
    async with connected(port_of(city.issuer)) as [(reader, writer)], asyncio.timeout(30):
        for _ in range(5):  # while the one before is under way
            writer.write(wire(city, last=False))
            await asyncio.sleep(0.001)
        writer.write(b"\x00\x01garbage\r\n\r\n")
        answer = await reader.read()
    assert [answer.count(b"HTTP/1.1 200 OK"), answer.count(b" 400 Bad Request")] == [5, 1]


async def test_http_1_0_is_spoken(city: City) -> None:
    reply = read(await talk(city.issuer, wire(city, version="1.0", last=False)))
    assert (reply.status, len(reply.body)) == (200, int(reply.headers["Content-Length"]))


async def test_both_ways_give_the_same_answer(city: City) -> None:
    """Whole in one piece: the short way. In pieces, chunked, with Expect: aiohttp's own."""
    short = read(await talk(city.issuer, wire(city)))
    async with connected(port_of(city.issuer)) as [(reader, writer)]:
        whole = wire(city)
        for piece in (whole[:200], whole[200:-5], whole[-5:]):
            writer.write(piece)
            await asyncio.sleep(0.05)
        long = read(await reader.read())
    by_chance = {"Date", "X-Request-Id", "Server"}
    assert (short.status, short.body) == (long.status, long.body)
    assert short.headers.keys() - by_chance == long.headers.keys() - by_chance
    assert short.headers["Idempotent-Replayed"] == long.headers["Idempotent-Replayed"] == "true"


async def test_what_is_not_http_is_answered_as_a_problem(city: City) -> None:
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /" + b"x" * 9_000 + b" HTTP/1.1\r\n\r\n",
    ):
        assert_problem(read(await talk(city.issuer, data)), Code.PARAM_ERROR)


async def test_there_are_only_so_many_places(city: City, impatient: None) -> None:
    app = new_app(city.clock)
    async with serving(app, "127.0.0.1", [0], connections_max=3) as [port]:
        service = f"http://127.0.0.1:{port}"
        async with connected(port, 3) as guests:
            await asyncio.sleep(0.05)
            reply = read(await talk(service, b""))
            assert_problem(reply, Code.SYSTEM_BUSY)
            assert reply.headers["Retry-After"] == "1"
            guests[0][1].close()
            await asyncio.sleep(0.1)
            assert (await city.send(service, "GET", "/healthz", None)).status == 200


async def test_the_quiet_make_room_when_places_get_scarce(
    city: City, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slow_clients, "IDLE_S", 60.0)
    monkeypatch.setattr(slow_clients, "CROWDED_IDLE_S", 0.2)
    limited = serving(new_app(city.clock), "127.0.0.1", [0], connections_max=10)
    async with limited as [port], connected(port, 7) as quiet:
        await asyncio.sleep(0.5)
        assert not any(reader.at_eof() for reader, _ in quiet)
        async with connected(port, 2):
            await asyncio.sleep(0.5)
        assert all(reader.at_eof() for reader, _ in quiet)
