"""HTTP of the issuer: parse, call the use case, render."""

from typing import Annotated

import msgspec
from aiohttp import web

from issuer.claim import BATCH_MAX, ClaimAnswer, ClaimDesk, ClaimRequest, Told
from issuer.find import Finder
from kernel.clock import Clock
from kernel.errors import Refusal, Rejected, param_error
from kernel.ids import REQUEST_NO, TOKEN
from kernel.web import CLOCK, Problem, decode, json_response, make_problem, problem_response, read_signed

DESK = web.AppKey("DESK", ClaimDesk)
FINDER = web.AppKey("FINDER", Finder)

CLAIM_BYTES_MAX = 4_096
BATCH_BYTES_MAX = 512 * 1024


class Batch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /v1/claims:batch. Items are judged one by one, in their own words."""

    claims: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1, max_length=BATCH_MAX)]


class BatchItem(msgspec.Struct, omit_defaults=True):
    """One item's outcome, in the order asked: a voucher or a problem."""

    status: int
    claim: ClaimAnswer | None = None
    problem: Problem | None = None
    replayed: bool = False


class BatchAnswer(msgspec.Struct):
    """Answer of POST /v1/claims:batch."""

    results: list[BatchItem]


_claim_decoder = msgspec.json.Decoder(ClaimRequest)
_batch_decoder = msgspec.json.Decoder(Batch)


async def post_claim(request: web.Request) -> web.Response:
    """POST /v1/claims"""
    caller, body = await read_signed(request, "partner", bytes_max=CLAIM_BYTES_MAX)
    told = await request.app[DESK].claim(caller.holder_no, decode(_claim_decoder, body))
    if isinstance(told, Refusal):
        return problem_response(request, told)
    return json_response(told.answer, replayed=told.replayed)


async def post_claims_batch(request: web.Request) -> web.Response:
    """POST /v1/claims:batch"""
    caller, body = await read_signed(request, "partner", bytes_max=BATCH_BYTES_MAX)
    items = decode(_batch_decoder, body).claims
    read = [_read_item(item) for item in items]
    claims = [item for item in read if isinstance(item, ClaimRequest)]
    told = iter(await request.app[DESK].claim_all(caller.holder_no, claims))
    clock = request.app[CLOCK]
    outcomes = [next(told) if isinstance(item, ClaimRequest) else item for item in read]
    return json_response(BatchAnswer([_item(outcome, clock) for outcome in outcomes]))


async def get_claim(request: web.Request) -> web.Response:
    """GET /v1/claims/{out_request_no}?person_token=..."""
    caller, _ = await read_signed(request, "partner")
    number, person = request.match_info["out_request_no"], request.query.get("person_token", "")
    if not REQUEST_NO.fullmatch(number):
        raise param_error("a request number has 6 to 40 characters of A-Z a-z 0-9 _ -", "out_request_no")
    if not TOKEN.fullmatch(person):
        raise param_error("give the person_token of the claim, 32 lowercase hex characters", "person_token")
    return _found(request, await request.app[FINDER].by_request(caller.holder_no, number, bytes.fromhex(person)))


async def get_voucher(request: web.Request) -> web.Response:
    """GET /v1/vouchers/{voucher_code}"""
    caller, _ = await read_signed(request, "partner")
    return _found(request, await request.app[FINDER].by_code(caller.holder_no, request.match_info["voucher_code"]))


def _found(request: web.Request, found: object) -> web.Response:
    return problem_response(request, found) if isinstance(found, Refusal) else json_response(found)


def _read_item(item: msgspec.Raw) -> ClaimRequest | Refusal:
    try:
        return decode(_claim_decoder, bytes(item))
    except Rejected as error:
        return error.refusal


def _item(outcome: Told | Refusal, clock: Clock) -> BatchItem:
    if isinstance(outcome, Refusal):
        problem = make_problem(outcome, clock)
        return BatchItem(status=problem.status, problem=problem)
    return BatchItem(status=200, claim=outcome.answer, replayed=outcome.replayed)
