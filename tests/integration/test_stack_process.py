"""The stack as a process: killed, stopped by signals and by the command line, by root or not."""

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from stack import leftovers, rights
from stack.child import Child, launched
from stack.data_folder import DataFolder, Run
from stack.errors import StackError
from stack.postgres_server import NOT_DURABLE, PostgresServer
from stack.unprivileged import NOBODY

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
IS_ROOT = os.getuid() == 0

# As root, a user namespace makes an ordinary user without needing an account.
WHO = ["self", "namespace"] if IS_ROOT else ["self"]


@asynccontextmanager
async def small_stack(data: Path, who: str = "self") -> AsyncIterator[tuple[asyncio.subprocess.Process, Run]]:
    """A supervisor in a process of its own, ready."""
    argv = (sys.executable, "-m", "tests.small_stack", str(data))
    process = await asyncio.create_subprocess_exec(
        *launched(argv, who), env=ENVIRONMENT, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 60) == b"ready\n"
        run = DataFolder(data).read_run()
        assert run is not None
        yield process, run
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 60)
        except TimeoutError:
            process.kill()
            raise


async def hanquan(*arguments: str, cwd: Path) -> tuple[int, str, str]:
    """Run a command of the command line: its status, output and remarks."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "stack", *arguments),
        env=ENVIRONMENT,
        cwd=cwd,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 90)
    return process.returncode or 0, out.decode(), err.decode()


async def gone(run: Run, within_s: float = 60) -> None:
    async with asyncio.timeout(within_s):
        while any(leftovers.start_ticks(one.pid) == one.start_ticks for one in run.processes):
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("who", WHO)
async def test_starts_and_stops_for_root_and_for_others(tmp_path: Path, who: str) -> None:
    async with small_stack(tmp_path / "data", who) as (process, run):
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 60) == 0
        await gone(run, within_s=5)
    assert not (tmp_path / "data" / "run.json").exists()


@pytest.mark.parametrize("who", WHO)
async def test_a_killed_supervisor_takes_its_children_along(tmp_path: Path, who: str) -> None:
    async with small_stack(tmp_path / "data", who) as (process, run):
        process.kill()
        await process.wait()
        await gone(run)
    assert {one.name for one in run.processes} == {"postgres", "valkey", "small", "second"}


async def test_a_stack_starts_at_once_after_its_supervisor_was_killed(tmp_path: Path) -> None:
    for _ in range(2):
        async with small_stack(tmp_path / "data") as (process, _run):
            process.kill()
            await process.wait()
    async with small_stack(tmp_path / "data") as (_process, run):
        assert len(run.processes) == 4


async def test_children_that_survived_their_supervisor_are_stopped(tmp_path: Path) -> None:
    async with small_stack(tmp_path / "data") as (process, old):
        for one in old.processes:
            os.kill(one.pid, signal.SIGSTOP)  # they cannot follow the death signal
        process.kill()
        await process.wait()
        async with small_stack(tmp_path / "data") as (_process, new):
            await gone(old, within_s=0)
            assert len(new.processes) == 4


async def test_the_command_line_sees_and_stops_a_stack(tmp_path: Path) -> None:
    data = tmp_path / ".hanquan"  # found without --data
    async with small_stack(data) as (process, run):
        status, out, _ = await hanquan("status", "--json", cwd=tmp_path)
        assert status == 0
        assert {one["name"]: one["state"] for one in json.loads(out)} == {one.name: "ready" for one in run.processes}
        assert "ready" in (await hanquan("status", cwd=tmp_path))[1]
        status, _, err = await hanquan("reset", "--yes", cwd=tmp_path)
        assert status == 1
        assert "stop it first with: ./hanquan down" in err
        assert (await hanquan("migrate", cwd=tmp_path))[:2] == (
            0,
            "nothing to do: the schema is the newest\n",
        )
        assert (await hanquan("down", cwd=tmp_path))[:2] == (0, "stopped\n")
        assert await asyncio.wait_for(process.wait(), 30) == 0
    await gone(run, within_s=5)
    status, _, err = await hanquan("status", cwd=tmp_path)
    assert (status, err.strip()) == (
        1,
        f"hanquan: no stack runs in {data}; start one with: ./hanquan up",
    )
    assert (await hanquan("reset", cwd=tmp_path))[0] == 1
    assert data.exists()
    assert (await hanquan("reset", "--yes", cwd=tmp_path))[0] == 0
    assert not data.exists()


async def test_a_process_that_is_not_ready_is_seen(tmp_path: Path) -> None:
    async with small_stack(tmp_path / "data") as (_process, run):
        valkey = next(one for one in run.processes if one.name == "valkey")
        os.kill(valkey.pid, signal.SIGSTOP)
        status, out, _ = await hanquan("status", "--json", "--data", "data", cwd=tmp_path)
        os.kill(valkey.pid, signal.SIGCONT)
        assert status == 1
        states = {one["name"]: one["state"] for one in json.loads(out)}
        assert states["small"] == "not ready"


async def test_psql_logs_in_as_administrator_or_role(tmp_path: Path) -> None:
    async with small_stack(tmp_path / "data"):
        query = ("-Atc", "SELECT current_user")
        told = await hanquan("psql", "--data", "data", *query, cwd=tmp_path)
        assert told == (0, "postgres\n", "")
        told = await hanquan("psql", "--data", "data", "--role", "hanquan_auditor", *query, cwd=tmp_path)
        assert told == (0, "hanquan_auditor\n", "")
        status, _, err = await hanquan("psql", "--data", "data", "--role", "king", cwd=tmp_path)
        assert status == 1
        assert "no role king" in err


async def test_down_stops_what_a_killed_supervisor_left(tmp_path: Path) -> None:
    async with small_stack(tmp_path / "data") as (process, run):
        for one in run.processes:
            os.kill(one.pid, signal.SIGSTOP)
        process.kill()
        await process.wait()
        status, out, _ = await hanquan("down", "--data", "data", cwd=tmp_path)
        assert (status, out) == (0, "stopped what an earlier run had left\n")
        await gone(run, within_s=0)


async def test_migrate_starts_the_stores_it_needs(tmp_path: Path) -> None:
    status, out, err = await hanquan("migrate", cwd=tmp_path)
    assert (status, err) == (0, "")
    assert out.startswith("applied migration 0001 core")
    assert (await hanquan("down", cwd=tmp_path))[1].startswith("nothing runs in")


async def test_help_names_every_command_and_is_quick(tmp_path: Path) -> None:
    status, out, _ = await hanquan("--help", cwd=tmp_path)
    assert status == 0
    for command in ("up", "down", "status", "psql", "migrate", "reset", "test"):
        assert f"│ {command} " in out


# ---------------------------------------------------------------- rights


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that another user can reach, unlike pytest's."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def without_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that forbids user namespaces."""
    really_works = rights._works
    monkeypatch.setattr(rights, "_works", lambda mode, *paths: mode != "namespace" and really_works(mode, *paths))


