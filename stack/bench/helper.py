"""A process of ours that is asked for one thing after another: a line of JSON in, a line of JSON out.

    async with helping("stack.bench.generator", log=log) as generator:
        told = await generator.ask(Rush(...), Told)

Load must not share an interpreter with whoever measures it. A helper ends when nobody holds its input any more.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec
import uvloop

from stack.child import launched
from stack.errors import StackError

Job = TypeVar("Job", bound=msgspec.Struct)
Answer = TypeVar("Answer", bound=msgspec.Struct)
Work = Callable[[Job], Awaitable[msgspec.Struct]]

ROOT = Path(__file__).resolve().parents[2]
STOP_WITHIN_S = 5.0
LINE_BYTES_MAX = 1 << 20


class Helper:
    """A running helper. One question at a time."""

    def __init__(self, module: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self._module = module
        self._process = process
        self._log = log

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    async def ask(self, job: msgspec.Struct, kind: type[Answer]) -> Answer:
        """What comes of a job. StackError when the helper ended over it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(job) + b"\n")
        with suppress(ConnectionError):
            await self._process.stdin.drain()
        line = await self._process.stdout.readline()
        if not line:
            words = self._log.read_text(errors="replace").strip().splitlines()[-1:]
            raise StackError(f"{self._module} ended: {' '.join(words)} (log: {self._log})")
        return msgspec.json.decode(line, type=kind)


@asynccontextmanager
async def helping(module: str, *, log: Path, env: Mapping[str, str] | None = None) -> AsyncIterator[Helper]:
    """Starts `python -m module`; it is gone at the end of the block. Secrets go by `env`, never by arguments."""
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *launched((sys.executable, "-m", module), death_signal=signal.SIGTERM),
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1", **(env or {})},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=output,
            limit=LINE_BYTES_MAX,
            start_new_session=True,
        )
    try:
        yield Helper(module, process, log)
    finally:
        await _stop(process)


async def _stop(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    process.stdin.close()
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_WITHIN_S)
            return
        with suppress(ProcessLookupError):
            process.send_signal(signal_number)
    await process.wait()


def serve(kind: type[Job], opened: Callable[[], AbstractAsyncContextManager[Work[Job]]]) -> None:
    """The helper's side: does one job after another until its input ends."""
    uvloop.run(_serve(kind, opened))


async def _serve(kind: type[Job], opened: Callable[[], AbstractAsyncContextManager[Work[Job]]]) -> None:
    reader = asyncio.StreamReader(limit=LINE_BYTES_MAX)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with opened() as work:
        while line := await reader.readline():
            answer = await work(msgspec.json.decode(line, type=kind))
            sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
            sys.stdout.buffer.flush()
