"""Waiting for a free connection, first come, first served.

gevent's own semaphores let whoever comes by in the right moment jump the queue: under load some people
would wait for ever, and the longest wait that is reported would be the load generator's own.
"""

from collections import deque
from types import TracebackType

from gevent.event import Event


class Turns:
    """So many may be inside of its `with` block at once."""

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._waiting: deque[Event] = deque()

    def __enter__(self) -> None:
        if self._free:  # nobody waits then: a turn that ends is handed on
            self._free -= 1
            return
        called = Event()
        self._waiting.append(called)
        try:
            called.wait()
        except BaseException:  # this greenlet is killed while it waits, or just as it is called
            if called.is_set():
                self._hand_on()
            else:
                self._waiting.remove(called)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hand_on()

    def _hand_on(self) -> None:
        if self._waiting:
            self._waiting.popleft().set()
        else:
            self._free += 1
