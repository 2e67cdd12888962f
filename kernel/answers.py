"""A request and its answer below any framework: bytes in, bytes out, refusals as problem+json.

Handlers that are written against `Ask` and `Reply` can be reached the short way (kernel/short_way.py) and by
aiohttp's router alike; the rest of the service only sees aiohttp (kernel/web.py).
"""

import asyncio
import itertools
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import TypeVar

import msgspec
import structlog
from aiohttp import web
from aiohttp.helpers import rfc822_formatted_time
from prometheus_client import Histogram

from kernel.admission import Admission
from kernel.clock import Clock, rfc3339
from kernel.errors import Code, Refusal, Rejected, Retry, Unavailable, param_error
from kernel.keyring import Keyring
from kernel.signing import Caller

Body = TypeVar("Body")

CLOCK = web.AppKey("CLOCK", Clock)
KEYRING = web.AppKey("KEYRING", Keyring)
ADMISSION = web.AppKey("ADMISSION", Admission)
STOPPING = web.AppKey("STOPPING", asyncio.Event)
"""Readiness is off."""
LEAVING = web.AppKey("LEAVING", asyncio.Event)
"""Every answer is its connection's last."""

JSON, PROBLEM_JSON = "application/json", "application/problem+json"

log = structlog.get_logger()

