"""A noon, small and hostile, played against real processes: what they count, what they log, what the watch shows.

Played once; every test looks at what was left of it.
"""

import asyncio
import json
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import msgspec
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
LEFT = ('few_left"} 0.0', f'mall"}} {MANY - 30}.0')
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
    pids: dict[str, int] = field(default_factory=dict)
    frame: str = ""
    view: dict[str, Any] = field(default_factory=dict)
    slow: list[Any] = field(default_factory=list)
    """What the store remembers of slow commands."""

    @property
    def granted(self) -> int:
        return sum(count for (_, outcome), count in self.told.items() if outcome == "GRANTED")

    def series(self, process: str) -> Series:
        """What a process told, all of it."""
        names = frozenset(re.findall(r"^(\w+)", self.metrics[process], re.MULTILINE))
        return parse(self.metrics[process], names)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def noon(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Noon]:
    folder = tmp_path_factory.mktemp("noon")
    server_log = cluster.child.program.log
    began_at = server_log.stat().st_size
    played = Noon()
    async with open_city(cluster, folder) as city, AsyncExitStack() as exits:
        urls = await _start(city, exits, played)
        city.issuer, city.redemption = urls["issuer"], urls["redemption"]
        await _claims(city, played)
        await _scrape(city, urls, played)
        await _watch(city, urls, played)
        await _till(city, played)
        await _hostile(city, played)
        await _faults(city, played)
        played.slow = await city.valkey.client.slowlog_get(128)
        await exits.aclose()
        played.logs = {path.name: path.read_bytes() for path in sorted(folder.glob("*.log"))}
    with server_log.open("rb") as log:
        log.seek(began_at)
        played.logs["postgres.log"] = log.read()
    yield played


async def _start(city: City, exits: AsyncExitStack, played: Noon) -> dict[str, str]:
    urls, children = {}, []
    for name, (module, role) in PROCESSES.items():
        child, urls[name] = city.process(module, role)
        children.append(child)
        played.pids[name] = child.pid
    exits.push_async_callback(lambda: asyncio.gather(*(child.stop() for child in children)))
    await asyncio.gather(*(_ready(city, url) for url in urls.values()))
    return urls


async def _ready(city: City, url: str) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                async with city.session.get(f"{url}/readyz") as answer:
                    if answer.status == 200:
                        return
            except OSError:
                pass
            await asyncio.sleep(0.05)


async def _scrape(city: City, urls: Mapping[str, str], played: Noon) -> None:
    """What every process tells, once the drain and the refresh of a second have caught up."""
    async with asyncio.timeout(60):
        while True:
            for name, url in urls.items():
                async with city.session.get(f"{url}/metrics") as answer:
                    played.metrics[name] = await answer.text()
            drained = re.search(r"hanquan_drained_vouchers_total.* (\d+)\.0", played.metrics["drain"])
            all_drained = drained is not None and int(drained[1]) == played.granted
            if all_drained and all(f'stock="{left}' in played.metrics["issuer"] for left in LEFT):
                return
            await asyncio.sleep(0.1)


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
        await _claim(city, played, "few_left", 20 + n, f"few-left-{n}")
    await _claim(city, played, "paused", 40, "paused-1")
    await _claim(city, played, "tomorrow", 41, "tomorrow-1")
    await _claim(city, played, "yesterday", 42, "yesterday-1")
    await _claim(city, played, "alipay_dining", 43, "stranger-1")
    await _claim(city, played, "alipay_dining", 44, "rsa-key-1", "alipay")
    people = [person(100 + n) for n in range(30)]
    played.known.tokens |= set(people)
    claims = [{"out_request_no": f"batch-{n:04}", "stock_id": "mall", "person_token": p} for n, p in enumerate(people)]
    reply = await city.call(city.issuer, "wechat", "POST", "/v1/claims:batch", {"claims": claims})
    played.known.codes |= {item["claim"]["voucher_code"] for item in reply.json["results"]}
    played.told["wechat", "GRANTED"] += 30


