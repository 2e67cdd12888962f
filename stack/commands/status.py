"""./hanquan status"""

import asyncio
import sys
from typing import Annotated

import aiohttp
import msgspec
from cyclopts import Parameter
from redis.exceptions import RedisError
from rich.table import Table

from kernel.valkey import is_cluster, open_valkey
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
    role: str = ""
    """Of a Valkey Cluster's node, as the cluster sees it now: primary or replica."""


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
    async with aiohttp.ClientSession() as http:
        states = await asyncio.gather(*(_state(http, one) for one in reach.run.processes))
    if is_cluster(reach.valkey_url):
        roles = await _roles(reach.valkey_url)
        for state in states:
            state.role = roles.get(state.address.rpartition(":")[2].partition("/")[0], "")
    return list(states)


async def _state(http: aiohttp.ClientSession, process: Process) -> State:
    if leftovers.start_ticks(process.pid) != process.start_ticks:
        state = "gone"
    elif process.health and not await _is_ready(http, process.health):
        state = "not ready"
    else:
        state = "ready"
    return State(process.name, process.pid, state, process.address or process.health)


async def _roles(valkey_url: str) -> dict[str, str]:
    """By port, as any node of the cluster tells it; nothing when none answers."""
    try:
        async with open_valkey(valkey_url) as valkey:
            shards = await valkey.execute_command("CLUSTER SLOTS")  # type: ignore[no-untyped-call]
    except (RedisError, OSError):
        return {}
    groups = [[str(port) for _, port, *_ in nodes] for _, _, *nodes in shards]
    return {port: "replica" for group in groups for port in group[1:]} | {group[0]: "primary" for group in groups}


async def _is_ready(http: aiohttp.ClientSession, address: str) -> bool:
    try:
        timeout = aiohttp.ClientTimeout(total=5)
        async with http.get(f"{address}/readyz", timeout=timeout) as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


def _table(states: list[State]) -> Table:
    table = Table("name", "state", "pid", "address", "role", box=None, pad_edge=False)
    for state in states:
        table.add_row(state.name, state.state, str(state.pid), state.address, state.role)
    return table
