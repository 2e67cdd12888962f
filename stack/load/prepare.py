"""Prepares a load test: a campaign of its own that opens soon, keys for its partners, the clients' plan."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from time import monotonic

import aiohttp
import asyncpg
import msgspec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

import sql
from issuer.campaign.load import LoadedCampaign, NotLoaded, load
from issuer.campaign.model import Campaign, Stock, stock_id_of
from issuer.campaign.read import Refused, read_campaign
from issuer.campaign.scale import scaled
from issuer.campaign.shipped import shipped_document
from kernel.clock import CITY_ZONE, SystemClock
from kernel.postgres import Connection
from kernel.signing import Algorithm, Signer
from stack.data_folder import write_atomically
from stack.enrol import enrol_partner
from stack.errors import StackError
from stack.new_city import found_city
from stack.reach import Reach
from stack.running import Stack

MODEL, MODEL_ROUND = "wuhan-2020", "r01"
STAYS_OPEN = timedelta(hours=1)
PLAN_KEYS_LIFE = timedelta(days=1)
KNOWN_WITHIN_S, KNOCK_EVERY_S = 15.0, 0.3
"""Keys and stocks must be known to the issuer by then; it looks every few seconds."""
SHARES = {Algorithm.HMAC: 4, Algorithm.RSA: 1}
"""An RSA signature costs the load generator about fifty times an HMAC, so few citizens come that way."""

_queries = sql.load("load")


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How large a run is. `lead_s`: the round opens so long after it is loaded."""

    citizens: int
    vouchers: int
    seconds: int
    processes: int
    lead_s: int
    seed: int


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """A round that waits for noon, and the plan of its clients (mode 600: it holds secrets)."""

    run_id: str
    plan: Path
    opens_at: datetime
    """By this machine's clock."""
    stock_nos: Mapping[str, int]
    quantities: Mapping[str, int]

    @property
    def folder(self) -> Path:
        """Where the plan lies, and the clients' logs."""
        return self.plan.parent


@asynccontextmanager
async def prepared(stack: Stack | Reach, size: Size) -> AsyncIterator[Prepared]:
    """Everything up to the wait for noon. At the end of the block the plan is deleted and its keys revoked."""
    run_id = secrets.token_hex(4)
    plan = stack.folder.path / "load" / run_id / "plan.json"
    plan.parent.mkdir(mode=0o700, parents=True)
    signers: list[Signer] = []
    async with _operator(stack) as conn:
        try:
            yield await _prepare(conn, stack, size, run_id, plan, signers)
        finally:
            plan.unlink(missing_ok=True)
            await conn.execute(_queries["revoke_keys"], _serials(signers), SystemClock().now())


async def write_plan(stack: Stack | Reach, size: Size, plan: Path) -> Prepared:
    """The same for clients that somebody else runs, with keys that are good for a day."""
    signers: list[Signer] = []
    async with _operator(stack) as conn:
        run = await _prepare(conn, stack, size, secrets.token_hex(4), plan, signers)
        await conn.execute(_queries["limit_keys"], _serials(signers), SystemClock().now() + PLAN_KEYS_LIFE)
    return run


@asynccontextmanager
async def _operator(stack: Stack | Reach) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
    conn = await asyncpg.connect(stack.dsn("hanquan_operator"), timeout=10)
    try:
        yield conn
    finally:
        await conn.close(timeout=5)


def _serials(signers: Sequence[Signer]) -> list[str]:
    return [signer.serial_no for signer in signers]


async def _prepare(
    conn: Connection, stack: Stack | Reach, size: Size, run_id: str, plan: Path, signers: list[Signer]
) -> Prepared:
    base_url, clock = stack.addresses["issuer"], SystemClock()
    async with aiohttp.ClientSession(base_url, timeout=aiohttp.ClientTimeout(total=5)) as http:
        ahead = await _server_time(http) - clock.now()
        opens_at = (clock.now() + timedelta(seconds=size.lead_s)).replace(microsecond=0)
        campaign = make_campaign(run_id, size.vouchers, opens_at + ahead)
        loaded = await _load(conn, stack, campaign, clock.now())
        signers += await _enrol(conn, stack, campaign, clock.now() + ahead)
        stocks = campaign.rounds[0].stocks
        await _wait_known(http, signers, stocks, clock.now() + ahead)
    words = _plan(run_id, size, base_url, opens_at + ahead, ahead, signers, stocks)
    write_atomically(plan, msgspec.json.format(msgspec.json.encode(words)))
    return Prepared(
        run_id=run_id,
        plan=plan,
        opens_at=opens_at,
        stock_nos=loaded.stock_nos,
        quantities={stock.stock_id: stock.quantity for stock in stocks},
    )


async def _load(conn: Connection, stack: Stack | Reach, campaign: Campaign, now: datetime) -> LoadedCampaign:
    await found_city(conn, stack.valkey_url)
    loaded = await load(conn, campaign, f"{MODEL}, {MODEL_ROUND}, scaled by ./hanquan load", now=now)
    if isinstance(loaded, NotLoaded):
        raise StackError(loaded.detail)
    return loaded


