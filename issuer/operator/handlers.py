"""HTTP of the operator service: parse, call the use case, render. Whoever signs a call is who did it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, NamedTuple

import msgspec
from aiohttp import web

from issuer.operator.answers import detail_answer, stock_answer
from issuer.operator.budget import Edited, edit_budget
from issuer.operator.life import CampaignMoved, Moved, approve_campaign, list_stocks, move_stock, show_stock
from issuer.operator.office import WHY_LENGTH_MAX, Office
from issuer.operator.rollover import RolledOver, roll_over
from issuer.operator.store import StockBook, Verb
from issuer.stock import StockStore
from kernel.errors import Refusal
from kernel.postgres import Pool, connected
from kernel.web import CLOCK, decode, json_response, problem_response, read_signed

BYTES_MAX = 4_096
QUANTITY_MAX = 2_000_000_000

Handler = Callable[[web.Request], Awaitable[web.Response]]
Quantity = Annotated[int, msgspec.Meta(ge=1, le=QUANTITY_MAX)]
Why = Annotated[str, msgspec.Meta(max_length=WHY_LENGTH_MAX)]


class Stores(NamedTuple):
    """What the service works on."""

    pool: Pool
    stock: StockStore


STORES = web.AppKey("STORES", Stores)


class MoveBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of a move."""

    why: Why = ""


class BudgetBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of an edit of a stock's quantity."""

    current_quantity: Annotated[int, msgspec.Meta(ge=0, le=QUANTITY_MAX)]
    target_quantity: Quantity
    why: Annotated[str, msgspec.Meta(min_length=1, max_length=WHY_LENGTH_MAX)]


class RolloverBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of a rollover: the id of the round that gets what is left."""

    to_round_id: str
    why: Why = ""


_move_decoder = msgspec.json.Decoder(MoveBody)
_budget_decoder = msgspec.json.Decoder(BudgetBody)
_rollover_decoder = msgspec.json.Decoder(RolloverBody)


def add_routes(app: web.Application) -> None:
    """The addresses of the operator service."""
    app.router.add_get("/v1/stocks", get_stocks)
    app.router.add_get("/v1/stocks/{stock_id}", get_stock)
    app.router.add_post("/v1/stocks/{stock_id}/budget", post_budget)
    for verb in Verb:
        app.router.add_post(f"/v1/stocks/{{stock_id}}/{verb.lower()}", _post_move(verb))
    app.router.add_post("/v1/rounds/{round}/rollover", post_rollover)
    app.router.add_post("/v1/campaigns/{campaign_id}/approve", post_approve_campaign)


async def get_stocks(request: web.Request) -> web.Response:
    """GET /v1/stocks?campaign_id=..."""
    async with _office(request) as (office, _):
        rows = await list_stocks(office, request.query.get("campaign_id"))
    return json_response({"stocks": [stock_answer(row) for row in rows]})


async def get_stock(request: web.Request) -> web.Response:
    """GET /v1/stocks/{stock_id}"""
    async with _office(request) as (office, _):
        detail = await show_stock(office, request.match_info["stock_id"])
    if isinstance(detail, Refusal):
        return problem_response(request, detail)
    return json_response(detail_answer(detail))


def _post_move(verb: Verb) -> Handler:
    async def post_move(request: web.Request) -> web.Response:
        """POST /v1/stocks/{stock_id}/{verb}"""
        async with _office(request) as (office, body):
            why = decode(_move_decoder, body or b"{}").why
            return _answer(request, await move_stock(office, request.match_info["stock_id"], verb, why))

    return post_move


async def post_budget(request: web.Request) -> web.Response:
    """POST /v1/stocks/{stock_id}/budget"""
    async with _office(request) as (office, body):
        edit = decode(_budget_decoder, body)
        stock_id = request.match_info["stock_id"]
        edited = await edit_budget(office, stock_id, edit.current_quantity, edit.target_quantity, edit.why)
    return _answer(request, edited)


async def post_rollover(request: web.Request) -> web.Response:
    """POST /v1/rounds/{campaign_id}_{round_id}/rollover"""
    campaign_id, _, round_id = request.match_info["round"].rpartition("_")
    async with _office(request) as (office, body):
        wanted = decode(_rollover_decoder, body)
        rolled = await roll_over(office, campaign_id, round_id, wanted.to_round_id, wanted.why)
    return _answer(request, rolled)


async def post_approve_campaign(request: web.Request) -> web.Response:
    """POST /v1/campaigns/{campaign_id}/approve"""
    async with _office(request) as (office, _):
        approved = await approve_campaign(office, request.match_info["campaign_id"])
    return _answer(request, approved)


@asynccontextmanager
async def _office(request: web.Request) -> AsyncIterator[tuple[Office, bytes]]:
    """The office of whoever signed this call, and its body. The name that stands in the books is the signer's."""
    caller, body = await read_signed(request, "operator", bytes_max=BYTES_MAX)
    pool, stock = request.app[STORES]
    async with connected(pool) as conn:
        book = StockBook(conn)
        by = await book.operator_name(caller.holder_no)
        yield (
            Office(conn=conn, store=stock, shards=await book.shards(), by=by, now=request.app[CLOCK].now()),
            body,
        )


def _answer(request: web.Request, answer: Moved | CampaignMoved | Edited | RolledOver | Refusal) -> web.Response:
    """The answer; of what had been done before, the same with a header that says so."""
    if isinstance(answer, Refusal):
        return problem_response(request, answer)
    replayed = answer.moved == 0 if isinstance(answer, CampaignMoved) else answer.replayed
    return json_response(_told(answer), replayed=replayed)


def _told(answer: Moved | CampaignMoved | Edited | RolledOver) -> dict[str, object]:
    told: dict[str, object] = msgspec.to_builtins(answer)
    return {name: value for name, value in told.items() if name not in ("replayed", "moved")}
