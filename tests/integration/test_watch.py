"""A noon, small and hostile, played against real processes: what they count, what they log, what the watch shows.

Played once; every test looks at what was left of it.
"""

import asyncio
import base64
import json
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
import yaml

from kernel.codes import grouped
from sql.migrate import ROLES
from stack import leftovers
from stack.commands.up import BASE_PORT
from stack.data_folder import DataFolder, Process, Run, new_secrets, write_atomically
from stack.services import SERVICES
from stack.stores import public
from stack.watch.exposition import Series, by_label, parse, pick, spread, total
from tests import stores
from tests.city import CODE_KEYS, MASTER_KEY, ROOT, City, open_city
from tests.city_plan import FEW, MANY, person
from tests.hostile import FORGERIES, MALFORMED, Ask, add_bad_keys
from tests.log_scan import Known, leaks

PHONE, ID_NUMBER, HOLDER = "13812345678", "420106199001011234", "13900001111"
PROCESSES = {
    "issuer": ("issuer", "hanquan_issuer"),
    "drain": ("issuer.drain", "hanquan_issuer"),
    "redemption": ("redemption", "hanquan_redemption"),
    "antifraud": ("antifraud", "hanquan_antifraud"),
    "callbacks": ("issuer.callbacks", "hanquan_issuer"),
}
MONITORING = ROOT / "deploy" / "monitoring"


