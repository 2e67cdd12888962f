"""HTTP of the checkout: parse, call the use case, render."""

from collections.abc import Callable
from datetime import date
from typing import Any

import msgspec
from aiohttp import web

from kernel.answers import Ask, Reply, authenticate, encode, make_problem, problem_reply
from kernel.codes import CodeBook
from kernel.errors import Broken, Refusal, param_error
from kernel.ids import REQUEST_NO
from kernel.postgres import READ_DEADLINE_S, Pool, connected, within
from kernel.web import CLOCK, WORDS, add_ask_post, decode, json_response, problem_response, read_signed
from redemption.checkout import Till
from redemption.find import Finder
from redemption.holds import HoldDesk
from redemption.offline import OfflineDesk
from redemption.quote import Quoted, QuoteDesk
from redemption.refund import RefundDesk
from redemption.settlement.refusals import Refused
from redemption.settlement.statement import statement
from redemption.wire import (
    CancelRequest,
    ConfirmRequest,
    Done,
    HoldRequest,
    OfflineUpload,
    QuoteRequest,
    RedeemRequest,
    RefundRequest,
)

TILL = web.AppKey("TILL", Till)
HOLDS = web.AppKey("HOLDS", HoldDesk)
OFFLINE = web.AppKey("OFFLINE", OfflineDesk)
QUOTES = web.AppKey("QUOTES", QuoteDesk)
REFUNDS = web.AppKey("REFUNDS", RefundDesk)
FINDER = web.AppKey("FINDER", Finder)
READERS = web.AppKey("READERS", Pool)
CODES = web.AppKey("CODES", CodeBook)

TILL_BYTES_MAX = 4_096
OFFLINE_BYTES_MAX = 128 * 1024
OFFSET_DIGITS_MAX = 9
CODE_LENGTH_MAX = 64

_redeem = msgspec.json.Decoder(RedeemRequest)
_hold = msgspec.json.Decoder(HoldRequest)
_confirm = msgspec.json.Decoder(ConfirmRequest)
_cancel = msgspec.json.Decoder(CancelRequest)
_refund = msgspec.json.Decoder(RefundRequest)
_quote = msgspec.json.Decoder(QuoteRequest)
_upload = msgspec.json.Decoder(OfflineUpload)


def add_routes(app: web.Application) -> None:
    """The checkout service's addresses."""
    add_ask_post(app, "/v1/redemptions", post_redemption, bytes_max=TILL_BYTES_MAX)
    add_ask_post(app, "/v1/redemptions:offline", post_offline, bytes_max=OFFLINE_BYTES_MAX)
    add_ask_post(app, "/v1/holds", post_hold, bytes_max=TILL_BYTES_MAX)
    add_ask_post(app, "/v1/holds/confirm", post_confirm, bytes_max=TILL_BYTES_MAX)
    add_ask_post(app, "/v1/holds/cancel", post_cancel, bytes_max=TILL_BYTES_MAX)
    add_ask_post(app, "/v1/quotes", post_quote, bytes_max=TILL_BYTES_MAX)
    add_ask_post(app, "/v1/refunds", post_refund, bytes_max=TILL_BYTES_MAX)
    app.router.add_get("/v1/redemptions", get_redemptions)
    app.router.add_get("/v1/redemptions/{use_request_no}", get_redemption)
    app.router.add_get("/v1/holds/{hold_request_no}", get_hold)
    app.router.add_get("/v1/statements/{date}", get_statement)


async def post_redemption(ask: Ask) -> Reply:
    """POST /v1/redemptions"""
    caller = authenticate(ask, "merchant")
    return _reply(ask, await ask.app[TILL].redeem(caller, decode(_redeem, ask.body)))


async def post_offline(ask: Ask) -> Reply:
    """POST /v1/redemptions:offline"""
    caller = authenticate(ask, "merchant")
    upload = decode(_upload, ask.body)
    told = await ask.app[OFFLINE].upload(caller, upload.redemptions)
    return Reply(encode({"results": [_result(ask, outcome) for outcome in told]}))


async def post_hold(ask: Ask) -> Reply:
    """POST /v1/holds"""
    caller = authenticate(ask, "merchant")
    return _reply(ask, await ask.app[TILL].hold(caller, decode(_hold, ask.body)))


async def post_confirm(ask: Ask) -> Reply:
    """POST /v1/holds/confirm"""
    caller = authenticate(ask, "merchant")
    return _reply(ask, await ask.app[HOLDS].confirm(caller, decode(_confirm, ask.body)))


async def post_cancel(ask: Ask) -> Reply:
    """POST /v1/holds/cancel"""
    caller = authenticate(ask, "merchant")
    return _reply(ask, await ask.app[HOLDS].cancel(caller, decode(_cancel, ask.body)))


