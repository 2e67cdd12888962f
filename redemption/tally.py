"""Invalid codes as one process remembers them: the last few times of each sender, of a bounded number of senders."""

from collections import deque
from collections.abc import Hashable


class Tally:
    """When each sender's last `keep` invalid codes came, ms since 1970. Of more than `senders_max` senders those that
    were quiet longest are forgotten."""

    def __init__(self, keep: int, senders_max: int) -> None:
        self._keep = keep
        self._senders_max = senders_max
        self._times_ms: dict[Hashable, deque[int]] = {}

    def __len__(self) -> int:
        return len(self._times_ms)

    def add(self, sender: Hashable, at_ms: int) -> None:
        """One more invalid code."""
        times = self._times_ms.pop(sender, None) or deque(maxlen=self._keep)
        times.append(at_ms)
        self._times_ms[sender] = times  # at the end: whoever sent last is forgotten last
        if len(self._times_ms) > self._senders_max:
            del self._times_ms[next(iter(self._times_ms))]

    def count(self, sender: Hashable, since_ms: int) -> int:
        """How many came after a moment, up to `keep`."""
        return sum(at_ms > since_ms for at_ms in self._times_ms.get(sender, ()))

    def forget(self, sender: Hashable, until_ms: int) -> None:
        """Takes back what came until a moment."""
        left = [at_ms for at_ms in self._times_ms.get(sender, ()) if at_ms > until_ms]
        if left:
            self._times_ms[sender] = deque(left, maxlen=self._keep)
        else:
            self._times_ms.pop(sender, None)