@dataclass
class Noon:
    """What was left of it."""

    told: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Answers to claims, by partner and outcome."""
    known: Known = field(default_factory=Known)
    metrics: dict[str, str] = field(default_factory=dict)
    """What each process answered at /metrics before anything was broken."""
    logs: dict[str, bytes] = field(default_factory=dict)
    request_ids: dict[str, str] = field(default_factory=dict)
    """By what was asked."""
    frame: str = ""
    view: dict[str, Any] = field(default_factory=dict)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def noon(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Noon]:
    folder = tmp_path_factory.mktemp("noon")
    server_log = cluster.child.program.log
    began_at = server_log.stat().st_size
    played = Noon()
    async with open_city(cluster, folder) as city, AsyncExitStack() as exits:
        urls = await _start(city, exits)
        city.issuer, city.redemption = urls["issuer"], urls["redemption"]
        await _claims(city, played)
        for name, url in urls.items():
            async with city.session.get(f"{url}/metrics") as answer:
                played.metrics[name] = await answer.text()
        await _watch(city, urls, played)
        await _till(city, played)
        await _hostile(city, played)
        await _faults(city, played)
        await exits.aclose()
        played.logs = {path.name: path.read_bytes() for path in sorted(folder.glob("*.log"))}
    with server_log.open("rb") as log:
        log.seek(began_at)
        played.logs["postgres.log"] = log.read()
    yield played


async def _start(city: City, exits: AsyncExitStack) -> dict[str, str]:
    urls = {}
    for name, (module, role) in PROCESSES.items():
        child, urls[name] = city.process(module, role)
        exits.push_async_callback(child.stop)
        exits.callback(city.folder.joinpath(f"{name}.pid").write_text, str(child.pid))
        city.folder.joinpath(f"{name}.pid").write_text(str(child.pid))
        exits.push_async_callback(asyncio.sleep, 0)
        await asyncio.sleep(0)
        PIDS[name] = child.pid
    for url in urls.values():
        await _ready(city, url)
    return urls


PIDS: dict[str, int] = {}


async def _ready(city: City, url: str) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                async with city.session.get(f"{url}/readyz") as answer:
                    if answer.status == 200:
                        return
            except OSError:
                pass
            await asyncio.sleep(0.05)


# ---------------------------------------------------------------- what is played


async def _claim(city: City, played: Noon, stock: str, n: int, number: str, signer: str = "wechat") -> None:
    device = person(10_000 + n)
    played.known.tokens |= {person(n), device}
    reply = await city.claim(stock, person(n), number=number, device=device, signer=signer)
    if reply.status == 200:
        played.known.codes.add(reply.json["voucher_code"])
        outcome = "REPLAYED" if reply.headers.get("Idempotent-Replayed") else "GRANTED"
    else:
        outcome = reply.rule or str(reply.code)
    played.told[signer, outcome] += 1


async def _claims(city: City, played: Noon) -> None:
    """One of each kind of answer, and more of some."""
    for n in range(5):
        await _claim(city, played, "dining", n, f"dining-{n}")
    for n in range(2):
        await _claim(city, played, "dining", n, f"dining-{n}")
    await _claim(city, played, "dining", 0, "another-number")
    await _claim(city, played, "mall", 0, "dining-0")
    for n in range(FEW + 4):
        await _claim(city, played, "few_left", 20 + n, f"few-{n}")
    await _claim(city, played, "paused", 40, "paused-1")
    await _claim(city, played, "tomorrow", 41, "tomorrow-1")
    await _claim(city, played, "yesterday", 42, "yesterday-1")
    await _claim(city, played, "alipay_dining", 43, "stranger-1")
    await _claim(city, played, "alipay_dining", 44, "rsa-1", "alipay")
    people = [person(100 + n) for n in range(30)]
    played.known.tokens |= set(people)
    claims = [{"out_request_no": f"batch-{n:04}", "stock_id": "mall", "person_token": p} for n, p in enumerate(people)]
    reply = await city.call(city.issuer, "wechat", "POST", "/v1/claims:batch", {"claims": claims})
    played.known.codes |= {item["claim"]["voucher_code"] for item in reply.json["results"]}
    played.told["wechat", "GRANTED"] += 30


async def _till(city: City, played: Noon) -> None:
    code = sorted(played.known.codes)[0]
    async with asyncio.timeout(10):
        while (reply := await city.redeem("NOODLES", code, number="use-000001")).status != 200:
            await asyncio.sleep(0.05)  # until it is drained
    await city.redeem("HOTPOT", code.lower())
    await city.redeem("NOODLES", grouped(code))
    await city.refund("NOODLES", "use-000001")


async def _hostile(city: City, played: Noon) -> None:
    """Every bad request of tests/hostile.py, and some that carry people's data where none belongs."""
    await add_bad_keys(city, "wechat", "NOODLES")
    body = {"out_request_no": "hostile-01", "stock_id": "dining", "person_token": person(50)}
    played.known.tokens.add(person(50))
    asks = [Ask("issuer", "wechat", "POST", "/v1/claims", body)]
    asks.append(Ask("redemption", "NOODLES", "POST", "/v1/redemptions", {"voucher_code": sorted(played.known.codes)[0]}))
    asks.append(Ask("issuer", "wechat", "GET", f"/v1/vouchers/{sorted(played.known.codes)[1]}"))
    for ask in asks:
        for flaw in (*FORGERIES.values(), *(MALFORMED.values() if ask.body else ())):
            await flaw(city, ask)
    for value in (PHONE, ID_NUMBER, person(51)):
        headers = {"X-Request-Id": value}
        await city.call(city.issuer, "wechat", "GET", f"/v1/claims/{value}?person_token={person(51)}", headers=headers)
        await city.claim("dining", value, number=value)
        await city.send(city.issuer, "POST", f"/v1/{value}", b"{}", headers)
    played.known.tokens.add(person(51))
    signer = city.signers["wechat"]
    header = signer.authorization("POST", "/v1/claims", b"{}", timestamp_s=1_587_614_400, nonce="abcdefgh12345678")
    await city.send(city.issuer, "POST", "/v1/claims", b"{}", {"Authorization": header.replace("wechat", HOLDER)})
    for raw in _broken_http(header):
        await _send_raw(city.issuer, raw)


def _broken_http(authorization: str) -> list[bytes]:
    token = person(51)
    return [
        f"GET /v1/claims/abcdef?person_token={token} HTTP/9.9\r\n\r\n".encode(),
        f"GET /v1/claims/{PHONE} HTTP/1.1\r\nbad header {token} {PHONE}\r\n\r\n".encode(),
        f"POST /v1/claims HTTP/1.1\r\nAuthorization: {authorization}\x00\r\n\r\n".encode(),
        f"POST /v1/claims HTTP/1.1\r\nContent-Length: {ID_NUMBER}x\r\n\r\n".encode(),
        f"POST /v1/claims HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{token}\r\n".encode(),
    ]


