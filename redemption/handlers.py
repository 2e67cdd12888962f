"""HTTP of the checkout: parse, call the use case, render."""

from datetime import date

import msgspec
from aiohttp import web

from kernel.codes import CodeBook
from kernel.errors import Broken, Refusal, param_error
from kernel.ids import REQUEST_NO
from kernel.postgres import READ_DEADLINE_S, Pool, connected, within
from kernel.web import decode, json_response, problem_response, read_signed
from redemption.catalogue import LiveCatalogue
from redemption.checkout import RedeemRequest, Till
from redemption.find import find_redemption
from redemption.ledger import Ledger
from redemption.refund import RefundDesk, RefundRequest
from redemption.settlement.refusals import Refused
from redemption.settlement.statement import statement

TILL = web.AppKey("TILL", Till)
REFUNDS = web.AppKey("REFUNDS", RefundDesk)
LEDGER = web.AppKey("LEDGER", Ledger)
CATALOGUE = web.AppKey("CATALOGUE", LiveCatalogue)
READERS = web.AppKey("READERS", Pool)
CODES = web.AppKey("CODES", CodeBook)

TILL_BYTES_MAX = 4_096
OFFSET_DIGITS_MAX = 9

_redeem_decoder = msgspec.json.Decoder(RedeemRequest)
_refund_decoder = msgspec.json.Decoder(RefundRequest)


async def post_redemption(request: web.Request) -> web.Response:
    """POST /v1/redemptions"""
    caller, body = await read_signed(request, "merchant", bytes_max=TILL_BYTES_MAX)
    told = await request.app[TILL].redeem(caller, decode(_redeem_decoder, body))
    if isinstance(told, Refusal):
        return problem_response(request, told)
    return json_response(told.answer, replayed=told.replayed)


async def post_refund(request: web.Request) -> web.Response:
    """POST /v1/refunds"""
    caller, body = await read_signed(request, "merchant", bytes_max=TILL_BYTES_MAX)
    told = await request.app[REFUNDS].refund(caller, decode(_refund_decoder, body))
    if isinstance(told, Refusal):
        return problem_response(request, told)
    return json_response(told.answer, replayed=told.replayed)


async def get_redemption(request: web.Request) -> web.Response:
    """GET /v1/redemptions/{use_request_no}"""
    caller, _ = await read_signed(request, "merchant")
    number = request.match_info["use_request_no"]
    if not REQUEST_NO.fullmatch(number):
        raise param_error("a request number has 6 to 40 characters of A-Z a-z 0-9 _ -", "use_request_no")
    app = request.app
    finding = find_redemption(app[LEDGER], app[CATALOGUE], app[CODES], caller, number)
    found = await within(READ_DEADLINE_S, finding)
    return problem_response(request, found) if isinstance(found, Refusal) else json_response(found)


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


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise param_error("a day reads like 2020-04-23", "date") from None