async def _till(city: City, played: Noon) -> None:
    code = sorted(played.known.codes)[0]
    async with asyncio.timeout(60):
        while (await city.redeem("NOODLES", code, number="use-000001")).status != 200:
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
    asks.append(
        Ask("redemption", "NOODLES", "POST", "/v1/redemptions", {"voucher_code": sorted(played.known.codes)[0]})
    )
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
    played.known.texts |= {PHONE, ID_NUMBER, HOLDER, stores.PASSWORD}
    played.known.secrets |= {MASTER_KEY, *CODE_KEYS.values()}
    played.known.secrets |= {one.secret for one in city.signers.values() if isinstance(one.secret, bytes)}
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
    await asyncio.wait_for(reader.read(), 30)
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
    assert (await city.redeem("NOODLES", code)).status == 503
    await pool.execute("REVOKE INSERT ON voucher FROM hanquan_issuer")
    await _claim(city, Noon(known=played.known), "mall", 60, "not-drained-1")
    await city.valkey.client.xadd("af:signal", {b"n": b"x", b"b": person(51).encode()})
    await pool.execute("ALTER TABLE voucher ADD CONSTRAINT nobody CHECK (person <> $$" + person(60) + "$$::uuid)")
    await pool.execute("GRANT SELECT, INSERT ON voucher TO hanquan_issuer")
    log = city.folder / "issuer.drain.log"
    async with asyncio.timeout(60):
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
    ours = msgspec.structs.replace(secrets, valkey_password=password)
    write_atomically(data.path / "secrets.json", msgspec.json.encode(ours))
    stores_of = {"postgres": city.database.cluster.child.pid, "valkey": city.valkey.child.pid}
    data.write_run(
        Run(
            supervisor=_process("supervisor", 1),
            processes=[
                *(_process(name, pid) for name, pid in stores_of.items()),
                *(_process(name, played.pids[name], url) for name, url in urls.items()),
                _process("issuer-2", 2**22 + 1, "http://127.0.0.1:9"),
            ],
            postgres=public(city.database.dsn()),
            valkey=public(city.valkey.url),
        )
    )
    going_on = asyncio.create_task(_go_on_claiming(city, played))
    try:
        told, played.frame = await asyncio.gather(
            _hanquan("watch", "--once", "--json", "--data", str(data.path)),
            _hanquan("watch", "--once", "--data", str(data.path)),
        )
        played.view = json.loads(told)
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
    out, _ = await asyncio.wait_for(process.communicate(), 90)
    assert process.returncode == 0
    return out.decode()


def _process(name: str, pid: int, health: str = "") -> Process:
    return Process(name=name, pid=pid, start_ticks=leftovers.start_ticks(pid) or 0, address=health, health=health)


# ---------------------------------------------------------------- what is counted


def test_every_answer_is_counted_once(noon: Noon) -> None:
    counted = {
        (labels["partner"], labels["outcome"]): count
        for labels, count in pick(noon.series("issuer"), "hanquan_claims_total")
    }
    assert counted == noon.told
    assert {outcome for _, outcome in counted} >= {
        "GRANTED", "REPLAYED", "SOLD_OUT", "PAUSED", "NOT_STARTED", "ENDED", "IDEMPOTENCY_MISMATCH",
        "USER_ALREADY_CLAIMED", "RESOURCE_NOT_EXISTS",
    }  # fmt: skip


def test_batches_latencies_and_calls_are_counted(noon: Noon) -> None:
    series = noon.series("issuer")
    asked = sum(noon.told.values())
    batches = spread(series, "hanquan_claim_batch_size")
    not_asked = noon.told["wechat", "RESOURCE_NOT_EXISTS"] + total(series, "hanquan_claims_sold_out_from_memory_total")
    assert batches.sum == asked - not_asked
    assert spread(series, "hanquan_claim_store_seconds").count >= batches.count
    assert spread(series, "hanquan_http_request_seconds", lambda to: to["route"] == "/v1/claims").count == asked - 30
    assert total(series, "hanquan_claims_waiting") == 0


def test_stock_drain_and_signals_are_counted(noon: Noon) -> None:
    left = by_label(noon.series("issuer"), "hanquan_stock_left_vouchers", "stock")
    assert (left["dining"], left["mall"], left["few_left"]) == (MANY - 5, MANY - 30, 0)
    assert "tomorrow" not in left
    drain = noon.series("drain")
    assert total(drain, "hanquan_drained_vouchers_total") == noon.granted
    assert 0 <= total(drain, "hanquan_drain_lag_seconds") < 30
    assert total(drain, "hanquan_log_entries") < 100  # as of a moment ago, when claims may just have come
    for name in ("issuer", "drain", "redemption"):
        assert total(noon.series(name), "hanquan_signals_dropped_total") == 0
        assert total(noon.series(name), "hanquan_postgres_connections") > 0


# ---------------------------------------------------------------- what is logged


def test_nothing_of_people_and_no_secret_is_in_any_log(noon: Noon) -> None:
    assert {"issuer.log", "issuer.drain.log", "redemption.log", "antifraud.log", "valkey.log", "postgres.log"} <= set(
        noon.logs
    )
    assert len(noon.known.tokens) > 50
    assert len(noon.known.codes) > 30
    for name, log in noon.logs.items():
        assert log, name
        assert not leaks(log, noon.known), name
    assert noon.slow == []


def test_the_scanner_finds_whatever_is_planted(noon: Noon) -> None:
    token, code = sorted(noon.known.tokens)[3], sorted(noon.known.codes)[3]
    plants = [
        token, token.upper(), repr(bytes.fromhex(token)), code, code.lower(), grouped(code), PHONE, ID_NUMBER,
        MASTER_KEY.hex(), 'Authorization: HANQUAN-HMAC-SHA256 mchid="x"', stores.PASSWORD,
    ]  # fmt: skip
    for plant in plants:
        assert leaks(noon.logs["issuer.log"] + b'{"event": "x", "of": "%s"}\n' % plant.encode(), noon.known), plant
    assert leaks(noon.logs["issuer.log"] + bytes.fromhex(token), noon.known)


