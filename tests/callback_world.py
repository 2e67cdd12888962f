"""A town whose partners are told: a real receiver of each partner's, and a real sender.

async with open_world(database) as world:
    receiver = await world.subscribe("wepay")
    async with world.sending():
        await world.claim(1)
        await eventually(lambda: receiver.taken)
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from issuer.callbacks.desk import Subscribed, Wish, subscribe
from issuer.callbacks.envelope import CallbackKey
from issuer.callbacks.event import Kind
from issuer.callbacks.outbox import Outbox, add_claimed
from issuer.callbacks.sender import Sender
from kernel.clock import Clock, ManualClock
from kernel.codes import CodeBook
from kernel.postgres import Connection, open_pool
from tests import stores
from tests.town import DAY, Town, at, build

MASTER_KEY = bytes(range(32))
CODES = CodeBook({1: bytes(range(16))})
GUIDE = Path(__file__).parents[1] / "docs/callbacks.md"

Keys = dict[str, tuple[bytes, bytes]]


def guides_example() -> dict[str, Any]:
    """The names that the Python in the partners' guide defines."""
    _, _, rest = GUIDE.read_text(encoding="utf-8").partition("```python\n")
    names: dict[str, Any] = {"__name__": "guide"}
    exec(compile(rest.partition("```")[0], str(GUIDE), "exec"), names)
    return names


read_callback = guides_example()["read_callback"]


@dataclass(frozen=True)
class Taken:
    """One call as a partner sees it: read by the guide's own code, which checks the signature."""

    envelope: Mapping[str, Any]
    voucher: Mapping[str, Any]
    headers: Mapping[str, str]
    body: bytes

    @property
    def id(self) -> str:
        """The event's id."""
        return str(self.envelope["id"])

    @property
    def kind(self) -> str:
        """The event's kind."""
        return str(self.envelope["event_type"]).removeprefix("VOUCHER.")


async def take(call: Taken) -> int:
    """Answers yes."""
    return 204


@dataclass
class Receiver:
    """A partner's endpoint. `answer` decides the status of each call; what got 200 or 204 is in `taken`."""

    clock: Clock
    keys: Keys = field(default_factory=dict)
    calls: list[Taken] = field(default_factory=list)
    taken: list[Taken] = field(default_factory=list)
    answer: Callable[[Taken], Awaitable[int]] = take
    url: str = ""

    async def post(self, request: web.Request) -> web.Response:
        body = await request.read()
        envelope, voucher = read_callback(request.headers, body, self.keys, self.clock.now().timestamp())
        call = Taken(envelope, voucher, request.headers.copy(), body)
        self.calls.append(call)
        status = await self.answer(call)
        if status in (200, 204):
            self.taken.append(call)
        return web.Response(status=status, text="" if status == 204 else "said the partner")


@dataclass
class World:
    """Town, clock and services of one test."""

    town: Town
    database: stores.Database
    clock: Clock
    operator: Connection
    exits: AsyncExitStack

    async def receiver(self) -> Receiver:
        """A partner's endpoint that nobody calls yet."""
        receiver = Receiver(self.clock)
        app = web.Application()
        app.router.add_post("/told", receiver.post)
        server = await self.exits.enter_async_context(TestServer(app))
        receiver.url = str(server.make_url("/told"))
        return receiver

    async def subscribe(
        self, partner_id: str, kinds: Sequence[Kind] = tuple(Kind), schedule: Sequence[int] = (10, 20)
    ) -> Receiver:
        """A partner that is told of its vouchers, with its endpoint."""
        receiver = await self.receiver()
        await self.subscribe_at(partner_id, receiver.url, receiver, kinds, schedule)
        return receiver

    async def subscribe_at(
        self,
        partner_id: str,
        url: str,
        receiver: Receiver,
        kinds: Sequence[Kind] = tuple(Kind),
        schedule: Sequence[int] = (10, 20),
    ) -> None:
        """The same for an endpoint that is there already."""
        wish = Wish(url=url, kinds=kinds, may_be_private=True, retry_after_s=schedule)
        done = await subscribe(self.operator, MASTER_KEY, partner_id, wish, self.clock.now())
        assert isinstance(done, Subscribed), done
        if done.key is not None:
            receiver.keys |= as_keys(done.key)

    async def outbox(self) -> Outbox:
        """The outbox, with the rights of the service that sends."""
        pool = await open_pool(self.database.dsn("hanquan_issuer"), size=4, by_keys=True)
        self.exits.callback(pool.terminate)  # a test that failed may still hold a connection
        return Outbox(pool, MASTER_KEY, self.clock)

    @asynccontextmanager
    async def sending(self, outbox: Outbox | None = None) -> AsyncIterator[Sender]:
        """A sender at work while the block lasts."""
        sender = Sender(outbox or await self.outbox(), CODES, self.clock)
        async with sender.running():
            yield sender

    async def claim(self, count: int = 1, *, stock_no: int = 1, bucket: int = 0) -> list[int]:
        """Vouchers drained into the books, as the drain does it: with their events in the same transaction."""
        async with self.town.conn.transaction():
            ids = await self.town.issue(count, stock_no=stock_no, bucket=bucket)
            await add_claimed(self.town.conn, [(bucket, one, stock_no, at(DAY, 0, 30)) for one in ids])
        return ids

    async def events(self) -> list[Any]:
        """All rows of the outbox, in the order of vouchers and of their events."""
        return list(await self.town.conn.fetch("SELECT * FROM callback_event ORDER BY voucher_id, attempt, kind"))

    async def waiting(self) -> int:
        """How many events are neither delivered nor dead."""
        count: int = await self.town.conn.fetchval("SELECT count(*) FROM callback_event WHERE next_at IS NOT NULL")
        return count

    async def settled(self, within_s: float = 60.0) -> None:
        """Waits until nothing waits any more."""
        deadline = monotonic() + within_s
        while await self.waiting():
            assert monotonic() < deadline, [dict(row) for row in await self.events()][:3]
            await asyncio.sleep(0.02)


def as_keys(key: CallbackKey) -> Keys:
    """A key as the guide's example holds it."""
    return {key.serial_no: (key.signing, key.encryption)}


async def eventually(holds: Callable[[], object], within_s: float = 60.0) -> None:
    """Waits until it holds."""
    deadline = monotonic() + within_s
    while not holds():
        assert monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def open_world(database: stores.Database, clock: Clock | None = None) -> AsyncIterator[World]:
    """A town of two buckets on its DAY; the clock stands still unless another is given."""
    async with AsyncExitStack() as exits:
        conn = await exits.enter_async_context(database.connection())
        operator = await exits.enter_async_context(database.connection("hanquan_operator"))
        town = await build(conn)
        yield World(town, database, clock or ManualClock(at(DAY)), operator, exits)