encode = msgspec.json.Encoder().encode
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")
_ids = itertools.count(int.from_bytes(os.urandom(3)))
_worker = os.urandom(4).hex()
_seconds = Histogram(
    "hanquan_http_request_seconds",
    "Time from the request's arrival to its answer, in seconds",
    ("route", "status"),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
_seconds_of: dict[tuple[str, int], Histogram] = {}


class Ask(msgspec.Struct, frozen=True, gc=False):
    """A request that has arrived whole. `path` with its query, as sent."""

    app: web.Application
    method: str
    path: str
    authorization: str | None
    body: bytes
    request_id: str


class Reply(msgspec.Struct, frozen=True):
    """An answer. `replayed` marks one that was given before, without changing its body."""

    body: bytes
    status: int = 200
    content_type: str = JSON
    replayed: bool = False
    retry_after_s: int | None = None

    def headers(self, request_id: str) -> dict[str, str]:
        """Its header fields, but for its length."""
        fields = {"Content-Type": self.content_type, "X-Request-Id": request_id}
        if self.replayed:
            fields["Idempotent-Replayed"] = "true"
        if self.retry_after_s is not None:
            fields["Retry-After"] = str(self.retry_after_s)
        return fields

    def on_the_wire(self, request_id: str, *, is_last: bool = False) -> bytes:
        """The whole answer as HTTP/1.1. `is_last`: the connection is closed after it."""
        fields = "".join([f"{name}: {value}\r\n" for name, value in self.headers(request_id).items()])
        last = "Connection: close\r\n" if is_last else ""
        head = f"{_STATUS_LINES[self.status]}{fields}Content-Length: {len(self.body)}\r\n"
        return f"{head}Date: {rfc822_formatted_time()}\r\n{last}\r\n".encode() + self.body


AskHandler = Callable[[Ask], Awaitable[Reply]]


class Short(msgspec.Struct, frozen=True):
    """A handler with what holds for its address."""

    handler: AskHandler
    bytes_max: int

    async def answer(self, ask: Ask) -> Reply:
        """What is answered, whatever happens; never raises."""
        try:
            if len(ask.body) > self.bytes_max:
                raise Rejected(too_large(self.bytes_max))
            return await self.handler(ask)
        except Exception as error:
            return problem_reply(refusal_of(error, ask.method, ask.path.partition("?")[0]), ask.app, ask.request_id)


SHORT: web.AppKey[dict[tuple[str, str], Short]] = web.AppKey("SHORT", dict)
"""By method and path: what can be reached the short way."""


class Words(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why not, for the two people at a till, in both languages."""

    cashier_zh: str
    cashier_en: str
    citizen_zh: str
    citizen_en: str


WORDS: web.AppKey[Callable[[Refusal], Words]] = web.AppKey("WORDS")
"""How a service says no to people; services that only speak with machines have none."""


class Problem(msgspec.Struct, omit_defaults=True, kw_only=True):
    """RFC 9457 problem details, with our stable code and whether to try again."""

    type: str
    title: str
    status: int
    code: Code
    detail: str
    retry: str
    server_time: str
    rule: str | None = None
    pointer: str | None = None
    retry_after_s: int | None = None
    request_id: str | None = None
    words: Words | None = None


def make_problem(refusal: Refusal, clock: Clock, request_id: str | None = None, words: Words | None = None) -> Problem:
    """A refusal as it is sent."""
    code = refusal.code
    return Problem(
        type="urn:hanquan:problem:" + code.lower().replace("_", "-"),
        title=code.meaning,
        status=code.http_status,
        code=code,
        detail=refusal.detail,
        retry=Retry.SAFE if refusal.retry_after_s is not None else code.retry,  # who is told when may come again
        server_time=rfc3339(clock.now()),
        rule=refusal.rule,
        pointer=refusal.pointer,
        retry_after_s=refusal.retry_after_s,
        request_id=request_id,
        words=words,
    )


def problem_reply(refusal: Refusal, app: web.Application, request_id: str) -> Reply:
    """A refusal as problem+json, in the words of the service where it has some."""
    worded = app.get(WORDS)
    problem = make_problem(refusal, app[CLOCK], request_id, worded(refusal) if worded else None)
    return Reply(encode(problem), problem.status, PROBLEM_JSON, retry_after_s=refusal.retry_after_s)


def authenticate(ask: Ask, kind: str) -> Caller:
    """The caller of a request, of the kind wanted. Rejected otherwise, and when its quota is used up."""
    keyring = ask.app[KEYRING]
    return of_kind(
        keyring.authenticate(keyring.announced(ask.authorization), ask.method, ask.path, ask.body),
        kind,
    )


def of_kind(caller: Caller, kind: str) -> Caller:
    """The caller, if it is of this kind. Rejected otherwise."""
    if caller.kind != kind:
        raise Rejected(Refusal(code=Code.SIGN_ERROR, detail=f"this address is for a {kind}'s key"))
    return caller


def decode(decoder: msgspec.json.Decoder[Body], body: bytes | msgspec.Raw) -> Body:
    """The body as its struct. Rejected (PARAM_ERROR), naming the field, when it does not fit."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        detail, _, path = str(error).partition(" - at `")
        raise param_error(detail, path.rstrip("`").removeprefix("$.") or None) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise param_error("the body is not valid JSON") from None
    except RecursionError:
        raise param_error("the body is nested too deeply") from None


def too_large(bytes_max: int) -> Refusal:
    """The refusal of a body above a limit."""
    return Refusal(code=Code.BODY_TOO_LARGE, detail=f"a body here may have up to {bytes_max} bytes")


def refusal_of(error: Exception, method: str, route: str) -> Refusal:
    """What is answered when a handler raised; what nobody foresaw is logged."""
    if isinstance(error, Rejected):
        return error.refusal
    if isinstance(error, Unavailable):
        return Refusal(code=Code.SYSTEM_BUSY, detail=str(error), retry_after_s=error.retry_after_s)
    log.error("request_failed", method=method, route=route, exc_info=error)  # no address: it may hold a code
    return Refusal(code=Code.SYSTEM_ERROR, detail="a fault of ours; it is logged under this request id")


def request_id_of(headers: Mapping[str, str]) -> str:
    """The id that the client gave, if it is plain; else one of ours, 16 hex characters that nobody had before."""
    asked_id = headers.get("X-Request-Id")
    if asked_id is not None and _REQUEST_ID.fullmatch(asked_id):
        return asked_id
    return f"{_worker}{next(_ids) & 0xFFFFFFFF:08x}"


def observe(route: str, status: int, seconds: float) -> None:
    """Counts an answer and its time. Routes are patterns of ours, so there are few."""
    child = _seconds_of.get((route, status))
    if child is None:
        child = _seconds_of[route, status] = _seconds.labels(route, status)
    child.observe(seconds)
