"""The suite comes to an end whatever hangs, and says what it was."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

HANGS = """
import asyncio
import os
import subprocess
import time

import pytest


@pytest.fixture
def stuck():
    yield
    time.sleep(100)


def test_fails_and_then_hangs(stuck):
    assert False, "the first word"


async def test_swallows_its_timeout():
    async def swallow():
        while True:
            time.sleep(0.05)
            await asyncio.sleep(0)

    task = asyncio.create_task(swallow())
    while True:
        await asyncio.sleep(0.01)


def test_is_well():
    pass
"""
HANGS_FOR_EVER = """
import ctypes
import signal
import subprocess


def test_hears_nothing(tmp_path):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    orphan = subprocess.Popen(["sleep", "100"], start_new_session=True)
    with open("orphan", "w") as file:
        file.write(str(orphan.pid))
    while True:
        try:
            ctypes.PyDLL(None).sleep(100)  # no other thread runs meanwhile
        except BaseException:
            pass
"""
SETTINGS = """[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
timeout = 2
"""


def run(folder: Path, text: str, **limits: str) -> str:
    """What pytest says of such a file, with the watchdog; it must fail within a minute or two."""
    (folder / "conftest.py").write_text('pytest_plugins = ["tests.watchdog"]')
    (folder / "pytest.ini").write_text(SETTINGS)
    (folder / "test_it.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "1", "-q"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CI": "true", **limits},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    return done.stdout


def test_a_hang_costs_its_test_and_no_other(tmp_path: Path) -> None:
    said = run(tmp_path, HANGS, HANQUAN_TEST_TEARDOWN_WITHIN_S="3")
    assert "FAILED test_it.py::test_fails_and_then_hangs (call)" in said
    assert "the first word" in said
    assert "crashed while running 'test_it.py::test_fails_and_then_hangs'" in said
    assert "FAILED test_it.py::test_swallows_its_timeout (call)" in said
    assert re.search(r"3 failed, 1 passed", said)


def test_a_run_that_takes_too_long_ends_and_leaves_nothing(tmp_path: Path) -> None:
    said = run(tmp_path, HANGS_FOR_EVER, HANQUAN_TEST_RUN_WITHIN_S="10")
    assert "NOT FINISHED in 10 s; under way are:\n  test_it.py::test_hears_nothing" in said
    assert "in test_hears_nothing" in said  # its stack
    orphan = Path("/proc", (tmp_path / "orphan").read_text())
    assert not orphan.exists() or "sleep" not in (orphan / "comm").read_text() or " Z " in (orphan / "stat").read_text()
