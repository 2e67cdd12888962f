"""The one-machine stack: starts, keeps running, stops, and starts again after anything."""

import asyncio
import os
import signal
import socket
import stat
from pathlib import Path

import aiohttp
import asyncpg
import pytest
from redis.asyncio import Redis

from stack import leftovers
from stack.child import Child
from stack.data_folder import DataFolder
from stack.errors import StackError
from stack.postgres_server import NOT_DURABLE, PostgresServer
from stack.running import Stack
from stack.stores import administrator
from stack.valkey_server import ValkeyServer
from tests import stores
from tests.small_service import SECOND, SMALL


async def pids_of(stack: Stack) -> dict[str, int]:
    return {name: stack.pid(name) for name in ("postgres", "valkey", *stack.addresses)}


async def get_environment(stack: Stack, name: str) -> dict[str, str]:
    url = f"{stack.addresses[name]}/environment"
    async with aiohttp.ClientSession() as http, http.get(url) as response:
        answer: dict[str, str] = await response.json()
        return answer


async def restarted(stack: Stack, name: str, old_pid: int) -> None:
    async with asyncio.timeout(60):
        while stack.pid(name) == old_pid:
            await asyncio.sleep(0.01)
    await stack.wait_ready(name)


async def note(stack: Stack, text: str) -> None:
    await stores.command(stack.dsn(), f"CREATE TABLE IF NOT EXISTS note (t text); INSERT INTO note VALUES ('{text}')")


async def notes(stack: Stack) -> list[str]:
    connection = await asyncpg.connect(stack.dsn())
    try:
        return [row["t"] for row in await connection.fetch("SELECT t FROM note ORDER BY t")]
    finally:
        await connection.close()


async def test_starts_everything_and_leaves_nothing(tmp_path: Path) -> None:
    async with Stack(tmp_path / "data", services=(SMALL, SECOND)) as stack:
        pids = await pids_of(stack)
        assert all(leftovers.start_ticks(pid) for pid in pids.values())
        run = stack.folder.read_run()
        assert run is not None
        assert {one.name: one.pid for one in run.processes} == pids
        assert stack.applied
        assert "@" not in run.postgres + run.valkey
    assert not any(leftovers.start_ticks(pid) for pid in pids.values())
    assert stack.folder.read_run() is None


async def test_each_service_gets_its_own_rights_and_the_keys(tmp_path: Path) -> None:
    async with Stack(tmp_path / "data", services=(SMALL, SECOND), settings={"HANQUAN_CLOCK_FILE": "/clock"}) as stack:
        small = await get_environment(stack, "small")
        second = await get_environment(stack, "second")
        assert small["HANQUAN_POSTGRES_DSN"] == stack.dsn("hanquan_auditor")
        assert second["HANQUAN_POSTGRES_DSN"] == stack.dsn("hanquan_issuer")
        assert small["HANQUAN_CODE_KEYS"] == f"1:{stack.secrets.code_keys['1']}"
        assert len(bytes.fromhex(small["HANQUAN_MASTER_KEY"])) == 32
        assert len(bytes.fromhex(small["HANQUAN_PERSON_KEY"])) == 32
        assert small["HANQUAN_CLOCK_FILE"] == "/clock"
        assert f"http://{small['HANQUAN_HOST']}:{small['HANQUAN_PORT']}" == stack.addresses["small"]


async def test_data_and_secrets_are_the_owners_alone_and_stay(tmp_path: Path) -> None:
    async with Stack(tmp_path / "data", services=()) as stack:
        first = stack.secrets
        await note(stack, "kept")
        async with Redis.from_url(stack.valkey_url) as client:
            await client.set("kept", "1")
        for name, mode in ((".", 0o700), ("secrets.json", 0o600), ("run.json", 0o600)):
            assert stat.S_IMODE((stack.folder.path / name).stat().st_mode) == mode
    async with Stack(tmp_path / "data", services=()) as stack:
        assert stack.secrets == first
        assert stack.applied == []
        assert await notes(stack) == ["kept"]
        async with Redis.from_url(stack.valkey_url) as client:
            assert await client.get("kept") == b"1"


async def test_a_city_keeps_the_buckets_that_it_was_founded_with(tmp_path: Path) -> None:
    async with Stack(tmp_path / "one", services=(SMALL,)) as stack:
        assert await buckets_of(stack) == 1
    async with Stack(tmp_path / "data", services=(SMALL,), buckets=16) as stack:
        assert await buckets_of(stack) == 16
    async with Stack(tmp_path / "data", services=(SMALL,)) as stack:
        assert await buckets_of(stack) == 16
    with pytest.raises(StackError, match="founded with 16 buckets"):
        await Stack(tmp_path / "data", services=(SMALL,), buckets=8).__aenter__()


async def buckets_of(stack: Stack) -> int:
    """Into how many its city is cut."""
    async with administrator(stack.dsn()) as conn:
        return int(await conn.fetchval("SELECT buckets FROM city"))


async def test_two_folders_hold_two_stacks_and_one_folder_one(tmp_path: Path) -> None:
    async with Stack(tmp_path / "one", services=(SMALL,)) as one:
        async with Stack(tmp_path / "other", services=(SMALL,)) as other:
            assert one.addresses != other.addresses
        with pytest.raises(StackError, match=r"another stack runs in .*one; stop it with"):
            await Stack(tmp_path / "one", services=(SMALL,)).__aenter__()
        assert leftovers.start_ticks(one.pid("small"))


