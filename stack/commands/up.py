"""./hanquan up"""

import asyncio
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.table import Table

from kernel.clock import SystemClock
from stack.console import Data, err, out, run
from stack.data_folder import DEFAULT
from stack.examples import ensure_playground, example_calls
from stack.running import Stack
from stack.services import SERVICES, with_workers

BASE_PORT = 8700

Port = Annotated[int, Parameter(help="Services listen on the ports after this one; 0: on any free ports.")]
Workers = Annotated[
    int, Parameter(help="Processes of the claim service, all on one port.", validator=Number(gte=1, lte=64))
]
Cluster = Annotated[
    bool,
    Parameter(
        negative=(),
        help="Three Valkey primaries, each with a replica, in place of one Valkey. A folder made so stays so.",
    ),
]
Buckets = Annotated[
    int | None,
    Parameter(
        help="Into how many parts a new city's books are cut, for good: 1, or 16 and more when it shall grow past one "
        "machine (docs/citus.md).",
        validator=Number(gte=1, lte=1024),
    ),
]


def up(
    *,
    data: Data = DEFAULT,
    port: Port = BASE_PORT,
    workers: Workers = 1,
    cluster: Cluster = False,
    buckets: Buckets = None,
) -> None:
    """Start the whole stack on this machine and stay until Ctrl-C."""
    services = with_workers(SERVICES, "issuer", workers)
    run(_up(Stack(data, services=services, base_port=port, cluster=cluster, buckets=buckets, notice=_notice)))
    out.print("stopped")


async def _up(stack: Stack) -> None:
    err.print("starting ...")
    async with stack:
        announce(stack)
        await _show_examples(stack)
        out.print("Ctrl-C stops it.")
        await asyncio.Event().wait()


def announce(stack: Stack) -> None:
    """Tell a newcomer what runs where and what to do next."""
    table = Table("service", "address", "log", box=None, pad_edge=False)
    for name, address in (stack.health | stack.addresses | stack.stores.places).items():
        table.add_row(name, address, str(stack.log(name)))
    out.print(table)
    for migration in stack.applied:
        out.print(f"applied migration {migration.version:04} {migration.name}")


async def _show_examples(stack: Stack) -> None:
    clock = SystemClock()
    operator = stack.dsn("hanquan_operator")
    if await ensure_playground(operator, stack.valkey_url, stack.folder, stack.secrets, clock):
        for what, line in example_calls(stack.folder, stack.addresses, stack.secrets, clock):
            out.print(f"\n[bold]{what}[/bold]")
            out.print(line, markup=False, soft_wrap=True)
        out.print()


def _notice(text: str) -> None:
    err.print(text, markup=False, soft_wrap=True)