def test_every_line_of_a_service_is_json_and_says_who(noon: Noon) -> None:
    for name, module in ((name, module) for name, (module, _) in PROCESSES.items()):
        lines = [json.loads(line) for line in noon.logs[f"{module}.log"].splitlines()]
        assert lines, name
        for line in lines:
            assert {"event", "level", "service", "pid", "timestamp"} <= line.keys(), line
        assert {line["pid"] for line in lines} == {noon.pids[name]}


def test_lines_about_a_request_carry_its_id(noon: Noon) -> None:
    lines = [json.loads(line) for line in noon.logs["issuer.log"].splitlines()]
    failed = [line for line in lines if line["event"] == "request_failed"]
    assert [line["request_id"] for line in failed] == list(noon.request_ids.values())
    assert {line["route"] for line in failed} == {"/v1/vouchers/{voucher_code}"}
    assert all("InsufficientPrivilege" in line["exception"] for line in failed)
    refused = [line for line in lines if line["event"] == "signature_refused"]
    assert len(refused) > 10
    assert all(re.fullmatch(r"[0-9a-f]{16}", line["request_id"]) for line in refused[:10])
    about_none = [line for line in lines if line["event"] in ("listening", "round_published", "sold_out")]
    assert about_none
    assert not any("request_id" in line for line in about_none)


# ---------------------------------------------------------------- the watch


def test_the_watch_sees_the_city_as_it_is(noon: Noon) -> None:
    view = noon.view
    stocks = {one["stock_id"]: one for line in view["rounds"] for one in line["stocks"]}
    assert stocks["few_left"] | {"partner_id": ""} == {
        "stock_id": "few_left", "partner_id": "", "quantity": FEW, "left": 0, "issued": FEW, "paused": False,
    }  # fmt: skip
    assert (stocks["dining"]["left"], stocks["dining"]["issued"]) == (MANY - 5, 5)
    assert stocks["paused"]["paused"]
    assert stocks["tomorrow"]["left"] is None
    states = {line["round_id"]: line["state"] for line in view["rounds"]}
    assert (states["now"], states["soon"], states["tomorrow"]) == ("OPEN", "NEXT", "NEXT")
    assert "2020-04-23T04:00:" <= view["now"] < "2020-04-23T04:05:00"  # it takes a moment, and longer on a busy machine
    assert view["next_opening"] == "2020-04-23T04:05:00Z"
    claims = view["claims"]
    assert claims["granted_per_s"] > 0
    assert claims["total"] > sum(noon.told.values())
    assert claims["last_minute_per_s"] == [claims["per_s"]]
    assert view["http_ms"]["p99"] >= view["http_ms"]["p50"] > 0
    assert view["store_ms"]["p50"] > 0
    assert view["coalescing"]["mean_batch"] >= 1
    assert view["postgres"]["answer_ms"] > 0
    assert view["valkey"]["memory_bytes"] > 100_000
    workers = {one["name"]: one for one in view["workers"]}
    assert {name for name, one in workers.items() if one["is_up"]} == {*PROCESSES, "postgres", "valkey"}
    assert not workers["issuer-2"]["is_up"]
    assert workers["issuer-2"]["service"] == "issuer"
    assert workers["issuer"]["cpu_percent"] > 0


def test_the_watch_draws_it(noon: Noon) -> None:
    lines = noon.frame.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 24
    drawn = (r"试点 now  OPEN, closes in 7:5\d:", "few_left", "issuer 1/2", "postgres 1/1", r"next round in 0:0\d:")
    for words in drawn:
        assert re.search(words, noon.frame), words


# ---------------------------------------------------------------- dashboard and alerts


def _queries() -> list[str]:
    dashboard = json.loads((MONITORING / "grafana-hanquan.json").read_text(encoding="utf-8"))
    alerts = yaml.safe_load((MONITORING / "alerts.yml").read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return asked + [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]


def _jobs() -> dict[str, set[str]]:
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text(encoding="utf-8"))
    return {
        job["job_name"]: {
            f"{each['labels']['service']} {target}" for each in job["static_configs"] for target in each["targets"]
        }
        for job in config["scrape_configs"]
    }


_SELECTOR = re.compile(r"\b((?:hanquan|process)_\w+|up)\b(\{[^}]*\})?")


def test_every_metric_of_dashboard_and_alerts_exists(noon: Noon) -> None:
    told = "\n".join(noon.metrics.values())
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", told, re.MULTILINE))
    exist = {"up", *kinds} | {
        f"{name}_{part}" for name, kind in kinds.items() if kind == "histogram" for part in ("bucket", "sum", "count")
    }
    assert len(_queries()) > 30
    for query in _queries():
        for name, _ in _SELECTOR.findall(query):
            assert name in exist, query


def test_dashboard_and_alerts_ask_for_the_job_that_is_scraped() -> None:
    [job] = _jobs()
    for query in _queries():
        selectors = [braces for _, braces in _SELECTOR.findall(query)]
        assert selectors, query
        assert all(f'job="{job}"' in braces for braces in selectors), query


def test_every_service_is_scraped_where_it_listens() -> None:
    [targets] = _jobs().values()
    assert targets == {f"{one.name} 127.0.0.1:{BASE_PORT + one.port_offset}" for one in SERVICES}
