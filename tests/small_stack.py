"""A supervisor in a process of its own, for tests that kill it.

Run as ``python -m tests.small_stack FOLDER``; it writes a line once it is ready.
"""

import asyncio
import sys
from pathlib import Path

from stack.console import run
from stack.running import Stack
from tests.small_service import SECOND, SMALL


async def main(folder: Path) -> None:
    async with Stack(folder, services=(SMALL, SECOND)):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    run(main(Path(sys.argv[1])))