async def _send_raw(url: str, data: bytes) -> None:
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    await writer.drain()
    writer.write_eof()
    await asyncio.wait_for(reader.read(), 8)
    writer.close()


async def _faults(city: City, played: Noon) -> None:
    """Rights are taken away, so that statements fail in the middle of requests and of the drain."""
    pool = city.database.pool
    code = sorted(played.known.codes)[2]
    await pool.execute("REVOKE SELECT ON voucher FROM hanquan_issuer, hanquan_redemption")
    for service, path in (("issuer", f"/v1/vouchers/{code}"), ("issuer", f"/v1/vouchers/{grouped(code)}")):
        reply = await city.call(getattr(city, service), "wechat", "GET", path)
        assert reply.status == 500
        played.request_ids[path] = reply.headers["X-Request-Id"]
    assert (await city.redeem("NOODLES", code)).status == 500
    await pool.execute("REVOKE INSERT ON voucher FROM hanquan_issuer")
    await _claim(city, played, "mall", 60, "not-drained-1")
    await city.valkey.client.xadd("af:signal", {b"n": b"x", b"b": person(51).encode()})
    await pool.execute("ALTER TABLE voucher ADD CONSTRAINT nobody CHECK (person <> $$" + person(60) + "$$::uuid)")
    await pool.execute("GRANT SELECT, INSERT ON voucher TO hanquan_issuer")
    log = city.folder / "issuer.drain.log"
    async with asyncio.timeout(10):
        while log.read_bytes().count(b"drain_waits") < 2:
            await asyncio.sleep(0.1)


# ---------------------------------------------------------------- the watch


async def _watch(city: City, urls: Mapping[str, str], played: Noon) -> None:
    """The command itself, in a folder that tells of this city as a stack's folder does."""
    data = DataFolder(city.folder / "data")
    data.make()
    data.lock()
    secrets = new_secrets()
    secrets.role_passwords.update(dict.fromkeys(ROLES, stores.PASSWORD))
    password = city.valkey.url.split("@")[0].rpartition(":")[2]
    known = {**json.loads(json.dumps({}))}
    assert not known
    write_atomically(data.path / "secrets.json", _json(secrets, valkey_password=password))
    stores_of = {"postgres": city.database.cluster.child.pid, "valkey": city.valkey.child.pid}
    data.write_run(
        Run(
            supervisor=_process("supervisor", 1),
            processes=[
                *(_process(name, pid) for name, pid in stores_of.items()),
                *(_process(name, PIDS[name], url) for name, url in urls.items()),
                _process("issuer-2", 2**22 + 1, "http://127.0.0.1:9"),
            ],
            postgres=public(city.database.dsn()),
            valkey=public(city.valkey.url),
        )
    )
    going_on = asyncio.create_task(_go_on_claiming(city, played))
    try:
        played.view = json.loads(await _hanquan("watch", "--once", "--json", "--data", str(data.path)))
        played.frame = await _hanquan("watch", "--once", "--data", str(data.path))
    finally:
        going_on.cancel()
        await asyncio.gather(going_on, return_exceptions=True)
        data.unlock()


async def _go_on_claiming(city: City, played: Noon) -> None:
    for n in range(1_000, 3_000):
        await _claim(city, Noon(known=played.known), "returning", n, f"go-on-{n}")
        await asyncio.sleep(0.01)


async def _hanquan(*words: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "stack", *words, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    return out.decode()


def _json(secrets: Any, **changes: str) -> bytes:
    import msgspec

    return msgspec.json.encode(msgspec.structs.replace(secrets, **changes))


def _process(name: str, pid: int, health: str = "") -> Process:
    return Process(name=name, pid=pid, start_ticks=leftovers.start_ticks(pid) or 0, address=health, health=health)
