"""The one-machine stack: stores, schema, services. The one place that wires them.

async with Stack(Path(".hanquan")) as stack:
    stack.addresses["issuer"]                # http://127.0.0.1:PORT
    await asyncpg.connect(stack.dsn("hanquan_auditor"))
"""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

from kernel.clock import SystemClock
from sql.migrate import Migration
from stack import cleanup, leftovers
from stack.child import Program
from stack.data_folder import DataFolder, Process, Run, Secrets
from stack.errors import StackError
from stack.new_city import found_city
from stack.ports import free_port, is_taken
from stack.services import SERVICES, Service, environment
from stack.stores import Stores, administrator, public
from stack.supervisor import Supervisor

HOST = "127.0.0.1"


class Stack:
    """A stack over a data folder, running inside an ``async with`` block.

    data        the folder; only one stack at a time runs in it
    services    which services to start beside the stores; () starts the stores alone
    base_port   services listen on base_port + their offset; 0: on free ports
    settings    more environment for every service, such as HANQUAN_CLOCK_FILE
    settings_of   the same for single services, by name
    cluster     three Valkey primaries with a replica each, in place of one Valkey
    buckets     of a new city (stack/new_city.py)
    notice      is told, in a plain line, when a process crashed or came back

    Entering raises StackError for expected trouble, and then leaves nothing running. Enter it in
    the main thread: the children die with the thread that started them.
    """

    folder: DataFolder
    secrets: Secrets
    stores: Stores
    applied: list[Migration]
    """Migrations that this start applied."""

    def __init__(
        self,
        data: Path,
        *,
        services: Sequence[Service] = SERVICES,
        base_port: int = 0,
        host: str = HOST,
        settings: Mapping[str, str] | None = None,
        settings_of: Mapping[str, Mapping[str, str]] | None = None,
        cluster: bool = False,
        buckets: int | None = None,
        notice: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.folder = DataFolder(data)
        self.applied = []
        self._services = services
        self._host = host
        self._settings = dict(settings or {})
        self._settings_of = settings_of or {}
        self._base_port = base_port
        self._cluster = cluster
        self._buckets = buckets
        self._ports: dict[str, int] = {}
        self._health_ports: dict[str, int] = {}
        self._programs: dict[str, Program] = {}
        self._supervisor = Supervisor(self._publish, self._log_event)
        self._exits = AsyncExitStack()
        self._notice = notice

    # ------------------------------------------------------------ what is where

    @property
    def addresses(self) -> dict[str, str]:
        """Base URL by service."""
        return {name: f"http://{self._host}:{port}" for name, port in self._ports.items()}

    @property
    def health(self) -> dict[str, str]:
        """Base URL by process, of every worker its own: for /readyz and /metrics."""
        return {name: f"http://{self._host}:{port}" for name, port in self._health_ports.items()}

    @property
    def valkey_url(self) -> str:
        """URL with password: never log it."""
        return self.stores.valkey_url

    def dsn(self, role: str | None = None) -> str:
        """DSN for one of sql.migrate.ROLES, or for the administrator. Never log it."""
        return self.stores.dsn(role)

    def log(self, name: str) -> Path:
        """The log file of a process."""
        return self.folder.logs / f"{name}.log"

    def pid(self, name: str) -> int:
        """Process id now; after a crash it is another."""
        return self._supervisor.pids[name]

    @property
    def restarts(self) -> dict[str, int]:
        """How often each process was started again after a crash."""
        return self._supervisor.restarts

    # ------------------------------------------------------------ single processes

    async def stop(self, name: str) -> None:
        """Stop one process and leave it stopped."""
        await self._supervisor.stop(name)
        self._publish()

    async def start(self, name: str) -> None:
        """Start a process that was stopped, on the same port."""
        await self._supervisor.start([self._programs[name]])

    async def wait_ready(self, name: str, within_s: float = 30.0) -> None:
        """Wait until a process answers, for instance after it was killed."""
        async with asyncio.timeout(within_s):
            while not await self._programs[name].is_ready():
                await asyncio.sleep(0.02)

    # ------------------------------------------------------------ from nothing to all

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as exits:
            await self._enter(exits)
            self._exits = exits.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._exits.aclose()

    async def _enter(self, exits: AsyncExitStack) -> None:
        self.folder.make()
        self.folder.lock()
        exits.callback(self.folder.unlock)
        self.secrets = self.folder.secrets()
        await cleanup.stop_services(self.folder)
        self._choose_ports()
        self._http = await exits.enter_async_context(aiohttp.ClientSession())
        self.stores = Stores(self.folder, self.secrets, cluster=self._cluster)
        exits.callback(self.folder.forget_run)
        exits.push_async_callback(self._supervisor.stop)
        await self._run(await self.stores.prepare())
        await self.stores.join()
        self.applied = await self.stores.migrate()
        if self._services:  # they are wired for so many shards when they start
            await self._found_city()
        await self._run([self._program(service, name) for service in self._services for name in service.process_names])

    async def _found_city(self) -> None:
        async with administrator(self.dsn("hanquan_operator")) as conn:
            await found_city(conn, self.valkey_url, self._buckets)

    async def _run(self, programs: Sequence[Program]) -> None:
        self._programs |= {program.name: program for program in programs}
        await self._supervisor.start(programs)

    def _choose_ports(self) -> None:
        for service in self._services:
            self._ports[service.name] = port = self._choose_port(service.name, service.port_offset)
            for number, name in enumerate(service.process_names, 1):
                offset = service.port_offset * 100 + number
                self._health_ports[name] = port if service.workers == 1 else self._choose_port(name, offset)

    def _choose_port(self, name: str, offset: int) -> int:
        port = self._base_port + offset if self._base_port else free_port()
        if is_taken(port, self._host):
            raise StackError(
                f"port {port} ({name}) is taken; choose others with --port BASE, or --port 0 for any free ones"
            )
        return port

    def _program(self, service: Service, name: str) -> Program:
        port, health_port = self._ports[service.name], self._health_ports[name]
        own = self._settings_of.get(service.name, {})
        settings = environment(
            postgres_dsn=self.dsn(service.role),
            valkey_url=self.valkey_url,
            replicas_acked=self.stores.replicas_acked,
            secrets=self.secrets,
            host=self._host,
            port=port,
            health_port=None if health_port == port else health_port,
            workers=service.workers,
        )

        async def is_ready() -> bool:
            return await self._answers(f"{self.health[name]}/readyz")

        return Program(
            name=name,
            argv=service.argv,
            env={**settings, **self._settings, **own, leftovers.MARK: str(self.folder.path)},
            folder=self.folder.path,
            log=self.log(name),
            is_ready=is_ready,
            stop_within_s=service.stop_within_s,
        )

    async def _answers(self, url: str) -> bool:
        try:
            async with self._http.get(url, timeout=aiohttp.ClientTimeout(total=5)) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    def _log_event(self, text: str) -> None:
        with self.log("supervisor").open("a", encoding="utf-8") as log:
            log.write(f"{SystemClock().now().isoformat()} {text}\n")
        self._notice(text)

    def _publish(self) -> None:
        addresses = self.stores.places | self.addresses
        processes = [
            _process(name, pid, addresses.get(name, ""), self.health.get(name, ""))
            for name, pid in self._supervisor.pids.items()
        ]
        self.folder.write_run(
            Run(
                supervisor=_process("supervisor", os.getpid()),
                processes=processes,
                postgres=public(self.dsn()),
                valkey=public(self.valkey_url),
            )
        )


def _process(name: str, pid: int, address: str = "", health: str = "") -> Process:
    ticks = leftovers.start_ticks(pid) or 0
    return Process(name=name, pid=pid, start_ticks=ticks, address=address, health=health)
