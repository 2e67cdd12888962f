"""An operator lets a merchant in by the command line: register, pre-check, two people, keys, suspension."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import msgspec
import pytest

from kernel.clock import CITY_ZONE, FileClock
from redemption.merchants.application import Application
from stack.running import Stack
from tests.merchant_world import application, code, name

ROOT = Path(__file__).parents[2]
SEVERAL = """
import contextlib, io, json, sys
from stack.cli import app
from stack.console import exit_status
for line in sys.stdin:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = exit_status(lambda: app(json.loads(line), result_action="return_value"))
    print(json.dumps([status, said.getvalue()]))
"""
"""Several commands in one process, which starts but once."""


class Desk:
    """A stack without services, and the commands."""

    def __init__(self, stack: Stack, clock: Path) -> None:
        self.stack, self.clock = stack, clock

    async def __call__(self, *commands: str) -> list[tuple[int, str]]:
        """Status and words of each command, in order. A blank parts arguments; ~ stands for a blank in one."""
        lines = [["merchants", *(part.replace("~", " ") for part in one.split())] for one in commands]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", SEVERAL),
            cwd=ROOT,
            env=dict(os.environ) | {"HANQUAN_CLOCK_FILE": str(self.clock), "PYTHONPATH": str(ROOT), "COLUMNS": "60"},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        sent = "".join(json.dumps([*line, "--data", str(self.stack.folder.path)]) + "\n" for line in lines)
        said, _ = await process.communicate(sent.encode())
        told = [tuple(json.loads(line)) for line in said.decode().splitlines()]
        assert len(told) == len(commands), told
        return told


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    FileClock(tmp_path / "clock").move_to(datetime(2026, 5, 1, 12, tzinfo=CITY_ZONE))
    async with Stack(tmp_path / "data", services=()) as stack:
        yield Desk(stack, tmp_path / "clock")


def write(file: Path, asked: Application) -> Path:
    file.write_bytes(msgspec.json.encode(asked))
    return file


async def test_from_the_register_to_a_suspension(desk: Desk, tmp_path: Path) -> None:
    register, forgers = tmp_path / "register.csv", tmp_path / "forgers.csv"
    register.write_text(f"credit_code,name,status,valid_until\n{code(1)},{name(1)},存续,2038-04-30\n")
    forgers.write_text(f"credit_code,reason,listed_on,listed_until\n{code(2)},forged,2026-03-01,2027-02-28\n")
    good = write(tmp_path / "good.yaml", application())
    bad = write(tmp_path / "bad.yaml", application(2, payee_bank=""))
    li, wang = "--by Li~Na", "--by Wang~Wei"
    commands = {
        f"register-load {register} {li}": (0, "loaded, entries: 1"),
        f"register-load {forgers}": (1, "the first line must be credit_code,name,status,valid_until"),
        f"list-load {forgers} {li}": (0, "loaded, entries: 1"),
        f"precheck {bad}": (1, "3 findings"),
        f"precheck {bad} --json": (1, '"code":"ON_PUBLIC_LIST","where":"credit_code","zh":"在公示名单中'),
        f"precheck {good}": (0, "nothing is missing"),
        f"apply {bad} {li}": (1, "M000002 is DRAFT: 3 findings"),
        f"apply {good} {li}": (0, "M000001 is SUBMITTED"),
        "approve M000001 --by li~na": (1, "SAME_PERSON: Li Na submitted it"),
        f"approve M000001 {wang}": (0, "M000001 is APPROVED"),
        f"reject M000002 {wang} --why no": (1, "NOT_WAITING: the application of M000002 is DRAFT"),
        f"stores add M000001 S02 --name Two --district Wuchang --address x --category malls {li}": (0, "has store S02"),
        f"terminals add M000001 T9 --store S02 {li}": (0, "has terminal T9"),
        f"terminals suspend M000001 T9 {li} --why stolen": (0, "terminal T9 of M000001 is suspended"),
        f"terminals resume M000001 T9 {li}": (0, "terminal T9 of M000001 is active"),
        f"keys issue M000001 T9 {li}": (0, "M000001/T9 signs with serial_no"),
        f"keys rotate M000001 T9 {li}": (0, "until 2026-05-08 12:0"),
        f"keys rotate M000001 T1 {li}": (1, "NO_KEY: terminal T1 of M000001 has no key"),
        f"suspend M000001 {wang} --why odd~refunds --until 2026-06-01": (0, "is suspended until 2026-06-01 00:00:00"),
        f"resume M000001 {wang}": (0, "M000001 is active"),
        f"suspend M000001 {wang} --why odd~refunds --until soon": (1, "a time reads like 2020-05-01"),
        "list": (0, "M000001   ACTIVE"),
        "show M000001": (0, "SUSPEND     terminal T9"),
        "show M000009": (1, "there is no merchant M000009"),
    }
    told = await desk(*commands)
    for (command, (status, words)), (ended, said) in zip(commands.items(), told, strict=True):
        assert (ended, words in said) == (status, True), (command, said)
    serial_no = json.loads((desk.stack.folder.path / "keys.json").read_text())["M000001/T9"]["serial_no"]
    [(status, said), (again, before)] = await desk(*[f"keys revoke {serial_no} {wang} --why lost"] * 2)
    assert (status, said.strip()) == (0, f"revoked: {serial_no}")
    assert (again, "it was before" in before) == (0, True)
