"""Watches a program write its log: which bytes it has synced, and what it answered before that.

Run as a script it starts a program, follows its system calls (ptrace) and, when the program has ended,
writes what it saw, one event a line:

    W BYTES    so many bytes were appended to a file whose name ends as asked
    S BYTES    so many bytes of it in all are on the disk for sure: a sync returned that began after them
    R BYTES    so many bytes are about to leave through a socket

    python tests/syncs.py OUT ENDING -- PROGRAM ARG...

A power cut loses what was not synced; a kill does not, because the kernel keeps the pages. So whoever
cuts the file to the last `S` has the disk as a power cut leaves it.
"""

import ctypes
import os
import platform
import signal
import struct
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

SEIZE, SYSCALL, SYSCALL_INFO, LISTEN = 0x4206, 24, 0x420E, 0x4208
OPTIONS = 0x1 | 0x8 | 0x10 | 0x100000  # syscall stops marked; follow threads; stop at exec; end with the tracer
EVENT_STOP = 128
ALL_THREADS = 0x40000000
ENTRY, EXIT = 1, 2

CALLS: Mapping[str, Mapping[int, str]] = {
    "x86_64": {1: "write", 18: "write", 20: "write", 44: "write", 46: "write", 74: "sync", 75: "sync"},
    "aarch64": {64: "write", 66: "write", 68: "write", 206: "write", 211: "write", 82: "sync", 83: "sync"},
}
"""write, pwrite64, writev, sendto, sendmsg; fsync, fdatasync."""


class Event(NamedTuple):
    """One line of what was seen."""

    kind: str
    bytes: int


def read_events(file: Path) -> list[Event]:
    """What a run wrote down."""
    return [Event(kind, int(count)) for kind, count in (line.split() for line in file.read_text().splitlines())]


def synced_bytes(events: Sequence[Event]) -> int:
    """How many bytes of the file a power cut at the end would have left."""
    return max((event.bytes for event in events if event.kind == "S"), default=0)


def early_replies(events: Sequence[Event]) -> int:
    """How often something left through a socket while bytes of the file were not synced."""
    written = synced = early = 0
    for event in events:
        if event.kind == "W":
            written += event.bytes
        elif event.kind == "S":
            synced = max(synced, event.bytes)
        else:
            early += written > synced
    return early


def can_watch() -> bool:
    """Whether this machine's calls are known and the kernel lets us look."""
    if platform.machine() not in CALLS:
        return False
    watched = os.fork()
    if watched == 0:
        signal.pause()
        os._exit(0)
    try:
        _ptrace(SEIZE, watched, 0, 0)
    except OSError:
        return False
    finally:
        os.kill(watched, signal.SIGKILL)
        os.waitpid(watched, ALL_THREADS)
    return True


class Watch:
    """Follows one program until it ends."""

    def __init__(self, ending: str) -> None:
        self._ending = ending
        self._calls = CALLS[platform.machine()]
        self._under_way: dict[int, tuple[str, int, int]] = {}
        self._written = 0
        self.events: list[Event] = []

    def follow(self, pid: int) -> None:
        """Returns when it has ended."""
        while True:
            thread, status = os.waitpid(-1, ALL_THREADS)
            if os.WIFSTOPPED(status):
                self._stopped(thread, os.WSTOPSIG(status), status >> 16)
            elif thread == pid:
                return

    def _stopped(self, thread: int, stop: int, event: int) -> None:
        passed_on = 0
        if stop == signal.SIGTRAP | 0x80:
            self._call(thread)
        elif event == EVENT_STOP and stop != signal.SIGTRAP:
            return _go_on(LISTEN, thread, 0)  # the whole program was stopped
        elif event == 0:
            passed_on = stop
        _go_on(SYSCALL, thread, passed_on)
        return None

    def _call(self, thread: int) -> None:
        info = ctypes.create_string_buffer(88)
        try:
            _ptrace(SYSCALL_INFO, thread, 88, ctypes.addressof(info))
        except OSError:
            return  # it was killed meanwhile
        if info.raw[0] == ENTRY:
            number, descriptor = struct.unpack_from("<QQ", info.raw, 24)
            self._entered(thread, self._calls.get(number, ""), descriptor)
        elif info.raw[0] == EXIT:
            self._left(thread, struct.unpack_from("<q", info.raw, 24)[0])

    def _entered(self, thread: int, call: str, descriptor: int) -> None:
        target = _target(thread, descriptor) if call else ""
        if target.endswith(self._ending):
            self._under_way[thread] = (call, descriptor, self._written)
        elif call == "write" and target.startswith("socket:"):
            self.events.append(Event("R", 0))

    def _left(self, thread: int, result: int) -> None:
        call, _, written_before = self._under_way.pop(thread, ("", 0, 0))
        if call == "write" and result > 0:
            self._written += result
            self.events.append(Event("W", result))
        elif call == "sync" and result == 0:
            self.events.append(Event("S", written_before))


def _target(thread: int, descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/{thread}/fd/{descriptor}")
    except OSError:
        return ""


def _ptrace(request: int, pid: int, address: int, data: int) -> None:
    if _libc.ptrace(request, pid, address, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _go_on(request: int, thread: int, data: int) -> None:
    with suppress(ProcessLookupError):  # it was killed meanwhile; its end is told next
        _ptrace(request, thread, 0, data)


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def _become(program: list[str], go: int) -> NoReturn:
    os.read(go, 1)
    os.execv(program[0], program)


def main(out: Path, ending: str, program: list[str]) -> None:
    """Runs the program, and writes down what it did."""
    wait, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        _become(program, wait)
    _ptrace(SEIZE, pid, 0, OPTIONS)
    os.write(go, b"!")
    watch = Watch(ending)
    watch.follow(pid)
    out.write_text("".join(f"{event.kind} {event.bytes}\n" for event in watch.events))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[4:])
