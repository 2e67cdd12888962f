"""./hanquan audit"""

import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from redis.asyncio import Redis

from kernel.codes import CodeBook
from kernel.errors import StoreDown
from kernel.postgres import Connection
from kernel.valkey import open_valkey
from stack.audit import AuditReport, ClientLogReport, audit_city, check_client_log, read_log, render
from stack.audit.clientlog import ClientLogError
from stack.console import Data, err, out, run
from stack.data_folder import DEFAULT, DataFolder
from stack.errors import StackError
from stack.reach import Reach
from stack.running import Stack
from stack.stores import administrator

ClientLog = Annotated[
    Path | None,
    Parameter(help="JSON Lines of what clients were told, a file or a folder of *.jsonl: held against the books too."),
]


def audit(
    *,
    data: Data = DEFAULT,
    json: Annotated[bool, Parameter(negative=())] = False,
    language: Literal["en", "zh"] = "en",
    client_log: ClientLog = None,
) -> int:
    """Recompute from the rows everything that must be true, and name the rows where it is not.

    Works beside a running stack. When it does not run, the stores are started for the audit and
    stopped after it. Reads only. The exit status is 0 when everything holds and 1 otherwise.
    """
    found = run(_audit(DataFolder(data), client_log))
    if found is None:
        return 130
    report, log = found
    if json:
        sys.stdout.write(render.json(report, log).decode() + "\n")
    else:
        out.print(render.table(report, language))
        if log is not None:
            out.print(render.client_log(log, language))
    return 0 if report.holds and (log is None or log.holds) else 1


async def _audit(folder: DataFolder, client_log: Path | None) -> tuple[AuditReport, ClientLogReport | None]:
    async with AsyncExitStack() as exits:
        if folder.is_locked():
            stores: Reach | Stack = Reach(folder)
        else:
            stores = await exits.enter_async_context(Stack(folder.path, services=()))
        connection = await exits.enter_async_context(administrator(stores.dsn("hanquan_auditor")))
        valkey = open_valkey(stores.valkey_url)
        exits.push_async_callback(valkey.aclose)
        with err.status("auditing ..."):
            report = await _examine(connection, valkey)
            log = await _check(connection, client_log, stores) if client_log else None
    return report, log


async def _examine(connection: Connection, valkey: Redis) -> AuditReport:
    try:
        return await audit_city(connection, valkey)
    except StoreDown as error:
        raise StackError(str(error)) from error


async def _check(connection: Connection, file: Path, stores: Reach | Stack) -> ClientLogReport:
    keys = {int(version): bytes.fromhex(key) for version, key in stores.secrets.code_keys.items()}
    try:
        return await check_client_log(connection, read_log(file), CodeBook(keys))
    except (ClientLogError, OSError) as error:
        raise StackError(f"cannot read the clients' log: {error}") from error
