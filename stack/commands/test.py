"""./hanquan test"""

import os
import sys
from pathlib import Path

from stack.console import PassedOn

ROOT = Path(__file__).resolve().parents[2]
WORKERS = ("-n", "4", "--dist", "worksteal")


def test(*arguments: PassedOn) -> None:
    """Run the tests; arguments are passed on to pytest.

    Four at a time, because many wait for real processes; say -n 0 for one at a time.
    """
    os.chdir(ROOT)
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *WORKERS, *arguments])
