"""A partner's address is somebody else's word: what is called, what is not, and what counts as a yes."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from issuer.callbacks.endpoint import Endpoint
from kernel.web import Handler


async def post_to(url: str, *, may_be_private: bool) -> str | None:
    endpoint = Endpoint(url, may_be_private=may_be_private, connections=1)
    try:
        return await endpoint.post(b"{}", {})
    finally:
        await endpoint.close()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_a_name_that_leads_inside_is_not_called(host: str) -> None:
    called: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        called.append(request.path)
        return web.Response(status=204)

    async with serving(handler) as url:
        inside = url.replace("127.0.0.1", host)
        assert "is not a public address" in str(await post_to(inside, may_be_private=False))
        assert not called
        assert await post_to(inside, may_be_private=True) is None


async def test_answers_that_are_no_yes(tmp_path: Path) -> None:
    calls: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        calls.append(request.path)
        match request.path:
            case "/away":
                return web.Response(status=307, headers={"Location": "/yes"})
            case "/long":
                return web.Response(status=500, body=b"\x1b[31m" + b"x" * 5_000_000)
            case "/created":
                return web.Response(status=201)
            case "/endless":
                response = web.StreamResponse()
                await response.prepare(request)
                for _ in range(40):
                    await response.write(b"y" * 65_536)
                return response
            case _:
                return web.Response(status=200, text="fine")

    async with serving(handler) as url:
        assert await post_to(f"{url}/away", may_be_private=True) == "HTTP 307: redirects are not followed"
        long = await post_to(f"{url}/long", may_be_private=True)
        assert long is not None
        assert (len(long) <= 200, long.isprintable()) == (True, True)
        assert str(await post_to(f"{url}/created", may_be_private=True)).startswith("HTTP 201")
        assert await post_to(f"{url}/endless", may_be_private=True) is None, "a yes is a yes after its first line"
        assert await post_to(f"{url}/yes", may_be_private=True) is None
        assert calls == ["/away", "/long", "/created", "/endless", "/yes"]
        assert "does not resolve" in str(await post_to("https://nowhere.invalid/", may_be_private=False))
    assert "cannot connect" in str(await post_to(url, may_be_private=True)), "nobody is there any more"
    async with serving(handler, own_certificate(tmp_path)) as url:
        assert await post_to(url, may_be_private=True) == "its certificate is not trusted"


@asynccontextmanager
async def serving(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A partner's server for the length of the block; its base URL."""
    app = web.Application()
    app.router.add_post("/{tail:.*}", handler)
    server = TestServer(app, scheme="https" if tls else "http")
    await server.start_server(ssl=tls)
    try:
        yield str(server.make_url("")).rstrip("/")
    finally:
        await server.close()


def own_certificate(folder: Path) -> ssl.SSLContext:
    """TLS with a certificate that nobody vouches for."""
    key = generate_private_key(SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - timedelta(days=1))
    made = builder.not_valid_after(now + timedelta(days=1)).sign(key, SHA256())
    file = folder / "own.pem"
    file.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + made.public_bytes(Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context