async def post_refund(ask: Ask) -> Reply:
    """POST /v1/refunds"""
    caller = authenticate(ask, "merchant")
    return _reply(ask, await ask.app[REFUNDS].refund(caller, decode(_refund, ask.body)))


async def post_quote(ask: Ask) -> Reply:
    """POST /v1/quotes"""
    caller = authenticate(ask, "merchant")
    request = decode(_quote, ask.body)
    quoted = await within(READ_DEADLINE_S, ask.app[QUOTES].quote(caller, request))
    if isinstance(quoted, Refusal):
        return problem_reply(quoted, ask.app, ask.request_id)
    return Reply(encode({"bill_fen": request.bill_fen, "vouchers": [_quoted(ask, one, request) for one in quoted]}))


async def get_redemption(request: web.Request) -> web.Response:
    """GET /v1/redemptions/{use_request_no}"""
    caller, _ = await read_signed(request, "merchant")
    number = _number(request.match_info["use_request_no"], "use_request_no")
    return _found(request, await within(READ_DEADLINE_S, request.app[FINDER].redemption(caller, number)))


async def get_redemptions(request: web.Request) -> web.Response:
    """GET /v1/redemptions?order_no=... or ?voucher_code=..."""
    caller, _ = await read_signed(request, "merchant")
    order_no, code = request.query.get("order_no"), request.query.get("voucher_code")
    if (order_no is None) == (code is None):
        raise param_error("give order_no or voucher_code", "order_no")
    finder = request.app[FINDER]
    if code is not None:
        if not 1 <= len(code) <= CODE_LENGTH_MAX:
            raise param_error("a code has 1 to 64 characters", "voucher_code")
        return _found(request, await within(READ_DEADLINE_S, finder.by_code(caller, code)))
    found = finder.by_order(caller, _number(order_no or "", "order_no"))
    return _found(request, await within(READ_DEADLINE_S, found))


async def get_hold(request: web.Request) -> web.Response:
    """GET /v1/holds/{hold_request_no}"""
    caller, _ = await read_signed(request, "merchant")
    number = _number(request.match_info["hold_request_no"], "hold_request_no")
    return _found(request, await within(READ_DEADLINE_S, request.app[FINDER].hold(caller, number)))


async def get_statement(request: web.Request) -> web.Response:
    """GET /v1/statements/{date}?offset=0"""
    caller, _ = await read_signed(request, "merchant")
    day, offset = _day(request.match_info["date"]), request.query.get("offset", "0")
    if not (offset.isascii() and offset.isdigit() and len(offset) <= OFFSET_DIGITS_MAX):
        raise param_error("offset is the number of entries to skip", "offset")
    async with connected(request.app[READERS]) as conn:
        found = await statement(conn, caller.holder_no, day, request.app[CODES], offset=int(offset))
    if isinstance(found, Refused):
        raise Broken(f"merchant {caller.holder_no} signs and is not enrolled")
    return json_response(found)


def _reply(ask: Ask, told: Done | Refusal) -> Reply:
    if isinstance(told, Refusal):
        return problem_reply(told, ask.app, ask.request_id)
    return Reply(encode(told.answer), replayed=told.replayed)


def _result(ask: Ask, told: Done | Refusal) -> dict[str, Any]:
    if isinstance(told, Refusal):
        return {"status": told.code.http_status, "problem": _problem(ask, told)}
    return {"status": 200, "redemption": told.answer} | ({"replayed": True} if told.replayed else {})


def _quoted(ask: Ask, one: Quoted, request: QuoteRequest) -> dict[str, Any]:
    said: dict[str, Any] = {"voucher_code": one.voucher_code}
    if isinstance(one.outcome, Refusal):
        return said | {"is_best": False, "problem": _problem(ask, one.outcome)}
    saving = one.outcome
    return said | {
        "is_best": True,
        "stock_id": one.offer.stock_id if one.offer else None,
        "discount_fen": saving.discount_fen,
        "to_pay_fen": request.bill_fen - saving.discount_fen,
        "subsidy_fen": saving.subsidy_fen,
    }


def _problem(ask: Ask, refusal: Refusal) -> Any:
    words: Callable[[Refusal], Any] = ask.app[WORDS]
    return make_problem(refusal, ask.app[CLOCK], words=words(refusal))


def _found(request: web.Request, found: Any) -> web.Response:
    return problem_response(request, found) if isinstance(found, Refusal) else json_response(found)


def _number(text: str, pointer: str) -> str:
    if not REQUEST_NO.fullmatch(text):
        raise param_error("a request number has 6 to 40 characters of A-Z a-z 0-9 _ -", pointer)
    return text


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise param_error("a day reads like 2020-04-23", "date") from None