async def _enrol(conn: Connection, stack: Stack | Reach, campaign: Campaign, now: datetime) -> list[Signer]:
    """A key for each partner; every third one, from the second on, signs with RSA."""
    master_key = bytes.fromhex(stack.secrets.master_key)
    kinds = (Algorithm.HMAC, Algorithm.RSA, Algorithm.HMAC)
    return [
        await enrol_partner(conn, master_key, partner.partner_id, kinds[place % 3], now)
        for place, partner in enumerate(campaign.partners)
    ]


def make_campaign(run_id: str, vouchers: int, opens_at: datetime) -> Campaign:
    """One round of the model campaign, under a name of its own, with so many vouchers."""
    model = read_campaign(shipped_document(MODEL))
    if isinstance(model, Refused):
        raise StackError(f"the campaign {MODEL} that comes with Hanquan cannot be read")
    try:
        small = scaled(model, MODEL_ROUND, vouchers)
    except ValueError as error:
        raise StackError(f"{vouchers} vouchers are too few: {error}") from error
    campaign_id, only = f"load-{run_id}", small.rounds[0]
    opens_at = opens_at.astimezone(CITY_ZONE)
    stocks = tuple(
        msgspec.structs.replace(
            stock, stock_id=stock_id_of(campaign_id, only.round_id, stock.partner_id, stock.category_id)
        )
        for stock in only.stocks
    )
    fresh = msgspec.structs.replace(
        only,
        opens_at=opens_at,
        closes_at=opens_at + STAYS_OPEN,
        valid_until=opens_at + timedelta(days=7),
        stocks=stocks,
    )
    return msgspec.structs.replace(
        small,
        campaign_id=campaign_id,
        title_zh=f"压力测试 {run_id}",
        title_en=f"Load test {run_id}",
        opening_time=opens_at.time(),
        rounds=(fresh,),
    )


async def _server_time(http: aiohttp.ClientSession) -> datetime:
    """The campaign's clock may be ahead of the machine's (docs/adr/0007); a refusal tells it."""
    async with http.get("/v1/claims/what-time-is-it") as response:
        said: dict[str, str] = await response.json(content_type=None)
    return datetime.fromisoformat(said["server_time"])


async def _wait_known(
    http: aiohttp.ClientSession, signers: Sequence[Signer], stocks: Sequence[Stock], now: datetime
) -> None:
    """Waits until every stock answers, to its partner's key, that the round has not opened yet."""
    by_partner, deadline = {one.holder_id: one for one in signers}, monotonic() + KNOWN_WITHIN_S
    for stock in stocks:
        while (code := await _knock(http, by_partner[stock.partner_id], stock, now)) != "NOT_STARTED":
            if monotonic() > deadline:
                raise StackError(f"stock {stock.stock_id} was not ready in {KNOWN_WITHIN_S:g} s: {code}")
            await asyncio.sleep(KNOCK_EVERY_S)


async def _knock(http: aiohttp.ClientSession, signer: Signer, stock: Stock, now: datetime) -> str:
    claim = {"out_request_no": f"knock-{secrets.token_hex(8)}", "stock_id": stock.stock_id}
    body = msgspec.json.encode(claim | {"person_token": secrets.token_hex(16)})
    header = signer.authorization(
        "POST", "/v1/claims", body, timestamp_s=int(now.timestamp()), nonce=secrets.token_hex(8)
    )
    async with http.post("/v1/claims", data=body, headers={"Authorization": header}) as response:
        said: dict[str, str] = await response.json(content_type=None)
    return said.get("code", "")


def _plan(
    run_id: str,
    size: Size,
    base_url: str,
    opens_at: datetime,
    ahead: timedelta,
    signers: Sequence[Signer],
    stocks: Sequence[Stock],
) -> dict[str, object]:
    """As loadtests/README.md describes it."""
    return {
        "run_id": run_id,
        "base_url": base_url,
        "noon_ms": int(opens_at.timestamp() * 1000),
        "seconds": size.seconds,
        "citizens": size.citizens,
        "seed": size.seed,
        "clock_ahead_ms": ahead // timedelta(milliseconds=1),
        "partners": [_partner(signer) for signer in signers],
        "stocks": [
            {"stock_id": stock.stock_id, "partner_id": stock.partner_id, "quantity": stock.quantity} for stock in stocks
        ],
    }


def _partner(signer: Signer) -> dict[str, object]:
    if isinstance(signer.secret, bytes):
        secret = signer.secret.hex()
    else:
        secret = signer.secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return {
        "partner_id": signer.holder_id,
        "serial_no": signer.serial_no,
        "algorithm": signer.algorithm.value,
        "secret": secret,
        "share": SHARES[signer.algorithm],
    }
