"""A small city for tests: two campaigns, two partners, some shops, and both services over real stores.

    async with open_city(cluster, folder) as city:
        reply = await city.claim("dining", person(1))
        await city.drain()
        reply = await city.redeem("NOODLES", reply.json["voucher_code"])

It is 30 s past noon of the grab (campaign time runs on with the machine's). Amounts are fen.
"""

import json
import os
import re
import secrets
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
import structlog
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from yarl import URL

from antifraud.gate import SignalWriter
from issuer.app import make_app as make_issuer
from issuer.campaign.load import LoadedCampaign, load, load_city
from issuer.campaign.model import Campaign
from issuer.drain import Drain
from issuer.keys import log_key
from kernel.clock import FileClock
from kernel.codes import CodeBook
from kernel.errors import Code
from kernel.postgres import Connection, open_pool
from kernel.settings import Settings
from kernel.signing import Algorithm, Signer
from kernel.web import serving
from redemption.app import make_app as make_redemption
from stack.child import Child, Program
from stack.enrol import NewMerchant, enrol_merchants, enrol_partner, enrol_public_key
from stack.ports import free_port
from tests import stores
from tests.city_plan import BILL, NOON, PAID, RESTORING, RETURNING, SHOPS

MASTER_KEY = bytes(range(32))
CODE_KEYS = {1: bytes(range(16))}
ROOT = Path(__file__).parents[1]


# ---------------------------------------------------------------- what it answers


@dataclass(frozen=True)
class Reply:
    """One answer of a service."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def json(self) -> Any:
        """The body, read."""
        return json.loads(self.body)

    @property
    def code(self) -> str | None:
        """The problem's code; None for success."""
        return None if self.status == 200 else str(self.json["code"])

    @property
    def rule(self) -> str | None:
        """The rule behind RULE_LIMIT."""
        return None if self.status == 200 else self.json.get("rule")


def assert_problem(reply: Reply, code: Code, rule: str | None = None) -> None:
    """The reply is problem+json with this code, and says whether to try again."""
    assert reply.headers["Content-Type"] == "application/problem+json", reply
    problem = reply.json
    assert (problem["code"], problem.get("rule")) == (code, rule), problem
    assert problem["status"] == reply.status == code.http_status
    assert problem["retry"] == ("SAFE" if "retry_after_s" in problem else code.retry)
    assert problem["type"] == "urn:hanquan:problem:" + code.lower().replace("_", "-")
    assert problem["title"] and problem["detail"]
    assert datetime.fromisoformat(problem["server_time"]).tzinfo is not None
    assert problem["request_id"] == reply.headers["X-Request-Id"]


# ---------------------------------------------------------------- the city


