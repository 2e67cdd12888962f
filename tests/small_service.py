"""A small real service for tests of the stack: two stores, /readyz, and a way to go wrong."""

import os

import asyncpg
from aiohttp import web
from redis.asyncio import Redis

from stack.services import Service

SMALL = Service("small", "tests.small_service", "hanquan_auditor", 1)
SECOND = Service("second", "tests.small_service", "hanquan_issuer", 2)


async def readyz(request: web.Request) -> web.Response:
    """Ready when both stores answer."""
    try:
        connection = await asyncpg.connect(os.environ["HANQUAN_POSTGRES_DSN"], timeout=2)
        await connection.close()
        async with Redis.from_url(os.environ["HANQUAN_VALKEY_URL"]) as client:
            await client.ping()
    except Exception as error:  # whatever it is, it is not ready
        return web.Response(status=503, text=repr(error))
    return web.Response(text="ready")


async def environment(request: web.Request) -> web.Response:
    """What this service was told."""
    return web.json_response(dict(os.environ))


def main() -> None:
    if os.environ.get("SMALL_GOES_WRONG"):
        raise SystemExit("small: this is why I cannot start")
    app = web.Application()
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/environment", environment)
    web.run_app(
        app,
        host=os.environ["HANQUAN_HOST"],
        port=int(os.environ["HANQUAN_PORT"]),
        print=lambda *_: None,
    )


if __name__ == "__main__":
    main()
