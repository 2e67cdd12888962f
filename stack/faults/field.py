"""The stack that is broken: its own stores and services in a folder, with wires between them that can be cut.

async with open_field(folder, Size(rounds=10, workers=2, shards=2, seed=7)) as field:
    os.kill(field.stack.pid("valkey"), signal.SIGKILL)
    await field.recovered(since)          # seconds
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import BinaryIO
from urllib.parse import quote

import aiohttp
import asyncpg
import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from issuer.campaign.load import NotLoaded, load, load_city
from kernel.clock import SystemClock
from kernel.codes import CodeBook
from kernel.errors import StoreDown
from kernel.signing import Algorithm, Signer
from kernel.valkey import open_valkey
from stack.audit.claim_store import read_log_ends, wait_drained
from stack.audit.clientlog import Told
from stack.data_folder import DataFolder, Secrets
from stack.enrol import enrol_partner
from stack.errors import StackError
from stack.faults.campaign import PARTNER, make_campaign, stocks_of
from stack.faults.crowd import Crowd
from stack.faults.wire import Wire, wire_to
from stack.running import Stack
from stack.services import Service
from stack.stores import DATABASE

ROLE = "hanquan_issuer"
RECOVERED_WITHIN_S = 30.0
"""How long a recovery is waited for; far more than it may take."""
PROBE_EVERY_S = 0.02
READY_WITHIN_S = 20.0
LOST_TOUCH = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, RedisError, StoreDown)
"""What a look at a broken store may raise."""


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How large a drill is. `workers` of the claim service, `shards` of the claim store."""

    rounds: int
    seed: int
    workers: int = 2
    shards: int = 2


@dataclass(frozen=True, kw_only=True)
class Wired:
    """A running stack. `valkey` and `postgres` are its `workers`' wires to the stores, `role` what they are there."""

    stack: Stack
    valkey: Wire
    postgres: Wire
    role: str
    codes: CodeBook
    workers: Sequence[str]
    log: Path
    """What clients were told, JSON Lines; `lines` writes it."""
    lines: BinaryIO

    async def auditor(self) -> "asyncpg.Connection[asyncpg.Record]":
        """A new connection that may read everything, not by way of the wire."""
        return await asyncpg.connect(self.stack.dsn("hanquan_auditor"), timeout=5)

    @asynccontextmanager
    async def claim_store(self) -> AsyncIterator[Redis]:
        """The claim store, not by way of the wire."""
        client = open_valkey(self.stack.valkey_url)
        try:
            yield client
        finally:
            await client.aclose()

    async def caught_up(self) -> bool:
        """Waits until the drain carried over all that stands in the log now; False when it takes too long."""
        try:
            async with asyncio.timeout(RECOVERED_WITHIN_S):
                await self._catches_up()
        except TimeoutError:
            return False
        return True

    async def _catches_up(self) -> None:
        while True:
            try:
                if await self._has_caught_up():
                    return
            except LOST_TOUCH:
                await asyncio.sleep(PROBE_EVERY_S)

    async def _has_caught_up(self) -> bool:
        conn = await self.auditor()
        try:
            async with self.claim_store() as valkey:
                return await wait_drained(conn, await read_log_ends(conn, valkey), RECOVERED_WITHIN_S)
        finally:
            conn.terminate()


@dataclass(frozen=True, kw_only=True)
class Field(Wired):
    """A stack whose claim service is broken, with its crowd."""

    crowd: Crowd

    async def recovered(self, since: float) -> float:
        """Seconds from `since` (monotonic) until every worker granted a new claim and the drain carried over all
        that stood in the log by then. RECOVERED_WITHIN_S when it takes longer."""
        try:
            async with asyncio.timeout(RECOVERED_WITHIN_S):
                await asyncio.gather(*(serves(self.crowd.probe, address) for address in self.crowd.addresses))
                await self._catches_up()
        except TimeoutError:
            return RECOVERED_WITHIN_S
        return round(monotonic() - since, 3)


async def serves(probe: Callable[[str], Awaitable[bool]], address: str) -> None:
    """Returns once a worker does what it is there for."""
    while not await probe(address):
        await asyncio.sleep(PROBE_EVERY_S)


