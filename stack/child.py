"""One child process: started through the launcher, watched, stopped within a deadline."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic

from stack.errors import StackError

POLL_S = 0.01
RUN_ONCE_WITHIN_S = 300.0
"""A short program that takes longer hangs."""

_LAUNCHER = Path(__file__).with_name("unprivileged.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What to run and how to tell that it is ready.

    `rights` is a MODE of stack/unprivileged.py. `death_signal` is what the child gets when its
    parent is killed. When `stop_signal` does not end it in time, `kill_signal` does.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    folder: Path
    log: Path
    is_ready: Callable[[], Awaitable[bool]]
    rights: str = "self"
    death_signal: signal.Signals = signal.SIGTERM
    stop_signal: signal.Signals = signal.SIGTERM
    kill_signal: signal.Signals = signal.SIGKILL
    ready_within_s: float = 30.0
    stop_within_s: float = 20.0
    restart_on_crash: bool = field(default=True)


class Child:
    """A running `Program`.

    Start and stop it from one and the same thread that lives on: the kernel's death signal is
    bound to the thread that started the child. Not bound to an event loop.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self._log_start = program.log.stat().st_size if program.log.exists() else 0
        with program.log.open("ab") as log:
            self._process = subprocess.Popen(
                launched(program.argv, program.rights, program.death_signal),
                env=dict(program.env),
                cwd=program.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal reaches the supervisor alone
            )

    @property
    def pid(self) -> int:
        """Process id. The launcher becomes the program, so it never changes."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """None while it runs; negative: ended by that signal."""
        return self._process.poll()

    async def exited(self) -> int:
        """Wait for its end and return the exit status."""
        while (status := self.exit_status) is None:
            await asyncio.sleep(POLL_S * 5)
        return status

    async def ready(self) -> None:
        """Wait until it is ready. Raises StackError when it ends or takes too long."""
        program = self.program
        deadline = monotonic() + program.ready_within_s
        while not await program.is_ready():
            if self.exit_status is not None:
                raise StackError(f"{program.name} ended at start: {self.last_words()}")
            if monotonic() > deadline:
                raise StackError(f"{program.name} was not ready in {program.ready_within_s:g} s: {self.last_words()}")
            await asyncio.sleep(POLL_S)

    def send(self, signal_number: signal.Signals) -> None:
        """Send a signal if it still runs."""
        self._process.send_signal(signal_number)

    def kill(self) -> int:
        """End it at once, as a power cut would end its process. Returns the exit status."""
        self.send(signal.SIGKILL)
        return self._process.wait()

    async def stop(self) -> int:
        """Ask it to stop; after the deadline make it. Returns the exit status."""
        for signal_number in (self.program.stop_signal, self.program.kill_signal):
            self.send(signal_number)
            with suppress(TimeoutError):
                return await asyncio.wait_for(self.exited(), self.program.stop_within_s)
        self.send(signal.SIGKILL)
        return await self.exited()

    def last_words(self, lines: int = 3) -> str:
        """The end of what it wrote to its log since it was started, and where the rest is."""
        with self.program.log.open("rb") as log:
            log.seek(self._log_start)
            words = log.read()[-4000:].decode("utf-8", errors="replace").split("\n")
        said = " | ".join([line.strip() for line in words if line.strip()][-lines:])
        return f"{said or 'it said nothing'} (log: {self.program.log})"


def launched(argv: tuple[str, ...], rights: str = "self", death_signal: signal.Signals | None = None) -> list[str]:
    """The command line that runs `argv` through stack/unprivileged.py."""
    head = [sys.executable, "-I", "-S", str(_LAUNCHER), "--as", rights]
    if death_signal is not None:
        head += ["--death-signal", str(int(death_signal)), "--parent", str(os.getpid())]
    return [*head, "--", *argv]


async def run_once(argv: tuple[str, ...], *, rights: str = "self", env: Mapping[str, str], folder: Path) -> str:
    """Run a short program to its end. Returns its output; raises StackError if it fails or hangs."""
    # A short program needs no death signal, so a thread may start it.
    work = partial(
        subprocess.run,
        launched(argv, rights),
        env=dict(env),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
        timeout=RUN_ONCE_WITHIN_S,
    )
    try:
        done = await asyncio.to_thread(work)
    except subprocess.TimeoutExpired as error:
        raise StackError(f"{Path(argv[0]).name} did not end in {RUN_ONCE_WITHIN_S:g} s") from error
    output: str = done.stdout.strip()
    if done.returncode != 0:
        last = " | ".join(output.splitlines()[-3:])
        raise StackError(f"{Path(argv[0]).name} failed ({done.returncode}): {last}")
    return output
