"""HTTP of the issuer: parse, call the use case, render."""

from collections.abc import Sequence
from typing import Annotated

import msgspec
from aiohttp import web

from issuer.claim import BATCH_MAX, ClaimDesk, ClaimRequest, Told
from issuer.find import Finder
from kernel.answers import Ask, Reply, authenticate, encode, problem_reply
from kernel.clock import Clock
from kernel.errors import Refusal, Rejected, param_error
from kernel.ids import REQUEST_NO, TOKEN
from kernel.web import CLOCK, KEYRING, add_ask_post, decode, json_response, make_problem, problem_response, read_signed

DESK = web.AppKey("DESK", ClaimDesk)
FINDER = web.AppKey("FINDER", Finder)

CLAIM_BYTES_MAX = 4_096
BATCH_BYTES_MAX = 512 * 1024

_Length = msgspec.Meta(min_length=1, max_length=BATCH_MAX)


class Batch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /v1/claims:batch when every item can be read."""

    claims: Annotated[list[ClaimRequest], _Length]


class RawBatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The same when some cannot: items are judged one by one, each in its own words."""

    claims: Annotated[list[msgspec.Raw], _Length]


_claim_decoder = msgspec.json.Decoder(ClaimRequest)
_batch_decoder = msgspec.json.Decoder(Batch)
_raw_batch_decoder = msgspec.json.Decoder(RawBatch)


def add_routes(app: web.Application) -> None:
    """The claim service's addresses."""
    add_ask_post(app, "/v1/claims", post_claim, bytes_max=CLAIM_BYTES_MAX)
    add_ask_post(app, "/v1/claims:batch", post_claims_batch, bytes_max=BATCH_BYTES_MAX)
    app.router.add_get("/v1/claims/{out_request_no}", get_claim)
    app.router.add_get("/v1/vouchers/{voucher_code}", get_voucher)
    app.router.add_get("/v1/vouchers/{voucher_code}/seed", get_seed)


async def post_claim(ask: Ask) -> Reply:
    """POST /v1/claims"""
    caller = authenticate(ask, "partner")
    told = await ask.app[DESK].claim(caller.holder_no, decode(_claim_decoder, ask.body))
    if isinstance(told, Refusal):
        return problem_reply(told, ask.app, ask.request_id)
    return Reply(told.body, replayed=told.replayed)


async def post_claims_batch(ask: Ask) -> Reply:
    """POST /v1/claims:batch"""
    caller = authenticate(ask, "partner")
    items = _read_batch(ask.body)
    ask.app[KEYRING].charge(caller, len(items) - 1)
    claims = [item for item in items if isinstance(item, ClaimRequest)]
    told = iter(await ask.app[DESK].claim_all(caller.holder_no, claims))
    return Reply(_results([item if isinstance(item, Refusal) else next(told) for item in items], ask.app[CLOCK]))


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


async def get_seed(request: web.Request) -> web.Response:
    """GET /v1/vouchers/{voucher_code}/seed"""
    caller, _ = await read_signed(request, "partner")
    found = await request.app[FINDER].till_seed(caller.holder_no, request.match_info["voucher_code"])
    response = _found(request, found)
    response.headers["Cache-Control"] = "no-store"  # a secret: no cache on the way keeps it
    return response


def _found(request: web.Request, found: object) -> web.Response:
    return problem_response(request, found) if isinstance(found, Refusal) else json_response(found)


def _read_batch(body: bytes) -> Sequence[ClaimRequest | Refusal]:
    try:
        return _batch_decoder.decode(body).claims
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        items = decode(_raw_batch_decoder, body).claims
        return [_read_item(number, item) for number, item in enumerate(items)]


def _read_item(number: int, item: msgspec.Raw) -> ClaimRequest | Refusal:
    place = f"claims[{number}]"
    try:
        return decode(_claim_decoder, item)
    except Rejected as error:
        field = error.refusal.pointer
        return msgspec.structs.replace(error.refusal, pointer=f"{place}.{field}" if field else place)


def _results(outcomes: Sequence[Told | Refusal], clock: Clock) -> bytes:
    problems: dict[int, bytes] = {}  # many items are refused alike, with the very same object
    items = []
    for outcome in outcomes:
        if isinstance(outcome, Refusal):
            item = problems.get(id(outcome))
            if item is None:
                item = problems[id(outcome)] = _problem_item(outcome, clock)
            items.append(item)
        else:
            items.append(b'{"status":200,"claim":%b%b}' % (outcome.body, _REPLAYED if outcome.replayed else b""))
    return b'{"results":[%b]}' % b",".join(items)


def _problem_item(refusal: Refusal, clock: Clock) -> bytes:
    return b'{"status":%d,"problem":%b}' % (refusal.code.http_status, encode(make_problem(refusal, clock)))


_REPLAYED = b',"replayed":true'
