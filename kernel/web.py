"""HTTP as every service of ours speaks it: problem+json, request ids, health, metrics, an orderly stop."""

import asyncio
import re
import secrets
import signal
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
import structlog
import uvloop
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, Histogram, generate_latest

from kernel.clock import Clock, rfc3339
from kernel.errors import Code, Refusal, Rejected, Unavailable, param_error
from kernel.keyring import Keyring
from kernel.logs import configure_logs
from kernel.settings import Settings
from kernel.signing import Caller

Body = TypeVar("Body")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
ReadyCheck = Callable[[], Awaitable[object]]

BODY_BYTES_MAX = 1 << 20
BODY_READ_S = 5.0
READY_CHECK_S = 1.0
DRAIN_S = 0.2
"""How long readiness is off before the listener closes, so that a proxy can turn away first."""

CLOCK = web.AppKey("CLOCK", Clock)
KEYRING = web.AppKey("KEYRING", Keyring)
READY_CHECKS: web.AppKey[list[ReadyCheck]] = web.AppKey("READY_CHECKS", list)
STOPPING = web.AppKey("STOPPING", asyncio.Event)
REQUEST_ID = web.RequestKey("REQUEST_ID", str)

log = structlog.get_logger()

_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")
_encode = msgspec.json.Encoder().encode
_seconds = Histogram(
    "hanquan_http_request_seconds",
    "Time from the request's arrival to its answer",
    ("route", "status"),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)


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


def make_problem(refusal: Refusal, clock: Clock, request_id: str | None = None) -> Problem:
    """A refusal as it is sent."""
    code = refusal.code
    return Problem(
        type="urn:hanquan:problem:" + code.lower().replace("_", "-"),
        title=code.meaning,
        status=code.http_status,
        code=code,
        detail=refusal.detail,
        retry=code.retry,
        server_time=rfc3339(clock.now()),
        rule=refusal.rule,
        pointer=refusal.pointer,
        retry_after_s=refusal.retry_after_s,
        request_id=request_id,
    )


def json_response(answer: object, *, status: int = 200, replayed: bool = False) -> web.Response:
    """An answer. `replayed` marks one that was given before, without changing its body."""
    headers = {"Idempotent-Replayed": "true"} if replayed else None
    return web.Response(body=_encode(answer), status=status, content_type="application/json", headers=headers)


def problem_response(request: web.Request, refusal: Refusal) -> web.Response:
    """A refusal as problem+json."""
    problem = make_problem(refusal, request.app[CLOCK], request.get(REQUEST_ID))
    headers = {"Retry-After": str(refusal.retry_after_s)} if refusal.retry_after_s is not None else None
    return web.Response(
        body=_encode(problem), status=problem.status, content_type="application/problem+json", headers=headers
    )


async def read_signed(request: web.Request, kind: str, *, bytes_max: int = BODY_BYTES_MAX) -> tuple[Caller, bytes]:
    """The caller of a signed request, of the kind wanted, and its body. Rejected otherwise."""
    body = await _read_body(request, bytes_max)
    caller = request.app[KEYRING].authenticate(
        request.headers.get("Authorization"), request.method, request.raw_path, body
    )
    if caller.kind != kind:
        raise Rejected(Refusal(code=Code.SIGN_ERROR, detail=f"this address is for a {kind}'s key"))
    return caller, body


async def _read_body(request: web.Request, bytes_max: int) -> bytes:
    if "Content-Encoding" in request.headers:
        raise param_error("send the body as it is, without Content-Encoding")
    if (request.content_length or 0) > bytes_max:
        raise _too_large(bytes_max)
    try:
        async with asyncio.timeout(BODY_READ_S):
            body = await request.read()
    except TimeoutError:
        raise param_error(f"the body did not arrive within {BODY_READ_S:.0f} s") from None
    if len(body) > bytes_max:
        raise _too_large(bytes_max)
    return body


