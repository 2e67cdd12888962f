"""The crowd notices whatever a client may never see: each in a small service that does just that."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from kernel.clock import SystemClock
from kernel.signing import Algorithm, Signer
from stack.faults import witness
from stack.faults.crowd import Crowd

Answer = Callable[[dict[str, str]], Awaitable[web.Response]]
SIGNER = Signer(holder_id="wechat", serial_no="0123456789ABCDEF", algorithm=Algorithm.HMAC, secret=bytes(32))


def won(claim: dict[str, str], code: str = "CODE", **other: str) -> web.Response:
    return web.json_response({**claim, "voucher_code": code, **other})


def problem(status: int, code: str, retry: str, **headers: str) -> web.Response:
    return web.json_response({"code": code, "retry": retry}, status=status, headers=headers)


@pytest.fixture
async def ask(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[[Answer], Awaitable[Crowd]]]:
    """Asks a service that answers like this twice, with one number."""
    monkeypatch.setattr(witness, "ANSWER_WITHIN_S", 0.2)

    async def ask(answer: Answer) -> Crowd:
        async def post(request: web.Request) -> web.Response:
            response = await answer(json.loads(await request.read()))
            response.headers.setdefault("X-Request-Id", request.headers["X-Request-Id"])
            return response

        app = web.Application()
        app.router.add_post("/v1/claims", post)
        async with TestServer(app) as server, aiohttp.ClientSession() as session:
            crowd = Crowd(session, SIGNER, SystemClock(), [str(server.make_url("")).rstrip("/")], ["stock"], seed=1)
            claim = crowd.new_ask()
            await crowd.ask([claim])
            await crowd.ask([claim])
            return crowd

    yield ask


async def test_a_service_that_does_right(ask: Callable[[Answer], Awaitable[Crowd]]) -> None:
    async def answer(claim: dict[str, str]) -> web.Response:
        return won(claim)

    crowd = await ask(answer)
    assert (crowd.wrong, len(crowd.won), crowd.open) == ([], 1, set())


async def test_a_503_is_asked_again(ask: Callable[[Answer], Awaitable[Crowd]]) -> None:
    async def answer(claim: dict[str, str]) -> web.Response:
        return problem(503, "SYSTEM_BUSY", "SAFE", **{"Retry-After": "1"})

    crowd = await ask(answer)
    assert (crowd.wrong, crowd.won, len(crowd.open)) == ([], {}, 1)


async def _fault(claim: dict[str, str]) -> web.Response:
    return problem(500, "SYSTEM_ERROR", "SAFE")


async def _hang(claim: dict[str, str]) -> web.Response:
    await asyncio.sleep(1)
    return won(claim)


async def _no_retry_after(claim: dict[str, str]) -> web.Response:
    return problem(503, "SYSTEM_BUSY", "SAFE")


async def _never_again(claim: dict[str, str]) -> web.Response:
    return problem(503, "SYSTEM_BUSY", "NEVER", **{"Retry-After": "1"})


async def _anothers_voucher(claim: dict[str, str]) -> web.Response:
    return won(claim, out_request_no="r0-99999999")


async def _anothers_reply(claim: dict[str, str]) -> web.Response:
    response = won(claim)
    response.headers["X-Request-Id"] = "somebody"
    return response


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (_fault, "500 SYSTEM_ERROR"),
        (_hang, "no answer in"),
        (_no_retry_after, "without Retry-After"),
        (_never_again, "retry NEVER"),
        (_anothers_voucher, "the voucher of"),
        (_anothers_reply, "another request's reply"),
    ],
)
async def test_control_what_no_client_may_see_is_noticed(
    ask: Callable[[Answer], Awaitable[Crowd]], answer: Answer, words: str
) -> None:
    crowd = await ask(answer)
    assert len(crowd.wrong) == crowd.wrong_count == 2
    assert words in crowd.wrong[0]


async def test_control_two_codes_for_one_number_are_noticed(ask: Callable[[Answer], Awaitable[Crowd]]) -> None:
    codes = iter(["ONE", "TWO"])

    async def answer(claim: dict[str, str]) -> web.Response:
        return won(claim, next(codes))

    crowd = await ask(answer)
    assert "told two codes" in crowd.wrong[0]