@dataclass
class City:
    """A running city. `issuer` and `redemption` are base URLs of services in this process."""

    database: stores.Database
    valkey: stores.Valkey
    clock: FileClock
    clock_file: Path
    session: aiohttp.ClientSession
    campaigns: Mapping[str, LoadedCampaign]
    signers: Mapping[str, Signer]
    codes: CodeBook
    folder: Path
    stack: AsyncExitStack
    issuer: str = ""
    redemption: str = ""
    apps: dict[str, web.Application] = field(default_factory=dict)
    drainer: Drain | None = None
    numbers: int = 0

    def settings(self, role: str) -> Settings:
        """What a service of this role reads from its environment."""
        return Settings(
            postgres_dsn=self.database.dsn(role),
            valkey_url=self.valkey.url,
            master_key=MASTER_KEY,
            code_keys=CODE_KEYS,
            clock_file=str(self.clock_file),
        )

    async def serve(self, app: web.Application) -> str:
        """Serves an application in this process until the city closes; its base URL."""
        [port] = await self.stack.enter_async_context(serving(app, "127.0.0.1", [0]))
        url = f"http://127.0.0.1:{port}"
        self.apps[url] = app
        return url

    async def new_issuer(self) -> str:
        """One more claim service."""
        return await self.serve(await make_issuer(self.settings("hanquan_issuer")))

    async def new_redemption(self) -> str:
        """One more checkout service."""
        return await self.serve(await make_redemption(self.settings("hanquan_redemption")))

    def process(self, module: str, role: str, more: Mapping[str, str] | None = None) -> tuple[Child, str]:
        """A service as a process of its own, with `more` environment, and its base URL. Whoever starts it ends it."""
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        settings = self.settings(role)
        env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "HANQUAN_POSTGRES_DSN": settings.postgres_dsn,
            "HANQUAN_VALKEY_URL": settings.valkey_url,
            "HANQUAN_MASTER_KEY": MASTER_KEY.hex(),
            "HANQUAN_CODE_KEYS": ",".join(f"{version}:{key.hex()}" for version, key in CODE_KEYS.items()),
            "HANQUAN_CLOCK_FILE": str(self.clock_file),
            "HANQUAN_PORT": str(port),
            **(more or {}),
        }

        async def is_ready() -> bool:
            try:
                async with self.session.get(f"{url}/readyz") as response:
                    return response.status == 200
            except aiohttp.ClientError:
                return False

        argv = (sys.executable, "-m", module)
        log = self.folder / f"{module}.log"
        return Child(Program(name=module, argv=argv, env=env, folder=ROOT, log=log, is_ready=is_ready)), url

    # ------------------------------------------------------------ asking

    async def call(
        self,
        service: str,
        signer: str | Signer,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        sign: Mapping[str, Any] | None = None,
    ) -> Reply:
        """Signs and sends one request. `body`: bytes as they are, anything else as JSON.

        `sign` replaces what is signed, by name: method, path, body, timestamp_s, nonce.
        """
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        who = self.signers[signer] if isinstance(signer, str) else signer
        signed: dict[str, Any] = {
            "method": method,
            "path": path,
            "body": data,
            "timestamp_s": int(self.clock.now().timestamp()),
            "nonce": secrets.token_hex(8),
        } | dict(sign or {})
        sent = {"Authorization": who.authorization(**signed)} | dict(headers or {})
        return await self.send(service, method, path, data, sent)

    async def send(
        self, service: str, method: str, path: str, data: bytes | None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Sends a request exactly as given."""
        url = URL(service + path, encoded=True)
        async with self.session.request(method, url, data=data or None, headers=headers) as answer:
            return Reply(answer.status, await answer.read(), answer.headers.copy())

    def number(self, prefix: str = "no") -> str:
        """A request number nobody used."""
        self.numbers += 1
        return f"{prefix}-{self.numbers:08}"

    async def claim(
        self,
        stock_id: str,
        person_token: str,
        *,
        number: str | None = None,
        device: str | None = None,
        signer: str = "wechat",
        service: str | None = None,
    ) -> Reply:
        """One claim; a fresh request number unless one is given."""
        body = {"out_request_no": number or self.number(), "stock_id": stock_id, "person_token": person_token}
        body |= {} if device is None else {"device_token": device}
        return await self.call(service or self.issuer, signer, "POST", "/v1/claims", body)

    async def claim_many(self, stock_id: str, people: Sequence[str], signer: str = "wechat") -> list[str]:
        """Claims for all of them, who must all win; their codes, drained."""
        claims = [{"out_request_no": self.number(), "stock_id": stock_id, "person_token": token} for token in people]
        codes = []
        for start in range(0, len(claims), 1_000):
            batch = {"claims": claims[start : start + 1_000]}
            reply = await self.call(self.issuer, signer, "POST", "/v1/claims:batch", batch)
            codes += [item["claim"]["voucher_code"] for item in reply.json["results"]]
        await self.drain()
        return codes

    async def redeem(
        self,
        shop: str,
        code: str,
        *,
        number: str | None = None,
        order: str | None = None,
        bill_fen: int = BILL,
        service: str | None = None,
    ) -> Reply:
        """One redemption at a shop's till; fresh numbers unless given."""
        body = {
            "use_request_no": number or self.number("use"),
            "voucher_code": code,
            "order_no": order or self.number("order"),
            "bill_fen": bill_fen,
        }
        return await self.call(service or self.redemption, shop, "POST", "/v1/redemptions", body)

    async def refund(
        self, shop: str, use: str, *, number: str | None = None, refund_fen: int = PAID, service: str | None = None
    ) -> Reply:
        """One refund at a shop's till."""
        body = {"refund_request_no": number or self.number("back"), "use_request_no": use, "refund_fen": refund_fen}
        return await self.call(service or self.redemption, shop, "POST", "/v1/refunds", body)

    async def hold(
        self,
        shop: str,
        code: str,
        *,
        number: str | None = None,
        order: str | None = None,
        bill_fen: int = BILL,
        ttl_s: object = 60,
        service: str | None = None,
    ) -> Reply:
        """One hold at a shop's till."""
        body = {
            "hold_request_no": number or self.number("hold"),
            "voucher_code": code,
            "order_no": order or self.number("order"),
            "bill_fen": bill_fen,
            "hold_ttl_s": ttl_s,
        }
        return await self.call(service or self.redemption, shop, "POST", "/v1/holds", body)

    async def confirm(self, shop: str, hold: str, *, number: str | None = None, service: str | None = None) -> Reply:
        """Makes a hold a redemption."""
        body = {"use_request_no": number or self.number("use"), "hold_request_no": hold}
        return await self.call(service or self.redemption, shop, "POST", "/v1/holds/confirm", body)

    async def cancel(self, shop: str, hold: str, *, number: str | None = None, service: str | None = None) -> Reply:
        """Gives a hold up."""
        body = {"cancel_request_no": number or self.number("cancel"), "hold_request_no": hold}
        return await self.call(service or self.redemption, shop, "POST", "/v1/holds/cancel", body)

    async def quote(
        self, shop: str, codes: Sequence[str], *, bill_fen: int = BILL, other_offers: Sequence[str] = ()
    ) -> Reply:
        """What vouchers would do to a bill."""
        body = {"voucher_codes": list(codes), "bill_fen": bill_fen, "other_offers": list(other_offers)}
        return await self.call(self.redemption, shop, "POST", "/v1/quotes", body)

    async def upload(self, shop: str, items: Sequence[object]) -> Reply:
        """Redemptions that a till took without us."""
        return await self.call(self.redemption, shop, "POST", "/v1/redemptions:offline", {"redemptions": list(items)})

    async def get(self, shop: str, path: str) -> Reply:
        """One look at what the checkout knows."""
        return await self.call(self.redemption, shop, "GET", path)

    # ------------------------------------------------------------ looking

    async def drain(self) -> int:
        """Carries over all wins that wait; how many that were."""
        assert self.drainer is not None
        count = 0
        async with self.database.connection("hanquan_issuer") as conn:
            while await self.valkey.client.xlen(log_key(0)):
                count += await self.drainer.drain_once(conn)
        return count

    async def new_drain(self, shard: int = 0) -> Drain:
        """A drain to call step by step."""
        pool = await open_pool(self.database.dsn("hanquan_issuer"), size=2)
        self.stack.callback(pool.terminate)  # a test that failed may still hold a connection
        return Drain(pool, self.valkey.client, SignalWriter(self.valkey.client), self.clock, shard)

    async def fetchval(self, query: str, *args: object) -> Any:
        """One value, as the superuser."""
        return await self.database.pool.fetchval(query, *args)

    async def state(self, *, ignoring: Sequence[str] = ()) -> Mapping[str, str]:
        """A hash of every table and of every key in Valkey, but those whose names start as `ignoring` says.

        Signals (hints for anti-fraud, written behind the caller's back) and counts of wrong codes are no part of it.
        """
        rows = await self.database.pool.fetch(_TABLES)
        query = " UNION ALL ".join(_DIGEST.format(table=row["table"]) for row in rows)
        tables = {row["name"]: row["digest"] for row in await self.database.pool.fetch(query)}
        client = self.valkey.client
        keys = sorted([key async for key in client.scan_iter(count=1_000)])
        pipe = client.pipeline(transaction=False)
        for key in keys:
            pipe.dump(key)
        dumps = await pipe.execute()
        values = {key.decode(): sha256(dump or b"").hexdigest() for key, dump in zip(keys, dumps, strict=True)}
        passed_over = ("af:signal", "{tills}", *ignoring)
        return {name: digest for name, digest in (tables | values).items() if not name.startswith(passed_over)}


PACE = "af:pace:"
"""Token buckets: a real attempt that is refused takes a token."""

PUBLISHED = re.compile(r"\{s\d+\}:(round|stock):\d+")

_TABLES = """
    SELECT c.oid::regclass::text AS table FROM pg_class c
     WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
"""
_DIGEST = "SELECT '{table}' AS name, md5(string_agg(t::text, E'\\n' ORDER BY t::text)) AS digest FROM {table} t"


@asynccontextmanager
async def unchanged(city: City, *, ignoring: Sequence[str] = ()) -> AsyncIterator[None]:
    """Nothing that lasts changes inside the block.

    (Token buckets go by themselves after two minutes, and after a test that moved the clock the publisher may only
    now bring the round of that time.)
    """
    before = await city.state(ignoring=ignoring)
    yield
    after = await city.state(ignoring=ignoring)
    differ = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    differ -= {name for name in differ - after.keys() if name.startswith(PACE)}
    differ -= {name for name in differ - before.keys() if PUBLISHED.fullmatch(name)}
    assert not differ, differ


# ---------------------------------------------------------------- building it


@asynccontextmanager
async def open_city(
    cluster: stores.Cluster,
    folder: Path,
    *,
    buckets: int = 2,
    shards: int = 1,
    valkey_settings: Mapping[str, str] | None = None,
    valkey: AbstractAsyncContextManager[stores.Valkey] | None = None,
    database: AbstractAsyncContextManager[stores.Database] | None = None,
    campaigns: Sequence[Campaign] = (RESTORING, RETURNING),
) -> AsyncIterator[City]:
    """A city of one's own with one issuer, one checkout and a drain, all gone at the end of the block.

    `valkey` replaces the claim store of its own, for instance by `stores.valkey_cluster(folder)`; `database` the
    database with the newest schema.
    """
    # Tracebacks as they are: the default paints them, which takes half a second each.
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(),
        ]
    )
    folder.mkdir(parents=True, exist_ok=True)
    clock_file = folder / "clock"
    clock = FileClock(clock_file)
    clock.move_to(NOON + timedelta(seconds=30))
    async with (
        database or stores.database(cluster) as books,
        valkey or stores.valkey(folder, valkey_settings) as claim_store,
        AsyncExitStack() as stack,
    ):
        loaded, signers = await _found(books, clock, buckets, shards, campaigns)
        connector = aiohttp.TCPConnector(limit=0)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        city = City(
            database=books,
            valkey=claim_store,
            clock=clock,
            clock_file=clock_file,
            session=session,
            campaigns=loaded,
            signers=signers,
            codes=CodeBook(CODE_KEYS),
            folder=folder,
            stack=stack,
        )
        city.issuer = await city.new_issuer()
        city.redemption = await city.new_redemption()
        city.drainer = await city.new_drain()
        yield city


