"""./hanquan watch"""

import asyncio
import sys
from typing import Annotated

import msgspec
from cyclopts import Parameter
from rich.live import Live

from stack.console import Data, out, run
from stack.data_folder import DEFAULT, DataFolder
from stack.reach import Reach
from stack.watch.frame import render
from stack.watch.look import Watcher, watching
from stack.watch.view import View

EVERY_S = 1.0


def watch(
    *,
    data: Data = DEFAULT,
    once: Annotated[bool, Parameter(negative=(), help="Print one frame and end.")] = False,
    json: Annotated[
        bool, Parameter(negative=(), help="Print one JSON object and end; times are the campaign's.")
    ] = False,
) -> None:
    """Show the rush live: stock, claims a second, latency, queues, stores, processes. Ctrl-C ends it.

    Rates are of the last second, so one frame takes a second. Works in 80 columns and 24 lines.
    Without a terminal it prints one frame.
    """
    reach = Reach(DataFolder(data))
    if once or json or not out.is_terminal:
        view = run(_once(reach))
        if view is not None and json:
            sys.stdout.write(msgspec.json.encode(view).decode() + "\n")
        elif view is not None:
            out.print(render(view, out.width, max(out.height, 24)))
    else:
        run(_live(reach))


async def _once(reach: Reach) -> View:
    async with watching(reach) as watcher:
        return await _twice(watcher)


async def _twice(watcher: Watcher) -> View:
    await watcher.look()
    await asyncio.sleep(EVERY_S)
    return await watcher.look()


async def _live(reach: Reach) -> None:
    async with watching(reach) as watcher:
        loop, looks = asyncio.get_running_loop(), 0
        started = loop.time()
        with Live(console=out, screen=out.is_terminal, auto_refresh=False) as live:
            while True:
                live.update(render(await watcher.look(), out.width, out.height), refresh=True)
                looks = max(looks + 1, int((loop.time() - started) / EVERY_S) + 1)
                await asyncio.sleep(started + looks * EVERY_S - loop.time())
