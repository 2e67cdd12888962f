"""Style and types are tests too: one command is the whole gate."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def check(*command: str) -> None:
    """Run a checker over the project; its words are the test's message."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_finds_nothing() -> None:
    check("ruff", "check", "--quiet", ".")


@pytest.mark.timeout(400)
def test_mypy_finds_nothing() -> None:
    check("mypy", "--no-error-summary", ".")
