"""Valkey's disk is full: claims are turned away in words that say to come again, nobody is told of a win that
was not written down, and service is back once there is room.

Tried on a real file system that is full (a small tmpfs, where this machine lets us mount one), and by a limit
on how long Valkey's files may get, which every machine has. With `appendfsync always` Valkey ends at the failed
write, before it answers; its supervisor starts it again for as long as it takes.
"""

import asyncio
import os
import resource
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Protocol

import pytest

from stack.child import Program
from stack.faults.crowd import Crowd
from stack.faults.drill import Weighed
from stack.supervisor import Supervisor
from tests import stores
from tests.city import City, open_city
from tests.city_plan import NOON, a_campaign, a_round, a_stock
from tests.crowds import AGREED, crowd_of, weigh_known

CITY = a_campaign("full", a_round("noon", NOON, a_stock("full_stock", quantity=20_000)))
RECOVERY_MAX_S = 30.0


class Disk(Protocol):
    """Where Valkey's log lies."""

    def program(self, program: Program) -> Program:
        """Valkey, on this disk."""
        ...

    def started(self, pid: int) -> None:
        """Called for each process of Valkey's."""
        ...

    def fill(self) -> None:
        """Leaves room for a few claims."""
        ...

    def free(self) -> None:
        """Makes room."""
        ...


class LimitedFiles:
    """No file of Valkey's may grow: a longer write fails (EFBIG)."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._bytes_max = resource.RLIM_INFINITY
        self._pid = 0

    def program(self, program: Program) -> Program:
        return program

    def started(self, pid: int) -> None:
        self._pid = pid
        with suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (self._bytes_max, resource.RLIM_INFINITY))

    def fill(self) -> None:
        [file] = self._data.glob("appendonlydir/*.incr.aof")
        self._bytes_max = file.stat().st_size + 2_000
        self.started(self._pid)

    def free(self) -> None:
        self._bytes_max = resource.RLIM_INFINITY
        self.started(self._pid)


class SmallDisk:
    """A tmpfs of a few MB in a mount namespace of its own, kept by a process that does nothing else."""

    def __init__(self, data: Path, keeper: int, enter: tuple[str, ...]) -> None:
        self._ballast = Path(f"/proc/{keeper}/root{data}/ballast")
        self._enter = enter

    def program(self, program: Program) -> Program:
        return replace(program, argv=(*self._enter, *program.argv))

    def started(self, pid: int) -> None:
        pass

    def fill(self) -> None:
        with self._ballast.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4_096))

    def free(self) -> None:
        self._ballast.unlink()


@contextmanager
def limited_files(data: Path) -> Iterator[Disk]:
    yield LimitedFiles(data)


KEEP = """
conf=$(cat "$0/valkey.conf") && mount -t tmpfs -o size=2m tmpfs "$0" && echo "$conf" > "$0/valkey.conf" &&
echo mounted && exec sleep 600
"""


@contextmanager
def small_disk(data: Path) -> Iterator[Disk]:
    """Skips the test where no file system may be mounted."""
    apart = ("unshare", "--mount") if os.getuid() == 0 else ("unshare", "--map-root-user", "--mount")
    with ExitStack() as exits:
        try:
            keeper = subprocess.Popen(
                [*apart, "sh", "-c", KEEP, str(data)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except FileNotFoundError:
            pytest.skip("there is no program `unshare` here")
        exits.callback(keeper.wait)
        exits.callback(keeper.kill)
        assert keeper.stdout is not None
        exits.enter_context(keeper.stdout)
        if keeper.stdout.readline() != b"mounted\n":
            pytest.skip("this machine lets us mount no file system of our own")
        user = () if os.getuid() == 0 else ("--user", "--preserve-credentials")
        enter = ("/usr/bin/nsenter", "--target", str(keeper.pid), *user, "--mount", "--")
        yield SmallDisk(data, keeper.pid, enter)


@asynccontextmanager
async def supervised(city: City, disk: Disk) -> AsyncIterator[Supervisor]:
    """The city's Valkey on this disk, started again whenever it ends."""
    city.valkey.child.kill()
    supervisor = Supervisor(lambda: disk.started(supervisor.pids["valkey"]), lambda text: None)
    try:
        await supervisor.start([disk.program(city.valkey.server.program())])
        yield supervisor
    finally:
        await supervisor.stop()


async def fill_and_free(city: City, disk: Disk) -> tuple[Crowd, Weighed, Weighed]:
    """Clients claim while the disk fills up, Valkey dies, and there is room again; service must come back.
    What the books say of the wins that were told then, and again after everything not known was asked again."""
    async with supervised(city, disk) as supervisor:
        crowd = crowd_of(city, "full_stock")
        await _until_granted(crowd)
        async with crowd.claims_go_on(3):
            disk.fill()
            crowd.outcomes.clear()
            async with asyncio.timeout(30):
                while not crowd.outcomes["SYSTEM_BUSY"]:
                    await asyncio.sleep(0.01)
            with suppress(ProcessLookupError):  # with `always` it may have ended by itself
                os.kill(supervisor.pids["valkey"], signal.SIGKILL)
            await asyncio.sleep(0.3)
            disk.free()
            freed = monotonic()
            await _until_granted(crowd)
            assert monotonic() - freed < RECOVERY_MAX_S
        await city.valkey.client.connection_pool.disconnect()
        weighed = await weigh_known(city, crowd)
        await crowd.resolve()
        return crowd, weighed, await weigh_known(city, crowd)


async def _until_granted(crowd: Crowd) -> None:
    async with asyncio.timeout(RECOVERY_MAX_S):
        while not await crowd.probe(crowd.addresses[0]):
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("on", [limited_files, small_disk])
async def test_load_is_shed_and_no_win_is_false(
    cluster: stores.Cluster, tmp_path: Path, on: Callable[[Path], AbstractContextManager[Disk]]
) -> None:
    async with open_city(cluster, tmp_path, campaigns=[CITY]) as city:
        with on(city.valkey.server.data) as disk:
            crowd, weighed, settled = await fill_and_free(city, disk)
            assert weighed == settled == AGREED
            assert crowd.wrong == []  # no 500, nobody hung, each 503 said to come again


async def test_control_a_store_that_answers_first_tells_of_wins_that_are_lost(
    cluster: stores.Cluster, tmp_path: Path
) -> None:
    """With `everysec` Valkey does not end at a failed write: it has answered already."""
    settings = {"appendfsync": "everysec"}
    async with open_city(cluster, tmp_path, campaigns=[CITY], valkey_settings=settings) as city:
        with limited_files(city.valkey.server.data) as disk:
            _, weighed, _ = await fill_and_free(city, disk)
            assert weighed.lost