def _too_large(bytes_max: int) -> Rejected:
    return Rejected(Refusal(code=Code.BODY_TOO_LARGE, detail=f"a body here may have up to {bytes_max} bytes"))


def decode(decoder: msgspec.json.Decoder[Body], body: bytes) -> Body:
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


@web.middleware
async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    started = time.perf_counter()
    asked_id = request.headers.get("X-Request-Id", "")
    request[REQUEST_ID] = request_id = asked_id if _REQUEST_ID.fullmatch(asked_id) else secrets.token_hex(8)
    response = await _guarded(request, handler)
    response.headers["X-Request-Id"] = request_id
    resource = request.match_info.route.resource
    route = resource.canonical if resource else "unknown"
    _seconds.labels(route, response.status).observe(time.perf_counter() - started)
    return response


async def _guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Rejected as error:
        return problem_response(request, error.refusal)
    except Unavailable as error:
        busy = Refusal(code=Code.SYSTEM_BUSY, detail=str(error), retry_after_s=error.retry_after_s)
        return problem_response(request, busy)
    except web.HTTPException as error:
        response = problem_response(request, _of_http(error))
        if "Allow" in error.headers:  # RFC 9110: a 405 says what is taken
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except Exception:
        log.exception("request_failed", request_id=request[REQUEST_ID], path=request.path)
        fault = Refusal(code=Code.SYSTEM_ERROR, detail="a fault of ours; it is logged under this request id")
        return problem_response(request, fault)


def _of_http(error: web.HTTPException) -> Refusal:
    match error.status:
        case 404:
            return Refusal(code=Code.RESOURCE_NOT_EXISTS, detail="there is nothing at this address")
        case 405:
            return Refusal(code=Code.METHOD_NOT_ALLOWED, detail="this address does not take this method")
        case 413:
            return Refusal(code=Code.BODY_TOO_LARGE, detail=f"a body may have up to {BODY_BYTES_MAX} bytes")
        case _:
            return Refusal(code=Code.PARAM_ERROR, detail=error.reason)


def new_app(clock: Clock) -> web.Application:
    """An application with our middleware and the addresses that every service has."""
    app = web.Application(middlewares=[_answer], client_max_size=BODY_BYTES_MAX)
    app[CLOCK] = clock
    app[READY_CHECKS] = []
    app[STOPPING] = asyncio.Event()
    app.router.add_get("/healthz", _health)
    app.router.add_get("/readyz", _ready)
    app.router.add_get("/metrics", _metrics)
    return app


async def _health(request: web.Request) -> web.Response:
    return web.Response(text="alive\n")


async def _ready(request: web.Request) -> web.Response:
    if request.app[STOPPING].is_set():
        return web.Response(status=503, text="stopping\n")
    try:
        async with asyncio.timeout(READY_CHECK_S):
            for check in request.app[READY_CHECKS]:
                await check()
    except Exception as error:
        return web.Response(status=503, text=f"not ready: {type(error).__name__}\n")
    return web.Response(text="ready\n")


async def _metrics(request: web.Request) -> web.Response:
    return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def run_service(name: str, make_app: Callable[[Settings], Awaitable[web.Application]]) -> None:
    """Runs a service until SIGTERM or SIGINT: readiness off, requests under way finished, then out."""
    configure_logs(name)
    uvloop.run(_serve(name, make_app))


async def _serve(name: str, make_app: Callable[[Settings], Awaitable[web.Application]]) -> None:
    settings = Settings.from_env()
    app = await make_app(settings)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=10.0)
    await runner.setup()
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    site = web.TCPSite(runner, settings.host, settings.port, reuse_port=True, backlog=4096)
    await site.start()
    log.info("listening", name=name, host=settings.host, port=settings.port)
    await stop.wait()
    app[STOPPING].set()
    await asyncio.sleep(DRAIN_S)
    await runner.cleanup()