async def _found(
    database: stores.Database, clock: FileClock, buckets: int, shards: int, campaigns: Sequence[Campaign]
) -> tuple[dict[str, LoadedCampaign], dict[str, Signer]]:
    async with database.connection("hanquan_operator") as conn:
        await load_city(conn, buckets, shards)
        loaded = {}
        for campaign in campaigns:
            answer = await load(conn, campaign, "", now=clock.now())
            assert isinstance(answer, LoadedCampaign), answer
            loaded[campaign.campaign_id] = answer
        signers = await _enrol(conn, clock.now())
    await database.pool.execute("UPDATE stock SET state = 'PAUSED' WHERE stock_id = 'paused'")
    await database.pool.execute("UPDATE merchant SET suspended = true WHERE merchant_id = 'BANNED'")
    return loaded, signers


async def _enrol(conn: Connection, now: datetime) -> dict[str, Signer]:
    shops = [
        NewMerchant(
            merchant_id=name,
            name=name,
            category=category,
            district="wuchang",
            payee_name=name,
            payee_account="6222000000000000",
            payee_bank="bank",
        )
        for name, category in SHOPS.items()
    ]
    signers = await enrol_merchants(conn, MASTER_KEY, shops, now)
    private = rsa_key()
    serial_no = await enrol_public_key(conn, "alipay", private.public_key(), now)
    return dict(zip(SHOPS, signers, strict=True)) | {
        "wechat": await enrol_partner(conn, MASTER_KEY, "wechat", Algorithm.HMAC, now),
        "alipay": Signer(holder_id="alipay", serial_no=serial_no, algorithm=Algorithm.RSA, secret=private),
    }


@cache
def rsa_key() -> RSAPrivateKey:
    """One RSA key for all tests: making one takes long."""
    return generate_private_key(public_exponent=65537, key_size=2048)
