"""POST /v1/claims and its neighbours, attacked: badly signed, badly written, badly wrapped, badly sent.

Nothing changes, and the answer says what is wrong. The last tests are the controls.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from yarl import URL

from issuer.handlers import BATCH_BYTES_MAX, CLAIM_BYTES_MAX
from kernel.errors import Code
from kernel.web import KEYRING
from tests import stores
from tests.city import City, assert_problem, open_city, unchanged
from tests.city_plan import person
from tests.hostile import (
    BAD_NUMBERS,
    BAD_TOKENS,
    FORGERIES,
    MALFORMED,
    WRONG_DOORS,
    Ask,
    Flaw,
    add_bad_keys,
    bad_values,
    raw,
    too_large,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

CLAIM = Ask(
    "issuer",
    "wechat",
    "POST",
    "/v1/claims",
    {"out_request_no": "hostile-1", "stock_id": "dining", "person_token": person(0), "device_token": person(1)},
)
BATCH = Ask("issuer", "wechat", "POST", "/v1/claims:batch", {"claims": [dict(CLAIM.body or {})]})
FIND = Ask("issuer", "wechat", "GET", f"/v1/claims/no-such-1?person_token={person(0)}")
SHOW = Ask("issuer", "alipay", "GET", "/v1/vouchers/0123456789ABCDEFGHJKMNPQRS")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    async with open_city(cluster, tmp_path_factory.mktemp("claims")) as made:
        await add_bad_keys(made, "wechat", "alipay")
        yield made


# ---------------------------------------------------------------- turned away


BAD_CLAIMS: dict[str, Flaw] = {
    **MALFORMED,
    **bad_values("out_request_no", BAD_NUMBERS),
    **bad_values("person_token", BAD_TOKENS),
    **bad_values("device_token", BAD_TOKENS, may_lack=True),
    **bad_values("stock_id", {"a number": 1, "null": None, "a list": [], "an object": {}}),
}
DEEP = b"[" * 50_000
BAD_BATCHES: dict[str, Flaw] = {
    **MALFORMED,
    "items nested without end": raw(b'{"claims": [' + DEEP),
    "items nested too deep": raw(b'{"claims": [' + DEEP + b"]" * 50_000 + b"]}"),
}


@pytest.mark.parametrize("ask", [CLAIM, BATCH, FIND, SHOW], ids=["claim", "batch", "find", "show"])
@pytest.mark.parametrize("name", FORGERIES)
async def test_a_forgery_is_turned_away(city: City, ask: Ask, name: str) -> None:
    async with unchanged(city):
        assert_problem(await FORGERIES[name](city, ask), Code.SIGN_ERROR)


@pytest.mark.parametrize("name", BAD_CLAIMS)
async def test_a_malformed_claim_is_turned_away(city: City, name: str) -> None:
    async with unchanged(city):
        assert_problem(await BAD_CLAIMS[name](city, CLAIM), Code.PARAM_ERROR)


@pytest.mark.parametrize("name", BAD_BATCHES)
async def test_a_malformed_batch_is_turned_away(city: City, name: str) -> None:
    async with unchanged(city):
        assert_problem(await BAD_BATCHES[name](city, BATCH), Code.PARAM_ERROR)


@pytest.mark.parametrize("name", too_large(0))
async def test_a_body_that_is_too_large_is_turned_away(city: City, name: str) -> None:
    async with unchanged(city):
        assert_problem(await too_large(CLAIM_BYTES_MAX)[name](city, CLAIM), Code.BODY_TOO_LARGE)
        assert_problem(await too_large(BATCH_BYTES_MAX)[name](city, BATCH), Code.BODY_TOO_LARGE)


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_a_method_that_is_not_taken_is_refused(city: City, method: str) -> None:
    async with unchanged(city):
        for path in ("/v1/claims", "/v1/claims:batch"):
            reply = await city.call(city.issuer, "wechat", method, path, b"" if method == "GET" else b"{}")
            assert_problem(reply, Code.METHOD_NOT_ALLOWED)
            assert reply.headers["Allow"] == "POST"


@pytest.mark.parametrize("pattern", WRONG_DOORS)
async def test_an_address_that_is_none_is_not_found(city: City, pattern: str) -> None:
    path = pattern.format(path="/v1/claims:batch", upper="/V1/CLAIMS:BATCH")
    async with unchanged(city):
        assert_problem(await city.call(city.issuer, "wechat", "POST", path, {}), Code.RESOURCE_NOT_EXISTS)


async def test_the_good_request_is_good(city: City) -> None:
    """The control of all tables above: without a flaw the very same request is granted."""
    assert (await CLAIM.send(city)).status == 200
    [item] = (await BATCH.send(city)).json["results"]
    assert (item["status"], item["replayed"]) == (200, True)
    assert (await city.state())["{s0}:log"] is not None
    assert (await FIND.send(city)).status == 404
    assert (await SHOW.send(city)).status == 404


async def test_the_state_sees_a_change(city: City) -> None:
    """The control of `unchanged`: a claim, a drain and a single field in either store are seen."""
    with pytest.raises(AssertionError, match="log"):
        async with unchanged(city):
            await city.claim("dining", person(990))
    with pytest.raises(AssertionError, match="voucher"):
        async with unchanged(city):
            await city.drain()
    with pytest.raises(AssertionError, match="merchant"):
        async with unchanged(city):
            await city.database.pool.execute("UPDATE merchant SET refund_debt_fen_max = 1 WHERE merchant_id = 'HOTPOT'")
    with pytest.raises(AssertionError, match="round:2"):
        async with unchanged(city):
            await city.valkey.client.hincrby("{s0}:round:2", "left:1", 1)


async def test_a_request_id_is_kept_if_it_is_plain(city: City) -> None:
    for asked, kept in (("abcdefgh-1", True), ("short", False), ("line\tbreak-1", False), ("x" * 65, False)):
        reply = await city.send(city.issuer, "POST", "/v1/claims", b"", {"X-Request-Id": asked})
        assert (reply.headers["X-Request-Id"] == asked) == kept
        assert reply.json["request_id"] == reply.headers["X-Request-Id"]


# ---------------------------------------------------------------- below HTTP


def _wire(city: City, *headers: str, body: bytes = CLAIM.data) -> bytes:
    """A well signed claim as bytes, with these headers about its body."""
    lines = [
        f"{CLAIM.method} {CLAIM.path} HTTP/1.1",
        "Host: hanquan",
        f"Authorization: {CLAIM.authorization(city, CLAIM.data)}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def _talk(city: City, data: bytes) -> bytes:
    """What comes back until the service hangs up, or for a second."""
    url = URL(city.issuer)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    answer = b""
    try:
        writer.write(data)
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(1):
                while more := await reader.read(65_536):
                    answer += more
    finally:
        writer.transport.abort()
    return answer


LENGTH = len(CLAIM.data)
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (LENGTH, CLAIM.data)
SMUGGLED = b"0\r\n\r\nPOST /v1/claims HTTP/1.1\r\nHost: hanquan\r\n\r\n"


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ((f"Content-Length: {LENGTH}", "Transfer-Encoding: chunked"), SMUGGLED),
        (("Transfer-Encoding: chunked", "Content-Length: 5"), CHUNKED),
        ((f"Content-Length: {LENGTH}", "Content-Length: 4"), CLAIM.data),
        (("Content-Length: -1",), CLAIM.data),
        (("Content-Length: 1e3",), CLAIM.data),
        (("Transfer-Encoding: chunked",), b"xyz\r\n"),
        (("Transfer-Encoding: gzip",), CLAIM.data),
        (("X-Long: " + "x" * 9_000, f"Content-Length: {LENGTH}"), CLAIM.data),
        ((f"Content-Length: {LENGTH}", "Bad Header: x"), CLAIM.data),
    ],
    ids=["CL.TE", "TE.CL", "two lengths", "negative", "a float", "bad chunk", "gzip on the wire", "long", "bad name"],
)
async def test_a_request_that_can_be_read_two_ways_is_not_read(
    city: City, headers: tuple[str, ...], body: bytes
) -> None:
    async with unchanged(city):
        answer = await _talk(city, _wire(city, *headers, body=body))
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))
    assert answer.count(b"HTTP/1.") == 1


async def test_half_a_body_claims_nothing(city: City) -> None:
    async with unchanged(city):
        assert await _talk(city, _wire(city, f"Content-Length: {LENGTH}", body=CLAIM.data[:-9])) == b""


async def test_control_the_same_bytes_whole_are_answered(city: City) -> None:
    for headers, body in ((f"Content-Length: {LENGTH}", CLAIM.data), ("Transfer-Encoding: chunked", CHUNKED)):
        answer = await _talk(city, _wire(city, headers, "Connection: close", body=body))
        assert answer.startswith(b"HTTP/1.1 200 OK")


# ---------------------------------------------------------------- keys (last: it revokes them)


async def test_a_key_that_cannot_be_opened_shuts_out_nobody(city: City) -> None:
    """A damaged row is passed over: the other keys stay known, and one that is revoked is refused."""
    own = city.signers["wechat early"]
    await city.database.pool.execute(
        "INSERT INTO api_key SELECT $1, holder_kind, holder_id, terminal_no, algorithm, '\\x00', not_before, not_after"
        " FROM api_key WHERE serial_no = $2",
        "D" * 20,
        own.serial_no,
    )
    await city.database.pool.execute("UPDATE api_key SET revoked_at = now() WHERE holder_id = 'alipay'")
    keyring = city.apps[city.issuer][KEYRING]
    await keyring.reload()
    await keyring.reload()  # the damaged row did not change; it is still no key
    assert (await FIND.send(city)).status == 404
    assert_problem(await SHOW.send(city), Code.SIGN_ERROR)
