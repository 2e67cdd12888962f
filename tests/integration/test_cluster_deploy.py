"""The examples in deploy/: they name only what is there, and the proxy does what its README says."""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from stack.ports import free_ports
from stack.services import SERVICES

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
OTHER_PROGRAMS = {"HANQUAN_PERSON_KEY"}
"""Read by whoever makes tokens, not by kernel/settings.py."""


def test_every_setting_that_an_example_names_is_read() -> None:
    read = set(re.findall(r"HANQUAN_[A-Z_]+", (ROOT / "kernel/settings.py").read_text())) | OTHER_PROGRAMS
    named = {name: re.findall(r"HANQUAN_[A-Z_]+", name.read_text()) for name in [*UNITS, *DEPLOY.glob("env/*")]}
    assert {word for words in named.values() for word in words} <= read


def test_every_service_has_a_unit_with_its_module_and_an_environment_file() -> None:
    modules, roles = {}, {}
    for unit in UNITS:
        text = unit.read_text()
        module = re.findall(r"^ExecStart=.* -m (\S+)$", text, re.MULTILINE)[0]
        files = re.findall(r"^EnvironmentFile=/etc/hanquan/(\w+)\.env$", text, re.MULTILINE)
        examples = [(DEPLOY / "env" / f"{name}.env.example").read_text() for name in files]
        modules[module] = unit.name
        roles[module] = re.findall(r"postgresql://(\w+):", "".join(examples))
    assert modules.keys() == {service.module for service in SERVICES}
    assert roles == {service.module: [service.role] for service in SERVICES}


# ---------------------------------------------------------------- the proxy


@asynccontextmanager
async def worker(name: str, port: int) -> AsyncIterator[list[bytes]]:
    """Something like a claim worker: says who it is, keeps what it was sent."""
    bodies: list[bytes] = []

    async def ready(_: web.Request) -> web.Response:
        return web.Response(text="ready\n")

    async def claim(request: web.Request) -> web.Response:
        bodies.append(f"{request.method} {request.raw_path}\n".encode() + await request.read())
        return web.Response(text=name)

    app = web.Application()
    app.router.add_get("/readyz", ready)
    app.router.add_route("*", "/v1/{rest:.*}", claim)
    async with TestServer(app, port=port):
        yield bodies


@asynccontextmanager
async def proxy(folder: Path, ports: list[int]) -> AsyncIterator[str]:
    """The example with two workers of this machine in place of its hosts."""
    claims, tills, first, second = ports
    text = (DEPLOY / "haproxy.cfg").read_text()
    text = (
        text.replace("maxconn 20000", "maxconn 500")
        .replace(":8443", f"127.0.0.1:{claims}")
        .replace(":8444", f"127.0.0.1:{tills}")
    )
    text = text.replace("10.0.0.11:8701", f"127.0.0.1:{first}").replace("10.0.0.12:8701", f"127.0.0.1:{second}")
    text = "".join(line for line in text.splitlines(keepends=True) if " 10.0.0." not in line)
    config = folder / "haproxy.cfg"
    config.write_text(text)
    with (folder / "haproxy.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec("haproxy", "-db", "-f", str(config), stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{claims}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="HAProxy is not installed")
async def test_the_proxy_passes_on_what_was_signed_and_loses_a_worker_without_a_word(tmp_path: Path) -> None:
    ports = free_ports(4)
    async with proxy(tmp_path, ports) as url, aiohttp.ClientSession() as http:

        async def post(path: str, body: bytes = b"{}") -> tuple[int, str, Mapping[str, str]]:
            async with http.post(URL(url + path, encoded=True), data=body) as answer:
                return answer.status, await answer.text(), answer.headers

        async with worker("a", ports[2]) as seen:
            async with worker("b", ports[3]):
                await found(url, http)
                assert {(await post("/v1/claims"))[1] for _ in range(6)} == {"a", "b"}
            for _ in range(10):  # b's listener is gone, and the proxy does not know yet
                assert (await post("/v1/claims?x=%7e%2F&x"))[:2] == (200, "a")
            assert seen[-1] == b"POST /v1/claims?x=%7e%2F&x\n{}"
            assert (await post("/metrics"))[0] == 404
            assert (await post("/v1/claims:batch", b"x" * 524_289))[0] == 413
        status, said, headers = await post("/v1/claims")
        assert (status, headers["Retry-After"], headers["Content-Type"]) == (503, "1", "application/problem+json")
        assert '"code":"SYSTEM_BUSY"' in said and '"retry":"SAFE"' in said


async def found(url: str, http: aiohttp.ClientSession) -> None:
    """Waits until the proxy listens."""
    async with asyncio.timeout(60):
        while True:
            with suppress(aiohttp.ClientError):
                async with http.get(f"{url}/v1/") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.05)
