"""SIGTERM in the middle of the rush: nobody who was let in is cut off, and every win is durable and was told."""

import asyncio
import json
import secrets
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field

import aiohttp
import pytest
import pytest_asyncio

from tests import stores
from tests.city import City, open_city
from tests.city_plan import person

pytestmark = pytest.mark.asyncio(loop_scope="module")

CLIENTS = 24


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    async with open_city(cluster, tmp_path_factory.mktemp("stop")) as made:
        yield made


@dataclass
class Crowd:
    """Clients that claim one after the other, each on one connection, until it is closed."""

    city: City
    port: int
    start: int
    told: dict[str, str] = field(default_factory=dict)
    """Request number -> voucher code."""
    answers: int = 0
    last_answers: int = 0
    """Connections that ended with an answer that said so."""
    cut_off: int = 0
    """Requests whose connection ended without an answer."""
    people: int = 0

    async def run(self) -> None:
        await asyncio.gather(*(self._client() for _ in range(CLIENTS)))

    async def _client(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            while await self._claim(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            self.cut_off += 1
        finally:
            writer.transport.abort()

    async def _claim(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        number, self.people = self.city.number("stop"), self.people + 1
        writer.write(self._request(number, person(self.start + self.people)))
        head = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:] if line)
        body = json.loads(await reader.readexactly(int(fields["Content-Length"])))
        if head.startswith(b"HTTP/1.1 200 "):
            self.told[number] = body["voucher_code"]
        else:
            assert body["code"] == "SOLD_OUT", body
        self.answers += 1
        is_last = fields.get("Connection") == "close"
        self.last_answers += is_last
        return not is_last

    def _request(self, number: str, token: str) -> bytes:
        body = json.dumps({"out_request_no": number, "stock_id": "mall", "person_token": token}).encode()
        header = self.city.signers["wechat"].authorization(
            "POST",
            "/v1/claims",
            body,
            timestamp_s=int(self.city.clock.now().timestamp()),
            nonce=secrets.token_hex(8),
        )
        head = f"POST /v1/claims HTTP/1.1\r\nHost: x\r\nAuthorization: {header}\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body


async def rush_until(city: City, signal_number: signal.Signals, start: int) -> tuple[Crowd, list[int], int]:
    """A rush, a signal in the middle of it; the crowd, what /readyz said afterwards, and the exit status."""
    child, service = city.process("issuer", "hanquan_issuer")
    ready: list[int] = []
    try:
        await child.ready()
        crowd = Crowd(city, int(service.rpartition(":")[2]), start)
        rushing = asyncio.create_task(crowd.run())
        while crowd.answers < 10 * CLIENTS:
            await asyncio.sleep(0.01)
        child.send(signal_number)
        with suppress(aiohttp.ClientError):
            while True:
                ready.append((await city.send(service, "GET", "/readyz", None)).status)
                await asyncio.sleep(0.01)
        async with asyncio.timeout(60):
            await rushing
            return crowd, ready, await child.exited()
    finally:
        child.kill()


async def test_a_stop_cuts_nobody_off_and_tells_every_win(city: City) -> None:
    crowd, ready, status = await rush_until(city, signal.SIGTERM, 20_000)
    assert status == 0
    assert ready[-1] == 503  # readiness was off before the listener closed
    assert (crowd.cut_off, crowd.last_answers) == (0, CLIENTS)
    await city.drain()
    rows = await city.database.pool.fetch(
        "SELECT out_request_no, voucher_id FROM voucher WHERE out_request_no LIKE 'stop-%'"
    )
    won = {row["out_request_no"]: city.codes.encode(row["voucher_id"]) for row in rows}
    assert won == crowd.told  # each told win is there, and each win that is there was told
    assert len(rows) == len(won) >= 10 * CLIENTS


async def test_control_a_kill_cuts_them_off(city: City) -> None:
    crowd, _, status = await rush_until(city, signal.SIGKILL, 40_000)
    assert status == -signal.SIGKILL
    assert crowd.cut_off > 0
    assert crowd.last_answers == 0
