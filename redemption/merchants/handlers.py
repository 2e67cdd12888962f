"""HTTP of merchants, signed with a terminal's key: what the merchant is, and its new key.

GET /v1/merchant         how it stands, its stores, its terminals and their keys
POST /v1/keys:rotate     registers a new RSA public key for the terminal that asks
"""

import base64
from typing import Annotated

import msgspec
from aiohttp import web

from kernel.clock import rfc3339
from kernel.errors import Broken, Refusal, Rejected, param_error
from kernel.postgres import connected
from kernel.signing import Caller, parse_authorization
from kernel.web import CLOCK, decode, json_response, problem_response, read_signed
from redemption.handlers import READERS
from redemption.merchants.book import KeyRow, MerchantBook, MerchantRow, StoreRow, TerminalRow
from redemption.merchants.keys import KeyMaterial, is_proven, public_key_material, register, text_of_proof

BYTES_MAX = 4_096


class RotateBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A new public key as PEM, and four lines signed with its private half, Base64 (see keys.text_of_proof)."""

    public_key: Annotated[str, msgspec.Meta(min_length=1, max_length=2_048)]
    proof: Annotated[str, msgspec.Meta(min_length=1, max_length=1_024)]


class KeyAnswer(msgspec.Struct, frozen=True):
    """A key that signs, or soon will."""

    serial_no: str
    algorithm: str
    not_before: str
    not_after: str


class TerminalAnswer(msgspec.Struct, frozen=True):
    """A till. `standing` SUSPENDED also when its store is. `store_id` null: none is known."""

    terminal_id: str
    store_id: str | None
    standing: str
    keys: list[KeyAnswer]


class StoreAnswer(msgspec.Struct, frozen=True):
    """A shop."""

    store_id: str
    name: str
    district: str
    address: str
    category: str
    standing: str


class MerchantAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A merchant as the city sees it. `suspended_until` null: until somebody resumes it."""

    merchant_id: str
    name: str
    category: str
    district: str
    standing: str
    suspended_until: str | None
    suspended_why: str | None
    terminal_id: str | None
    stores: list[StoreAnswer]
    terminals: list[TerminalAnswer]


class RotateAnswer(msgspec.Struct, frozen=True):
    """A new key, and until when the old one signs beside it."""

    serial_no: str
    not_after: str
    old_serial_no: str
    old_not_after: str | None


_rotate_decoder = msgspec.json.Decoder(RotateBody)


def add_routes(app: web.Application) -> None:
    """The addresses for merchants. Needs KEYRING and READERS in the application."""
    app.router.add_get("/v1/merchant", get_merchant)
    app.router.add_post("/v1/keys:rotate", post_rotate)


async def get_merchant(request: web.Request) -> web.Response:
    """GET /v1/merchant"""
    caller, _ = await read_signed(request, "merchant")
    now = request.app[CLOCK].now()
    async with connected(request.app[READERS]) as conn:
        book, number = MerchantBook(conn), caller.holder_no
        merchant = await book.merchant(number, now)
        stores, terminals, keys = await book.stores(number), await book.terminals(number), await book.keys(number, now)
    if merchant is None:
        raise Broken(f"merchant {number} signs and is not enrolled")
    return json_response(_merchant_answer(caller, merchant, stores, terminals, keys))


async def post_rotate(request: web.Request) -> web.Response:
    """POST /v1/keys:rotate"""
    caller, body = await read_signed(request, "merchant", bytes_max=BYTES_MAX)
    old_serial_no, asked = _serial_no(request), decode(_rotate_decoder, body)
    key = public_key_material(asked.public_key.encode())
    if isinstance(key, Refusal):
        return problem_response(request, key)
    _insist_on_proof(caller, old_serial_no, key, asked.proof)
    async with connected(request.app[READERS]) as conn:
        book, now = MerchantBook(conn), request.app[CLOCK].now()
        told = await register(book, caller.holder_id, "", old_serial_no, key, now)
    if isinstance(told, Refusal):
        return problem_response(request, told)
    until = None if told.old_not_after is None else rfc3339(told.old_not_after)
    answer = RotateAnswer(told.serial_no, rfc3339(told.not_after), old_serial_no, until)
    return json_response(answer, replayed=told.replayed)


def _insist_on_proof(caller: Caller, old_serial_no: str, key: KeyMaterial, proof: str) -> None:
    """Or a slip with the files would lock a till out a week later."""
    text = text_of_proof(caller.holder_id, old_serial_no, key.serial_no)
    try:
        is_good = is_proven(key, base64.b64decode(proof, validate=True), text)
    except ValueError:
        is_good = False
    if not is_good:
        detail = f"proof is the signature of the new key over {text.decode()!r}, Base64"
        raise param_error(detail, "proof")


def _serial_no(request: web.Request) -> str:
    """Of the key that signed; read_signed has looked at the rest."""
    signed = parse_authorization(request.headers.get("Authorization"))
    if isinstance(signed, Refusal):
        raise Rejected(signed)
    return signed.serial_no


def _merchant_answer(
    caller: Caller, merchant: MerchantRow, stores: list[StoreRow], terminals: list[TerminalRow], keys: list[KeyRow]
) -> MerchantAnswer:
    until = merchant.suspended_until
    own = [terminal.terminal_id for terminal in terminals if terminal.terminal_no == caller.terminal_no]
    return MerchantAnswer(
        merchant_id=merchant.merchant_id,
        name=merchant.name,
        category=merchant.category,
        district=merchant.district,
        standing=_standing(merchant.suspended),
        suspended_until=None if until is None else rfc3339(until),
        suspended_why=merchant.suspended_why,
        terminal_id=own[0] if own else None,
        stores=[
            StoreAnswer(s.store_id, s.name, s.district, s.address, s.category, _standing(s.suspended)) for s in stores
        ],
        terminals=[
            TerminalAnswer(
                terminal.terminal_id,
                terminal.store_id,
                _standing(terminal.suspended),
                [_key_answer(key) for key in keys if key.terminal_no == terminal.terminal_no],
            )
            for terminal in terminals
        ],
    )


def _key_answer(key: KeyRow) -> KeyAnswer:
    return KeyAnswer(key.serial_no, key.algorithm, rfc3339(key.not_before), rfc3339(key.not_after))


def _standing(suspended: bool) -> str:
    return "SUSPENDED" if suspended else "ACTIVE"