@asynccontextmanager
async def open_field(folder: Path, size: Size) -> AsyncIterator[Field]:
    """A stack of its own in `folder`, with a campaign that is open and a crowd that knows its key.

    Raises StackError, also where the environment names stores that are not ours to break.
    """
    refuse_stores_of_others()
    data = DataFolder(folder / "data")
    signer = await _found(data, size)
    async with AsyncExitStack() as exits:
        valkey = await exits.enter_async_context(wire_to(lambda: stack.valkey_url))
        postgres = await exits.enter_async_context(wire_to(lambda: stack.dsn(ROLE)))
        settings = by_wire(data.secrets(), ROLE, valkey, postgres)
        stack = Stack(data.path, services=_services(size.workers), settings=settings)
        await exits.enter_async_context(stack)
        session = await exits.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        log = folder / "told.jsonl"
        lines = exits.enter_context(log.open("wb", buffering=1 << 16))
        workers = [service.name for service in _services(size.workers) if service.module == "issuer"]
        addresses = [stack.addresses[name] for name in workers]
        crowd = Crowd(
            session, signer, SystemClock(), addresses, stocks_of(0), seed=size.seed, write=partial(write_told, lines)
        )
        field = Field(
            stack=stack,
            valkey=valkey,
            postgres=postgres,
            role=ROLE,
            crowd=crowd,
            codes=code_book(data.secrets()),
            workers=workers,
            log=log,
            lines=lines,
        )
        await _wait_known(field)
        yield field


def refuse_stores_of_others() -> None:
    """StackError where the environment names stores that are not ours to break."""
    if named := {"HANQUAN_POSTGRES_DSN", "HANQUAN_VALKEY_URL"} & os.environ.keys():
        raise StackError(f"{' and '.join(sorted(named))} must not be set: faults break only stores of their own")


def write_told(lines: BinaryIO, told: Told) -> None:
    """One line of the clients' log."""
    lines.write(msgspec.json.encode(told) + b"\n")


def code_book(secrets: Secrets) -> CodeBook:
    """The city's voucher codes."""
    return CodeBook({int(no): bytes.fromhex(key) for no, key in secrets.code_keys.items()})


async def _found(data: DataFolder, size: Size) -> Signer:
    """Makes the schema, the city and its campaign before any service reads them."""
    async with Stack(data.path, services=()) as stack:
        conn = await asyncpg.connect(stack.dsn("hanquan_operator"), timeout=10)
        try:
            now = SystemClock().now()
            await load_city(conn, buckets=2, shards=size.shards)
            loaded = await load(conn, make_campaign(now, size.rounds), "made by `hanquan faults`", now=now)
            if isinstance(loaded, NotLoaded):
                raise StackError(loaded.detail)
            return await enrol_partner(
                conn, bytes.fromhex(stack.secrets.master_key), PARTNER, Algorithm.HMAC, SystemClock().now()
            )
        finally:
            await conn.close(timeout=5)


def _services(workers: int) -> tuple[Service, ...]:
    issuers = (Service(f"issuer-{n}", "issuer", ROLE, n) for n in range(1, workers + 1))
    return (Service("drain", "issuer.drain", ROLE, 0), *issuers)


def by_wire(secrets: Secrets, role: str, valkey: Wire, postgres: Wire) -> dict[str, str]:
    """The settings of a service that reaches its stores by way of these wires."""
    password = quote(secrets.role_passwords[role], safe="")
    return {
        "HANQUAN_VALKEY_URL": f"redis://:{secrets.valkey_password}@127.0.0.1:{valkey.port}/0",
        "HANQUAN_POSTGRES_DSN": f"postgresql://{role}:{password}@127.0.0.1:{postgres.port}/{DATABASE}",
    }


async def _wait_known(field: Field) -> None:
    if await field.recovered(monotonic()) > READY_WITHIN_S:
        raise StackError(f"the stack did not grant a claim in {READY_WITHIN_S:g} s; see {field.stack.folder.logs}")
