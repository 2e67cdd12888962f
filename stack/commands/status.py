"""./hanquan status"""

import asyncio
import sys
from typing import Annotated

import aiohttp
import msgspec
from cyclopts import Parameter
from rich.table import Table

from stack import leftovers
from stack.console import Data, out, run
from stack.data_folder import DEFAULT, DataFolder, Process
from stack.reach import Reach


class State(msgspec.Struct):
    """One line of the answer. `state` is ready, not ready or gone."""

    name: str
    pid: int
    state: str
    address: str


def status(*, data: Data = DEFAULT, json: Annotated[bool, Parameter(negative=())] = False) -> int:
    """Say what runs, where it listens and whether it is ready.

    The exit status is 0 when everything is ready and 1 otherwise.
    """
    states = run(_states(Reach(DataFolder(data)))) or []
    if json:
        sys.stdout.write(msgspec.json.encode(states).decode() + "\n")
    else:
        out.print(_table(states))
    return 0 if all(state.state == "ready" for state in states) else 1


async def _states(reach: Reach) -> list[State]:
    stores = {"postgres": reach.run.postgres, "valkey": reach.run.valkey}
    async with aiohttp.ClientSession() as http:
        states = await asyncio.gather(*(_state(http, one) for one in reach.run.processes))
    for state in states:
        state.address = state.address or stores.get(state.name, "")
    return list(states)


async def _state(http: aiohttp.ClientSession, process: Process) -> State:
    if leftovers.start_ticks(process.pid) != process.start_ticks:
        state = "gone"
    elif process.address and not await _is_ready(http, process.address):
        state = "not ready"
    else:
        state = "ready"
    return State(process.name, process.pid, state, process.address)


async def _is_ready(http: aiohttp.ClientSession, address: str) -> bool:
    try:
        timeout = aiohttp.ClientTimeout(total=5)
        async with http.get(f"{address}/readyz", timeout=timeout) as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


def _table(states: list[State]) -> Table:
    table = Table("name", "state", "pid", "address", box=None, pad_edge=False)
    for state in states:
        table.add_row(state.name, state.state, str(state.pid), state.address)
    return table
