"""How much one caller may ask a second: a token bucket, without a clock of its own.

A request takes one token, a batch one for each of its items. Whoever finds a token is served whole; what a
batch takes beyond what is there is a debt, and the caller's next request waits until it is paid. So batches
are never cut, large ones never starve, and the average is kept exactly.
"""

import math
import time
from collections.abc import Callable


class TokenBucket:
    """`per_s` tokens a second, and at most one second's tokens (at least one) at once.

    `monotonic` tells seconds, from any start.
    """

    def __init__(self, per_s: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._per_s = per_s
        self._tokens = self._most
        self._at_s = monotonic()

    @property
    def per_s(self) -> float:
        """Tokens that a second brings."""
        return self._per_s

    @property
    def _most(self) -> float:
        return max(1.0, self._per_s)

    def wait_s(self) -> int:
        """Whole seconds until there is a token; 0 when there is one."""
        self._fill()
        return 0 if self._tokens >= 1 else math.ceil((1 - self._tokens) / self._per_s)

    def take(self, tokens: int = 1) -> None:
        """Takes tokens, on credit if need be. Ask `wait_s` first."""
        self._fill()
        self._tokens -= tokens

    def change(self, per_s: float) -> None:
        """Another rate from now on; what is owed stays owed."""
        self._fill()
        self._per_s = per_s
        self._tokens = min(self._tokens, self._most)

    def _fill(self) -> None:
        now_s = self._monotonic()
        self._tokens = min(self._most, self._tokens + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