@pytest.mark.skipif(not IS_ROOT, reason="only root gives up rights")
@pytest.mark.usefixtures("without_namespaces")
async def test_root_without_namespaces_runs_postgres_as_nobody(open_folder: Path) -> None:
    for _ in range(2):  # the second time the data folder is there already
        server = PostgresServer(open_folder / "data", password="x", settings=NOT_DURABLE)
        await server.prepare(sync=False)
        child = Child(server.program())
        await child.ready()
        assert Path(f"/proc/{child.pid}").stat().st_uid == NOBODY
        assert await child.stop() == 0
    assert server.data.stat().st_uid == NOBODY


@pytest.mark.skipif(not IS_ROOT, reason="only root gives up rights")
@pytest.mark.usefixtures("without_namespaces")
async def test_root_is_told_when_nothing_works(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o700)
    server = PostgresServer(tmp_path / "closed" / "data", password="x")
    with pytest.raises(StackError, match="PostgreSQL does not run as root"):
        await server.prepare()


@pytest.mark.skipif(not IS_ROOT, reason="only root gives up rights")
async def test_data_of_nobody_come_back_to_root(open_folder: Path) -> None:
    data = open_folder / "data" / "postgres"
    data.mkdir(parents=True)
    (data / "file").touch()
    os.chown(data, NOBODY, -1)
    os.chown(data / "file", NOBODY, -1)
    assert rights.choose(Path("/bin/sh"), data) == "namespace"
    assert data.stat().st_uid == (data / "file").stat().st_uid == 0


def test_run_state_survives_a_torn_write(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    (tmp_path / "run.json").write_bytes(b'{"supervisor": {')
    assert folder.read_run() is None
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode((tmp_path / "run.json").read_bytes(), type=Run)