@pytest.mark.parametrize("name", ["postgres", "valkey", "small"])
async def test_a_killed_process_comes_back_on_its_port(tmp_path: Path, name: str) -> None:
    said: list[str] = []
    async with Stack(tmp_path / "data", services=(SMALL,), notice=said.append) as stack:
        await note(stack, "before")
        async with Redis.from_url(stack.valkey_url) as client:
            await client.set("before", "1")
        dsn, url, addresses = stack.dsn(), stack.valkey_url, stack.addresses
        pid = stack.pid(name)
        os.kill(pid, signal.SIGKILL)
        await restarted(stack, name, pid)
        await stack.wait_ready("small")
        assert (stack.dsn(), stack.valkey_url, stack.addresses) == (dsn, url, addresses)
        assert await notes(stack) == ["before"]
        async with Redis.from_url(stack.valkey_url) as client:
            assert await client.get("before") == b"1"
        assert stack.restarts[name] >= 1
        assert any(text.startswith(f"{name} crashed (exit status -9)") for text in said)


async def test_one_process_can_be_stopped_and_started(tmp_path: Path) -> None:
    async with Stack(tmp_path / "data", services=(SMALL,)) as stack:
        address = stack.addresses["small"]
        await stack.stop("small")
        async with aiohttp.ClientSession() as http:
            with pytest.raises(aiohttp.ClientConnectorError):
                await http.get(address)
        await stack.start("small")
        assert stack.addresses["small"] == address
        assert (await get_environment(stack, "small"))["HANQUAN_HOST"] == "127.0.0.1"


async def test_a_service_that_cannot_start_says_why_and_nothing_is_left(tmp_path: Path) -> None:
    stack = Stack(tmp_path / "data", services=(SMALL,), settings={"SMALL_GOES_WRONG": "1"})
    with pytest.raises(StackError, match="small ended at start: small: this is why I cannot"):
        await stack.__aenter__()
    assert not stack.folder.is_locked()
    assert stack.folder.read_run() is None
    for server, program in (("postgres", "postgres"), ("valkey", "valkey-server")):
        assert running_in(stack.folder.path / server, program) == []


async def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StackError, match=rf"port {port} \(small\) is taken"):
            await Stack(tmp_path / "data", services=(SMALL,), base_port=port - SMALL.port_offset).__aenter__()


async def test_lost_secrets_are_not_made_anew_over_data(tmp_path: Path) -> None:
    async with Stack(tmp_path / "data", services=()):
        pass
    (tmp_path / "data" / "secrets.json").unlink()
    with pytest.raises(StackError, match=r"secrets.json is gone"):
        await Stack(tmp_path / "data", services=()).__aenter__()


async def test_own_servers_replace_the_embedded_ones(
    tmp_path: Path, valkey: stores.Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stores.cluster(tmp_path / "theirs") as theirs:
        await stores.command(theirs.dsn(), "CREATE DATABASE city")
        monkeypatch.setenv("HANQUAN_POSTGRES_DSN", theirs.dsn(database="city"))
        monkeypatch.setenv("HANQUAN_VALKEY_URL", valkey.url)
        async with Stack(tmp_path / "data", services=(SMALL,)) as stack:
            assert stack.applied
            assert set(stack.restarts) == {"small"}
            environment = await get_environment(stack, "small")
            assert environment["HANQUAN_VALKEY_URL"] == valkey.url
            assert environment["HANQUAN_POSTGRES_DSN"].endswith(f"{theirs.server.port}/city")


async def test_an_own_server_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANQUAN_POSTGRES_DSN", "postgresql://me:secret@127.0.0.1:1/city")
    with pytest.raises(StackError, match=r"PostgreSQL at postgresql://127\.0\.0\.1:1/city") as caught:
        await Stack(tmp_path / "data", services=()).__aenter__()
    assert "secret" not in str(caught.value)


def running_in(folder: Path, program: str) -> list[int]:
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if leftovers.works_in(pid, folder, program)]


async def test_stores_left_by_a_killed_run_are_stopped(tmp_path: Path) -> None:
    postgres = PostgresServer(tmp_path, password="x", settings=NOT_DURABLE)
    valkey = ValkeyServer(tmp_path, password="x")
    children = []
    for server in (postgres, valkey):
        await server.prepare()
        children.append(Child(server.program()))
        await children[-1].ready()
        os.kill(children[-1].pid, signal.SIGSTOP)  # it cannot even obey
    assert await PostgresServer(tmp_path, password="x").stop_leftover()
    assert await ValkeyServer(tmp_path, password="x").stop_leftover()
    assert [await child.exited() for child in children] == [0, 0]


async def test_a_stranger_with_an_old_process_id_is_left_alone(tmp_path: Path) -> None:
    stranger = await asyncio.create_subprocess_exec("sleep", "60", cwd=tmp_path)
    try:
        for folder, file in (("valkey", "valkey.pid"), ("postgres", "postmaster.pid")):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / file).write_text(f"{stranger.pid}\n")
        assert not await PostgresServer(tmp_path, password="x").stop_leftover()
        assert not await ValkeyServer(tmp_path, password="x").stop_leftover()
        assert not leftovers.is_marked(stranger.pid, tmp_path)
        assert stranger.returncode is None
    finally:
        stranger.kill()
        await stranger.wait()


def test_a_folder_that_is_not_ours_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(StackError, match="holds no Hanquan data"):
        DataFolder(tmp_path).remove()
    assert (tmp_path / "precious").exists()
