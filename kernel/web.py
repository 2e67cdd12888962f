"""HTTP as every service of ours speaks it: problem+json, request ids, health, metrics, limits, an orderly stop.

Requests and answers themselves are in kernel/answers.py; this is their aiohttp side, and the running service.
"""

import asyncio
import gc
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import structlog
import uvloop
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, Gauge, generate_latest

from kernel import logs
from kernel.admission import BUSY, Admission, weight
from kernel.answers import (
    ADMISSION,
    CLOCK,
    KEYRING,
    LEAVING,
    SHORT,
    STOPPING,
    WORDS,
    Ask,
    AskHandler,
    Problem,
    Reply,
    Short,
    decode,
    encode,
    make_problem,
    observe,
    of_kind,
    problem_reply,
    refusal_of,
    request_id_of,
    too_large,
)
from kernel.clock import Clock
from kernel.errors import Code, Refusal, Rejected, param_error
from kernel.logs import configure_logs
from kernel.settings import Settings
from kernel.short_way import Door
from kernel.signing import Caller
from kernel.slow_clients import Guests, raise_file_limit

__all__ = [
    "CLOCK",
    "KEYRING",
    "READY_CHECKS",
    "STOPPING",
    "WORDS",
    "Problem",
    "add_ask_post",
    "decode",
    "json_response",
    "make_problem",
    "new_app",
    "problem_response",
    "read_signed",
    "run_service",
    "serving",
]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
ReadyCheck = Callable[[], Awaitable[object]]

BODY_BYTES_MAX = 1 << 20
BODY_READ_S = 5.0
READY_CHECK_S = 1.0
DRAIN_S = 0.2
"""How long readiness is off before the listener closes, so that a proxy can turn away first."""
QUIET_S = 0.5
"""Once the listener is closed: a connection without a byte for so long has nothing to say."""
GC_THRESHOLD = (10_000, 20, 50)
"""How many new objects before Python looks for cycles. A request leaves none; with the usual 700 a busy checkout spent
7 % of its time on looking."""
STOP_S = 10.0
"""How long requests under way may take to end."""
CLEANUP_S = 15.0
"""How long all that a service opened may take to close; what is open then is let go."""
NO_LIMIT = {"/healthz", "/readyz", "/metrics"}
"""These are answered however much is under way: that is when an operator looks."""

READY_CHECKS: web.AppKey[list[ReadyCheck]] = web.AppKey("READY_CHECKS", list)
REQUEST_ID = web.RequestKey("REQUEST_ID", str)

log = structlog.get_logger()

_time = Gauge("hanquan_time_seconds", "Campaign time of this process, seconds since 1970")


# ---------------------------------------------------------------- requests and answers


def json_response(answer: object, *, status: int = 200, replayed: bool = False) -> web.Response:
    """An answer. `replayed` marks one that was given before, without changing its body."""
    headers = {"Idempotent-Replayed": "true"} if replayed else None
    return web.Response(body=encode(answer), status=status, content_type="application/json", headers=headers)


def problem_response(request: web.Request, refusal: Refusal) -> web.Response:
    """A refusal as problem+json."""
    request_id = request[REQUEST_ID]
    return _response(problem_reply(refusal, request.app, request_id), request_id)


def _response(reply: Reply, request_id: str) -> web.Response:
    return web.Response(body=reply.body, status=reply.status, headers=reply.headers(request_id))


async def read_signed(request: web.Request, kind: str, *, bytes_max: int = BODY_BYTES_MAX) -> tuple[Caller, bytes]:
    """The caller of a signed request, of the kind wanted, and its body. Rejected otherwise.

    Who is over its quota is turned away before the body is read.
    """
    keyring = request.app[KEYRING]
    signed = keyring.announced(request.headers.get("Authorization"))
    body = await _read_body(request, bytes_max)
    return of_kind(keyring.authenticate(signed, request.method, request.raw_path, body), kind), body


async def _read_body(request: web.Request, bytes_max: int) -> bytes:
    if "Content-Encoding" in request.headers:
        raise param_error("send the body as it is, without Content-Encoding")
    if (request.content_length or 0) > bytes_max:
        raise Rejected(too_large(bytes_max))
    body = await _all_of(request)
    if len(body) > bytes_max:
        raise Rejected(too_large(bytes_max))
    return body


async def _all_of(request: web.Request) -> bytes:
    if request.content.is_eof():  # it is here already
        return await request.read()
    try:
        async with asyncio.timeout(BODY_READ_S):
            return await request.read()
    except TimeoutError:
        raise param_error(f"the body did not arrive within {BODY_READ_S:.0f} s") from None


def add_ask_post(app: web.Application, path: str, handler: AskHandler, *, bytes_max: int) -> None:
    """Has POSTs to a fixed address answered by a handler of `Ask`, the short way where a request allows it."""
    app[SHORT]["POST", path] = short = Short(handler, bytes_max)

    async def long_way(request: web.Request) -> web.Response:
        authorization, request_id = request.headers.get("Authorization"), request[REQUEST_ID]
        request.app[KEYRING].announced(authorization)
        body = await _read_body(request, bytes_max)
        ask = Ask(request.app, request.method, request.raw_path, authorization, body, request_id)
        return _response(await short.answer(ask), request_id)

    app.router.add_post(path, long_way)


