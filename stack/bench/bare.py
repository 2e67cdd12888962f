"""`python -m stack.bench.bare`: a bare aiohttp worker. It reads the body and answers a constant.

What it does in a second is the most that any handler in such a worker could do: the limit beside which
claims are measured. BARE_PORT says where it listens, BARE_ANSWER what it answers (JSON).
"""

import asyncio
import os
import signal

import uvloop
from aiohttp import web

from stack.bench.presign import SINGLE

READY = "/readyz"


def make_app(answer: bytes) -> web.Application:
    """One handler for claims, and one that says that the worker is up."""

    async def constant(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(body=answer, content_type="application/json")

    async def ready(request: web.Request) -> web.Response:
        return web.Response(text="ready\n")

    app = web.Application()
    app.router.add_post(SINGLE, constant)
    app.router.add_get(READY, ready)
    return app


async def _serve(port: int, answer: bytes) -> None:
    runner = web.AppRunner(make_app(answer), access_log=None)
    await runner.setup()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
    await stop.wait()
    await runner.cleanup()


if __name__ == "__main__":
    uvloop.run(_serve(int(os.environ["BARE_PORT"]), os.environ["BARE_ANSWER"].encode()))
