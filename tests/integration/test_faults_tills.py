"""The tills of the drill notice whatever no till may see: each in a small service that does just that."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import count

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from kernel.clock import SystemClock
from kernel.signing import Algorithm, Signer
from stack.faults.till_asks import CANCEL, CONFIRM, HOLD, REDEEM, REFUND
from stack.faults.tills import Tills

Answer = Callable[[dict[str, object]], web.Response]
SHOPS = [
    Signer(holder_id=f"M00000{n}", serial_no=f"0123456789ABCDE{n}", algorithm=Algorithm.HMAC, secret=bytes(32))
    for n in range(2)
]


def done(body: dict[str, object], **other: object) -> web.Response:
    return web.json_response({**body, "subsidy_fen": 2_000, "voucher_state": "EFFECTIVE", **other})


def problem(status: int, code: str, retry: str = "NEVER") -> web.Response:
    headers = {"Retry-After": "1"} if status == 503 else {}
    return web.json_response({"code": code, "retry": retry}, status=status, headers=headers)


@pytest.fixture
async def tills() -> AsyncIterator[Callable[[Answer], Awaitable[Tills]]]:
    """Tills of two shops before a service that answers like this."""
    async with aiohttp.ClientSession() as session:
        servers = []

        async def made(answer: Answer) -> Tills:
            async def post(request: web.Request) -> web.Response:
                response = answer(json.loads(await request.read()))
                response.headers["X-Request-Id"] = request.headers["X-Request-Id"]
                return response

            app = web.Application()
            app.router.add_post(REDEEM, post)
            for path in (REFUND, HOLD, CONFIRM, CANCEL):
                app.router.add_post(path, post)
            servers.append(server := TestServer(app))
            await server.start_server()
            made = Tills(session, SHOPS, SystemClock(), [str(server.make_url("")).rstrip("/")], seed=1)
            made.fresh = [f"CODE{n}" for n in range(100)]
            return made

        yield made
        for server in servers:
            await server.close()


Made = Callable[[Answer], Awaitable[Tills]]


async def test_a_service_that_does_right(tills: Made) -> None:
    held: dict[object, object] = {}

    def answer(body: dict[str, object]) -> web.Response:
        if held.setdefault(body["voucher_code"], body["use_request_no"]) != body["use_request_no"]:
            return problem(409, "USED_BY_ANOTHER_ORDER")
        return done(body)

    crowd, never = await tills(answer), asyncio.Event()
    await crowd.contest(20)
    await crowd._sell_twice(never)
    for _ in range(10):
        await crowd._sell(never)
        await crowd._press_again(never)
    await crowd.resolve()
    assert (crowd.wrong, crowd.open) == ([], set())
    assert len(crowd.done) == 12


async def test_control_a_hold_that_was_confirmed_and_cancelled_is_noticed(tills: Made) -> None:
    crowd = await tills(done)
    hold = crowd.forms.hold("CODE")
    confirm, cancel = crowd.forms.confirm(hold), crowd.forms.cancel(hold)
    crowd.ended_twice.append((confirm.key, cancel.key))
    await crowd.ask(confirm)
    await crowd.resolve()
    assert crowd.wrong == []
    await crowd.ask(cancel)
    await crowd.resolve()
    assert "was confirmed, and cancelled, too" in crowd.wrong[0]


async def test_control_a_hold_that_does_not_run_out_is_noticed(tills: Made) -> None:
    def answer(body: dict[str, object]) -> web.Response:
        return done(body) if "hold_ttl_s" in body else problem(409, "LOCKED_BY_ANOTHER_ORDER")

    crowd = await tills(answer)
    await crowd.holds_that_run_out(4, lambda: None)
    assert "though the hold ran out" in crowd.wrong[0]


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([done, lambda body: done(body, subsidy_fen=1)], "two answers to one request"),
        ([done, lambda body: problem(409, "USED_BY_ANOTHER_ORDER")], "after it was done"),
        ([lambda body: problem(409, "USED_BY_ANOTHER_ORDER"), done], "after it was refused"),
        ([lambda body: problem(500, "SYSTEM_ERROR", "SAFE")] * 2, "500 SYSTEM_ERROR"),
        ([lambda body: problem(503, "SYSTEM_BUSY")] * 2, "retry NEVER"),
    ],
)
async def test_control_what_no_till_may_be_told_is_noticed(tills: Made, answers: list[Answer], words: str) -> None:
    turns = iter(answers)

    def answer(body: dict[str, object]) -> web.Response:
        return next(turns)(body)

    crowd = await tills(answer)
    sale = crowd.forms.sale("CODE")
    await crowd.ask(sale)
    await crowd.ask(sale)
    assert words in crowd.wrong[0]


@pytest.mark.parametrize(("winners", "words"), [(2, "2 of 5 tills had it"), (0, "0 of 5 tills had it")])
async def test_control_a_voucher_that_not_just_one_till_had_is_noticed(tills: Made, winners: int, words: str) -> None:
    turns = count()

    def answer(body: dict[str, object]) -> web.Response:
        return done(body) if next(turns) < winners else problem(409, "USED_BY_ANOTHER_ORDER")

    crowd = await tills(answer)
    await crowd.contest(5)
    await crowd.resolve()
    assert words in crowd.wrong[0]


async def test_control_another_body_under_a_number_that_is_taken_is_noticed(tills: Made) -> None:
    crowd = await tills(done)
    never = asyncio.Event()
    await crowd._sell(never)
    await crowd._send_another_body(never)
    assert "for another bill under its number" in crowd.wrong[0]


async def test_control_a_voucher_refused_though_nobody_used_it_is_noticed(tills: Made) -> None:
    crowd = await tills(lambda body: problem(409, "USED_BY_ANOTHER_ORDER"))
    await crowd._sell(asyncio.Event())
    assert "for a voucher that nobody had used" in crowd.wrong[0]


async def test_what_is_never_answered_is_told(tills: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stack.faults.tills.RESOLVE_WITHIN_S", 0.1)
    crowd = await tills(lambda body: problem(503, "SYSTEM_BUSY", "SAFE"))
    await crowd.ask(crowd.forms.sale("CODE"))
    await crowd.resolve()
    assert "still not known" in crowd.wrong[0]
