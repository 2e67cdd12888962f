"""./hanquan test"""

import os
import sys
from pathlib import Path

from stack.console import PassedOn

ROOT = Path(__file__).resolve().parents[2]
WORKERS = ("-n", "4", "--dist", "loadfile", "--no-loadscope-reorder")
"""A file is a story that is told in order over one stack, so it stays with one worker. The files go out as they
are collected: those that wait for real processes first, those of pure functions to fill what is left."""


def test(*arguments: PassedOn) -> None:
    """Run the tests; arguments are passed on to pytest.

    Four at a time, because many wait for real processes; say -n 0 for one at a time.
    """
    os.chdir(ROOT)
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *WORKERS, *arguments])
