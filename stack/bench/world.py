"""Where a bench takes place: real stores in a folder, rounds to claim from, our services as processes.

async with open_world(folder) as world:
    ground = await world.open_round(100_000)
    async with world.workers(1) as workers:
        answer = await world.knock(ground, workers.port)
"""

import asyncio
import os
import secrets
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from time import monotonic

import aiohttp
import asyncpg
import msgspec
from redis.asyncio import Redis

import sql
from issuer.campaign.load import NotLoaded, load, load_city
from issuer.campaign.model import Campaign, Round, stock_id_of
from issuer.campaign.read import Refused, read_campaign
from issuer.campaign.scale import scaled
from issuer.campaign.shipped import shipped_document
from kernel.clock import CITY_ZONE, SystemClock
from kernel.signing import Algorithm, Signer
from kernel.valkey import open_valkey
from stack.bench.helper import ROOT, Helper, helping
from stack.bench.presign import SINGLE, Ground, Key, Signing, requests
from stack.child import Child, Program
from stack.enrol import enrol_partner
from stack.errors import StackError
from stack.new_city import BUCKETS
from stack.ports import free_port
from stack.running import HOST, Stack
from stack.services import environment

MODEL, MODEL_ROUND = "wuhan-2020", "r01"
KNOWN_WITHIN_S, KNOCK_EVERY_S = 20.0, 0.1
PERSON_AT_THE_DOOR = 0
"""This one finds out whether a round is open; measured people come after."""

_queries = sql.load("bench")


class Workers(msgspec.Struct, frozen=True):
    """Processes that share a port."""

    port: int
    pids: Sequence[int]


class Durability(msgspec.Struct, frozen=True):
    """What the stores say of themselves."""

    valkey: str
    postgres: str
    lasts: bool
    """Whether an answer leaves only after it lasts: appendfsync always, fsync and synchronous_commit on."""


class World:
    """Made by `open_world`."""

    def __init__(self, stack: Stack, valkey: Redis, exits: AsyncExitStack, folder: Path, buckets: int) -> None:
        self.stack = stack
        self.buckets = buckets
        self.valkey = valkey
        self.folder = folder
        self._exits = exits
        self._helpers: dict[str, Helper] = {}
        self._signers: dict[Algorithm, Signer] = {}

    @property
    def valkey_pids(self) -> list[int]:
        """The embedded server's process."""
        return [self.stack.pid("valkey")]

    def log(self, name: str) -> Path:
        """The log of a process."""
        return self.stack.log(name)

    def env(self, role: str, port: int = 0) -> Mapping[str, str]:
        """What a service with this role's rights reads."""
        return environment(
            postgres_dsn=self.stack.dsn(role),
            valkey_url=self.stack.valkey_url,
            secrets=self.stack.secrets,
            host=HOST,
            port=port,
        )

    async def helper(self, module: str, name: str = "", *, role: str | None = None) -> Helper:
        """A helper that lives as long as the world, by name; with a role, it may open the stores."""
        name = name or module
        if name not in self._helpers:
            started = helping(f"stack.bench.{module}", log=self.log(name), env=self.env(role) if role else None)
            self._helpers[name] = await self._exits.enter_async_context(started)
        return self._helpers[name]

    # ------------------------------------------------------------ rounds and keys

    async def open_round(self, quantity: int, algorithm: Algorithm = Algorithm.HMAC, *, rounds: int = 1) -> Ground:
        """A campaign of its own with one open round of one stock. Workers that start later know it at once,
        those that run within a second or two.

        `rounds` more than one: a campaign of weekly twins of which the open one is the middle one.
        """
        run_id = secrets.token_hex(4)
        campaign = _campaign(run_id, quantity, rounds)
        opened = campaign.rounds[_middle(rounds)]
        [only] = opened.stocks
        async with self.connection("hanquan_operator") as conn:
            now = SystemClock().now()
            await load_city(conn, buckets=self.buckets, shards=1)
            loaded = await load(conn, campaign, "made by ./hanquan bench", now=now)
            if isinstance(loaded, NotLoaded):
                raise StackError(loaded.detail)
            if algorithm not in self._signers:
                master_key = bytes.fromhex(self.stack.secrets.master_key)
                self._signers[algorithm] = await enrol_partner(conn, master_key, only.partner_id, algorithm, now)
        return Ground(
            run_id=run_id,
            stock_id=only.stock_id,
            round_no=loaded.round_nos[opened.round_id],
            quantity=quantity,
        )

    def signing(
        self, ground: Ground, first: int, count: int, file: Path, *, per_call: int, algorithm: Algorithm
    ) -> Signing:
        """A job for presign.py, dated now: good for five minutes."""
        return Signing(
            ground=ground,
            key=Key.of(self._signers[algorithm]),
            first=first,
            count=count,
            per_call=per_call,
            timestamp_s=int(SystemClock().now().timestamp()),
            file=str(file),
        )

    async def knock(self, ground: Ground, port: int, algorithm: Algorithm = Algorithm.HMAC) -> bytes:
        """Claims for the person at the door until the workers know the round; the answer's body."""
        deadline = monotonic() + KNOWN_WITHIN_S
        async with aiohttp.ClientSession(f"http://{HOST}:{port}") as http:
            while True:
                job = self.signing(ground, PERSON_AT_THE_DOOR, 1, Path(), per_call=1, algorithm=algorithm)
                head, _, body = next(requests(job)).partition(b"\r\n\r\n")
                sent = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
                async with http.post(SINGLE, data=body, headers=sent) as response:
                    said = await response.read()
                    if response.status == 200:
                        return said
                if monotonic() > deadline:
                    raise StackError(f"the round did not open: {said.decode(errors='replace')}")
                await asyncio.sleep(KNOCK_EVERY_S)

    # ------------------------------------------------------------ processes

    def workers(self, count: int) -> AbstractAsyncContextManager[Workers]:
        """Claim services that share one port."""
        return self._services("issuer", "hanquan_issuer", count)

    def tills(self, count: int) -> AbstractAsyncContextManager[Workers]:
        """Checkout services that share one port."""
        return self._services("redemption", "hanquan_redemption", count)

    @asynccontextmanager
    async def _services(self, module: str, role: str, count: int) -> AsyncIterator[Workers]:
        port = free_port()
        async with AsyncExitStack() as exits:
            children = [
                await exits.enter_async_context(self._running(f"{module}-{n}", module, self.env(role, port)))
                for n in range(count)
            ]
            yield Workers(port, [child.pid for child in children])

    @asynccontextmanager
    async def drain(self) -> AsyncIterator[int]:
        """The drain, as it runs in a stack; its process id."""
        env = self.env("hanquan_issuer", free_port())
        async with self._running("drain", "issuer.drain", env) as child:
            yield child.pid

    @asynccontextmanager
    async def bare(self, answer: bytes) -> AsyncIterator[Workers]:
        """The bare worker."""
        port = free_port()
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "BARE_PORT": str(port)}
        env |= {"BARE_ANSWER": answer.decode(), "HANQUAN_PORT": str(port)}
        async with self._running("bare", "stack.bench.bare", env) as child:
            yield Workers(port, [child.pid])

    @asynccontextmanager
    async def _running(self, name: str, module: str, env: Mapping[str, str]) -> AsyncIterator[Child]:
        url = f"http://{HOST}:{env['HANQUAN_PORT']}/readyz"
        async with aiohttp.ClientSession() as http:

            async def is_ready() -> bool:
                try:
                    async with http.get(url) as response:
                        return response.status == 200
                except aiohttp.ClientError:
                    return False

            argv = (sys.executable, "-m", module)
            log = self.log(name)
            child = Child(Program(name=name, argv=argv, env=env, folder=ROOT, log=log, is_ready=is_ready))
            try:
                await child.ready()
                yield child
            finally:
                await child.stop()

    # ------------------------------------------------------------ stores

    @asynccontextmanager
    async def connection(self, role: str | None = None) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
        """A connection of its own, as a role or as the administrator."""
        conn = await asyncpg.connect(self.stack.dsn(role), timeout=10)
        try:
            yield conn
        finally:
            await conn.close(timeout=5)

    async def durability(self) -> Durability:
        """How durable the stores are, and which versions they have."""
        async with self.connection() as conn:
            row = await conn.fetchrow(_queries["durability"])
        assert row is not None
        said = await self.valkey.config_get("appendfsync")
        server = await self.valkey.info("server")
        lasts = said["appendfsync"] == "always" and row["fsync"] == row["synchronous_commit"] == "on"
        version = server.get("valkey_version") or server["redis_version"]
        return Durability(valkey=str(version), postgres=row["version"].split()[0], lasts=lasts)


