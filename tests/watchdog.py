"""Nothing lasts for ever: ends a test that hangs, a run that takes too long, and says at once what failed.

pytest-timeout raises in the test, once. asyncio swallows what is raised in a callback or in a background task, so
here it is raised again until it is heard. And once a test has failed, neither pytest-timeout nor pytest's own
faulthandler_timeout watches its teardown (both stop at the first failure, for debuggers). So the teardown has a
limit of its own here, at which the worker ends; xdist names the test and goes on with another worker.

In CI a failure is written when it happens, not only at the end, and the whole run has a limit.
"""

import faulthandler
import os
import signal
import threading
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key

TEARDOWN_WITHIN_S = float(os.environ.get("HANQUAN_TEST_TEARDOWN_WITHIN_S", "150"))
RUN_WITHIN_S = float(os.environ.get("HANQUAN_TEST_RUN_WITHIN_S", "3600"))
AGAIN_S = 10.0
SAYS_SLOW_AFTER_S = 60.0
SAYS_LINES = 60
DUMP = signal.SIGUSR1
IN_CI = bool(os.environ.get("CI"))


@pytest.hookimpl(trylast=True)  # after pytest's faulthandler, which opens the file
def pytest_configure(config: pytest.Config) -> None:
    """Each process can be asked for its stacks; the one at the top watches the run."""
    faulthandler.register(DUMP, file=config.stash[fault_handler_stderr_fd_key], all_threads=True)
    if IN_CI and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Overseer(config), "overseer")


@pytest.hookimpl(tryfirst=True)
def pytest_unconfigure() -> None:
    """Pytest closes the file that the stacks go to."""
    faulthandler.unregister(DUMP)


@pytest.hookimpl(wrapper=True, trylast=True)  # about the test alone
def pytest_runtest_call() -> Generator[None, object, object]:
    """pytest-timeout's alarm, when it was swallowed, comes again."""
    left_s, _ = signal.getitimer(signal.ITIMER_REAL)
    ends = monotonic() + left_s
    if left_s:
        signal.setitimer(signal.ITIMER_REAL, left_s, AGAIN_S)
    try:
        return (yield)
    finally:
        if left_s:
            signal.setitimer(signal.ITIMER_REAL, max(0.0, ends - monotonic()))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """A teardown that hangs ends the process, whether or not the test has failed."""
    file = item.config.stash[fault_handler_stderr_fd_key]
    faulthandler.dump_traceback_later(TEARDOWN_WITHIN_S, file=file, exit=True)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


class Overseer:
    """Knows what is under way in all workers; writes each failure at once; ends a run that takes too long."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._under_way: dict[str, float] = {}
        self._ends = monotonic() + RUN_WITHIN_S
        threading.Thread(target=self._watch, daemon=True).start()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A worker begins a test."""
        self._under_way[nodeid] = monotonic()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """A test is torn down, too."""
        self._under_way.pop(nodeid, None)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Write a failure out, for a run that is cut has no summary."""
        if report.failed:
            lines = report.longreprtext.splitlines()[-SAYS_LINES:]
            self._say(f"FAILED {report.nodeid} ({report.when})", *lines)
        if report.when not in ("setup", "call", "teardown"):  # xdist's report of a worker that ended in a test
            self._under_way.pop(report.nodeid, None)

    def _say(self, *lines: str) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        assert terminal is not None
        terminal.ensure_newline()
        for line in lines:
            terminal.write_line(line)
        terminal.flush()

    def _watch(self) -> None:
        said: set[str] = set()
        while (now := monotonic()) < self._ends:
            slow = {name for name, since in list(self._under_way.items()) if now - since > SAYS_SLOW_AFTER_S}
            for name in slow - said:
                self._say(f"STILL RUNNING after {SAYS_SLOW_AFTER_S:g} s: {name}")
            said = slow
            sleep(1)
        self._end()

    def _end(self) -> None:
        self._say(
            f"NOT FINISHED in {RUN_WITHIN_S:g} s; under way are:",
            *(f"  {name} ({monotonic() - since:.0f} s)" for name, since in list(self._under_way.items())),
        )
        workers = children(os.getpid())
        started = descendants(os.getpid())  # before any of them ends and leaves its own children to nobody
        for pid in workers:
            _send(pid, DUMP)
        sleep(0.5)
        for pid in set(started).difference(workers):  # at once: a signal may wake the test, and the run end by itself
            _send(pid, signal.SIGKILL)
        sleep(1.5)
        for pid in {*started, *descendants(os.getpid())}:
            _send(pid, signal.SIGKILL)
        os._exit(1)


def children(parent: int) -> list[int]:
    """The processes that a process started and that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(stat.read_text(errors="replace").rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found


def descendants(parent: int) -> list[int]:
    """Its children, theirs, and so on; parents first, so that none is started again."""
    found = children(parent)
    for pid in found:
        found.extend(children(pid))
    return found


def _send(pid: int, signal_number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal_number)