# ---------------------------------------------------------------- around every handler


@web.middleware
async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    started = time.perf_counter()
    request[REQUEST_ID] = request_id = request_id_of(request.headers)
    logs.request_id.set(request_id)
    route = _route(request)
    response = await (_guarded(request, handler) if route in NO_LIMIT else _admitted(request, handler))
    response.headers["X-Request-Id"] = request_id
    if request.app[LEAVING].is_set():
        response.force_close()
    observe(route, response.status, time.perf_counter() - started)
    return response


def _route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return resource.canonical if resource else "unknown"


async def _admitted(request: web.Request, handler: Handler) -> web.StreamResponse:
    admission, pieces = request.app[ADMISSION], weight(request.content_length, request.body_exists)
    if not admission.enter(pieces):
        return problem_response(request, BUSY)
    try:
        return await _guarded(request, handler)
    finally:
        admission.leave(pieces)


async def _guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        response = problem_response(request, _of_http(error))
        if "Allow" in error.headers:  # RFC 9110: a 405 says what is taken
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except Exception as error:
        return problem_response(request, refusal_of(error, request.method, _route(request)))


def _of_http(error: web.HTTPException) -> Refusal:
    match error.status:
        case 404:
            return Refusal(code=Code.RESOURCE_NOT_EXISTS, detail="there is nothing at this address")
        case 405:
            return Refusal(code=Code.METHOD_NOT_ALLOWED, detail="this address does not take this method")
        case 413:
            return too_large(BODY_BYTES_MAX)
        case _:
            return Refusal(code=Code.PARAM_ERROR, detail=error.reason)


# ---------------------------------------------------------------- the application


def new_app(clock: Clock) -> web.Application:
    """An application with our middleware and the addresses that every service has."""
    app = web.Application(middlewares=[_answer], client_max_size=BODY_BYTES_MAX)
    app[CLOCK] = clock
    _time.set_function(lambda: clock.now_ms() / 1000)
    app[READY_CHECKS] = []
    app[STOPPING] = asyncio.Event()
    app[LEAVING] = asyncio.Event()
    app[ADMISSION] = Admission()
    app[SHORT] = {}
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


# ---------------------------------------------------------------- running it


@asynccontextmanager
async def serving(
    app: web.Application, host: str, ports: Sequence[int], *, connections_max: int = 10_000, quiet_s: float = 0.0
) -> AsyncIterator[list[int]]:
    """Listens while the context is open; yields the ports, in order (0 asks for a free one).

    At the end the listeners close, every request under way is answered, and every connection that spoke within
    `quiet_s` gets a last answer if it asks again. A clean-up that hangs (asyncpg waits for ever for a connection
    that nobody gives back) is given up after CLEANUP_S.
    """
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=STOP_S)
    await runner.setup()
    server, guests, loop = runner.server, Guests(connections_max), asyncio.get_running_loop()
    assert server is not None
    listeners: list[asyncio.Server] = []
    try:
        for port in ports:
            listeners.append(
                await loop.create_server(lambda: Door(app, server, guests), host, port, reuse_port=True, backlog=4096)
            )
        with guests.swept():
            yield [listener.sockets[0].getsockname()[1] for listener in listeners]
            app[STOPPING].set()
            for listener in listeners:
                listener.close()
            app[LEAVING].set()
            await guests.are_served(quiet_s, STOP_S)
    finally:
        for listener in listeners:
            listener.close()
        await _clean_up(runner)


async def _clean_up(runner: web.AppRunner) -> None:
    try:
        async with asyncio.timeout(STOP_S + CLEANUP_S):
            await runner.cleanup()
    except TimeoutError:
        log.error("cleanup_given_up", after_s=STOP_S + CLEANUP_S)


def run_service(name: str, make_app: Callable[[Settings], Awaitable[web.Application]]) -> None:
    """Runs a service until SIGTERM or SIGINT: readiness off, requests under way finished, then out."""
    configure_logs(name)
    uvloop.run(_serve(name, make_app))


async def _serve(name: str, make_app: Callable[[Settings], Awaitable[web.Application]]) -> None:
    settings = Settings.from_env()
    app = await make_app(settings)
    app[ADMISSION].under_way_max = settings.under_way_max
    ports = [settings.port] if settings.health_port is None else [settings.port, settings.health_port]
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    connections_max = raise_file_limit(settings.connections_max)
    async with serving(app, settings.host, ports, connections_max=connections_max, quiet_s=QUIET_S):
        gc.collect()
        gc.freeze()  # what is here now stays: looking through it again and again would stall requests
        gc.set_threshold(*GC_THRESHOLD)
        log.info("listening", name=name, host=settings.host, port=settings.port)
        await stop.wait()
        app[STOPPING].set()
        await asyncio.sleep(DRAIN_S)
