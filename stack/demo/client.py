"""How the demonstration's platforms and tills talk: signed HTTP, the same request again when it is safe."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from random import Random
from typing import Any, TypeVar

import aiohttp
import msgspec

from kernel.clock import Clock
from kernel.signing import Signer

TRIES_MAX = 5
TRY_AGAIN_S = 0.2
TIMEOUT_S = 10.0

Item = TypeVar("Item")


class Reply(msgspec.Struct, frozen=True):
    """What came back. Status 0: nothing did, and what happened is not known."""

    status: int
    body: Any
    latency_ms: float
    replayed: bool = False

    @property
    def code(self) -> str:
        """The stable code of a refusal."""
        return str(self.body.get("code", "")) if isinstance(self.body, dict) else ""


class Client:
    """Signs and sends. One session for all callers; each call names its signer."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str, clock: Clock, seed: int) -> None:
        self._session = session
        self._base_url = base_url
        self._clock = clock
        self._random = Random(seed)

    async def post(self, signer: Signer, path: str, body: object) -> Reply:
        """Sends a request, and the very same one again when the answer is lost or says that it is safe."""
        data = msgspec.json.encode(body)
        reply = Reply(0, None, 0.0)
        for attempt in range(TRIES_MAX):
            if attempt:
                await asyncio.sleep(TRY_AGAIN_S * attempt)
            reply = await self._once(signer, path, data)
            if reply.status not in (0, 503) and reply.code != "CONFIRMING":
                return reply
        return reply

    async def _once(self, signer: Signer, path: str, data: bytes) -> Reply:
        nonce = f"{self._random.getrandbits(64):016x}"
        timestamp_s = self._clock.now_ms() // 1000
        header = signer.authorization("POST", path, data, timestamp_s=timestamp_s, nonce=nonce)
        started = time.perf_counter()
        try:
            async with self._session.post(
                self._base_url + path, data=data, headers={"Authorization": header, "Content-Type": "application/json"}
            ) as response:
                body = msgspec.json.decode(await response.read())
                replayed = "Idempotent-Replayed" in response.headers
                return Reply(response.status, body, (time.perf_counter() - started) * 1000, replayed)
        except (aiohttp.ClientError, TimeoutError):
            return Reply(0, None, (time.perf_counter() - started) * 1000)


def open_session() -> aiohttp.ClientSession:
    """A session without a limit of its own; callers bound what is under way."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)
    )


async def each(items: Iterable[Item], act: Callable[[Item], Awaitable[None]], at_once: int) -> None:
    """`act` on every item, so many at once."""
    source: Iterator[Item] = iter(items)

    async def worker() -> None:
        for item in source:
            await act(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(worker())
