"""./hanquan up"""

import asyncio
from typing import Annotated

from cyclopts import Parameter
from rich.table import Table

from kernel.clock import SystemClock
from stack.console import Data, err, out, run
from stack.data_folder import DEFAULT
from stack.examples import ensure_playground, example_calls
from stack.running import Stack
from stack.stores import public

BASE_PORT = 8700

Port = Annotated[int, Parameter(help="Services listen on the ports after this one; 0: on any free ports.")]


def up(*, data: Data = DEFAULT, port: Port = BASE_PORT) -> None:
    """Start the whole stack on this machine and stay until Ctrl-C."""
    run(_up(Stack(data, base_port=port, notice=_notice)))
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
    for name, address in stack.addresses.items():
        table.add_row(name, address, str(stack.log(name)))
    table.add_row("postgres", public(stack.dsn()), str(stack.log("postgres")))
    table.add_row("valkey", public(stack.valkey_url), str(stack.log("valkey")))
    out.print(table)
    for migration in stack.applied:
        out.print(f"applied migration {migration.version:04} {migration.name}")


async def _show_examples(stack: Stack) -> None:
    clock = SystemClock()
    operator = stack.dsn("hanquan_operator")
    if await ensure_playground(operator, stack.folder, stack.secrets, clock):
        for what, line in example_calls(stack.folder, stack.addresses, stack.secrets, clock):
            out.print(f"\n[bold]{what}[/bold]")
            out.print(line, markup=False, soft_wrap=True)
        out.print()


def _notice(text: str) -> None:
    err.print(text, markup=False, soft_wrap=True)