@asynccontextmanager
async def open_world(folder: Path, *, buckets: int = BUCKETS) -> AsyncIterator[World]:
    """Starts the stores in a folder and stops them. The folder is left. StackError when own servers are named."""
    if named := [name for name in ("HANQUAN_POSTGRES_DSN", "HANQUAN_VALKEY_URL") if name in os.environ]:
        raise StackError(f"a bench measures stores that it starts itself; unset {' and '.join(named)}")
    async with Stack(folder / "data", services=()) as stack, AsyncExitStack() as exits:
        valkey = open_valkey(stack.valkey_url)
        exits.push_async_callback(valkey.aclose)
        yield World(stack, valkey, exits, folder, buckets)


def _campaign(run_id: str, quantity: int, rounds: int) -> Campaign:
    """The model campaign cut down to rounds of one stock each, the middle one open; no caps."""
    model = read_campaign(shipped_document(MODEL))
    if isinstance(model, Refused):
        raise StackError(f"the campaign {MODEL} that comes with Hanquan cannot be read")
    small = scaled(model, MODEL_ROUND, max(quantity, len(model.round(MODEL_ROUND).stocks)))
    campaign_id = f"bench-{run_id}"
    weeks = range(-_middle(rounds), rounds - _middle(rounds))
    made = tuple(_round(campaign_id, small.rounds[0], f"r{n:02}", quantity, week) for n, week in enumerate(weeks, 1))
    return msgspec.structs.replace(
        small,
        campaign_id=campaign_id,
        title_zh=f"基准测试 {run_id}",
        title_en=f"Bench {run_id}",
        fund_fen=sum(each.budget_fen for each in made),
        rounds=made,
        redeem_caps=(),
    )


def _middle(rounds: int) -> int:
    return (rounds - 1) // 2


def _round(campaign_id: str, model: Round, round_id: str, quantity: int, week: int) -> Round:
    stock = model.stocks[0]
    stock = msgspec.structs.replace(
        stock,
        stock_id=stock_id_of(campaign_id, round_id, stock.partner_id, stock.category_id),
        quantity=quantity,
    )
    opens_at = SystemClock().now().astimezone(CITY_ZONE) - timedelta(minutes=1) + timedelta(weeks=week)
    return msgspec.structs.replace(
        model,
        round_id=round_id,
        opens_at=opens_at,
        closes_at=opens_at + timedelta(hours=12),
        valid_until=opens_at + timedelta(days=7),
        budget_fen=stock.exposure_fen,
        stocks=(stock,),
    )
