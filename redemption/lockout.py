"""Invalid codes lock a terminal: whoever guesses has five guesses in ten minutes, and one answer to all of them.

    TERMINAL_MAX invalid codes within WINDOW_S lock a terminal for LOCK_S; no code of it is looked at meanwhile.
    MERCHANT_MAX of all terminals of a merchant, and its terminals are locked by STRICT_MAX: guesses spread over
    many tills are slowed, right codes pass as ever, and one mistake locks nobody.

Counts and locks stand in Valkey (lockout.lua), shared by all workers. Looking whether a terminal is locked asks only
this process's memory, which is read again every REFRESH_EVERY_S: so long a right code may pass at another worker after
the lock; wrong ones are counted, and answered as locked, at once. Each worker also counts by itself, before it waits
for anything: guesses that are sent all at once get no further, and when the store is away that count decides alone,
with each worker's share of the limits.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple

import structlog
from prometheus_client import Counter, Gauge
from redis.asyncio import Redis

from kernel.batching import Coalescer
from kernel.clock import Clock
from kernel.errors import Code, Refusal, Unavailable
from kernel.refreshing import kept_fresh
from kernel.scripts import ScriptRunner
from kernel.signing import Caller
from redemption.locks import TAG, Terminal, read_locks
from redemption.tally import Tally

TERMINAL_MAX = 5
MERCHANT_MAX = 50
STRICT_MAX = 2
WINDOW_S = 600
LOCK_S = 600
"""At least WINDOW_S: what locked a terminal is out of the window when the lock ends."""

REFRESH_EVERY_S = 1.0
COUNT_WITHIN_S = 1.0
"""How long an invalid code waits for the store before this worker decides alone."""
SENDERS_MAX = 20_000
"""Terminals, and merchants, whose invalid codes a worker remembers by itself."""
BATCH_MAX, QUEUE_MAX = 200, 500

NO_SUCH_CODE = Refusal(
    code=Code.RESOURCE_NOT_EXISTS,
    detail="there is no such voucher; check the code for a typing error, or ask for the one that the phone shows now",
    pointer="voucher_code",
)
"""The one answer to every code that is not right: mistyped, forged, of another city, too old, used up."""

_invalid = Counter("hanquan_invalid_codes", "Codes presented at tills that were not right")
_locked = Counter("hanquan_terminals_locked", "Terminals that this worker saw locked for invalid codes")
_alone = Gauge("hanquan_lockout_alone", "1 while this worker counts invalid codes by itself, because the store is away")
log = structlog.get_logger()


class _Counted(NamedTuple):
    until_ms: int
    was_locked: bool


class _Limits(NamedTuple):
    terminal: int
    merchant: int
    strict: int

    def shared(self, workers: int) -> "_Limits":
        """What each of several workers may let pass, so that all of them let pass no more. At least one."""
        return _Limits(*(max(1, limit // workers) for limit in self))


LIMITS = _Limits(TERMINAL_MAX, MERCHANT_MAX, STRICT_MAX)
_SCRIPT = Path(__file__).with_name("lockout.lua").read_text(encoding="utf-8")
_WINDOW_MS, _LOCK_MS = WINDOW_S * 1000, LOCK_S * 1000


class Lockout:
    """Which terminals are locked, and the count that locks them. `workers` processes share a city's tills."""

    def __init__(self, valkey: Redis, clock: Clock, *, workers: int = 1) -> None:
        self._valkey = valkey
        self._clock = clock
        self._share = LIMITS.shared(workers)
        self._count = ScriptRunner(valkey, _SCRIPT)
        self._counting = Coalescer(self._count_all, batch_max=BATCH_MAX, queue_max=QUEUE_MAX, deadline_s=COUNT_WITHIN_S)
        self._terminals = Tally(TERMINAL_MAX, SENDERS_MAX)
        self._merchants = Tally(MERCHANT_MAX, SENDERS_MAX)
        self._error: Unavailable | None = None
        self._shared: dict[Terminal, int] = {}
        """Ends of locks as the store had them a moment ago, ms since 1970."""
        self._own: dict[Terminal, tuple[int, int]] = {}
        """Locks that this worker saw or set: since when, until when."""

    def kept_fresh(self) -> AbstractAsyncContextManager[None]:
        """Keeps reading who is locked while the context is open; a store that is away does not keep it closed."""
        return kept_fresh("locked tills", self.refresh, REFRESH_EVERY_S)

    def refusal(self, caller: Caller) -> Refusal | None:
        """TERMINAL_LOCKED when this terminal is: ask before a code is looked at. Memory only, never waits."""
        if not self._shared and not self._own:
            return None
        terminal, now_ms = _terminal(caller), self._clock.now_ms()
        until_ms = max(self._shared.get(terminal, 0), self._own.get(terminal, (0, 0))[1])
        return _locked_until(until_ms, now_ms) if until_ms > now_ms else None

    async def failed(self, caller: Caller) -> Refusal:
        """Counts a code that was not right; what to answer. Call it without waiting for anything since `refusal`.

        The answer is NO_SUCH_CODE, of the last code before the lock too; TERMINAL_LOCKED only when another worker
        had locked the terminal before.
        """
        terminal, now_ms = _terminal(caller), self._clock.now_ms()
        _invalid.inc()
        self._terminals.add(terminal, now_ms)
        self._merchants.add(terminal.merchant_no, now_ms)
        if self._is_over(self._share if self._error else LIMITS, terminal, now_ms):
            self._lock(terminal, now_ms, now_ms + _LOCK_MS)
        try:
            counted = await self._counting.submit(terminal, terminal.merchant_no)
        except Unavailable as error:
            self._note_store(error)
            if self._is_over(self._share, terminal, now_ms):
                self._lock(terminal, now_ms, now_ms + _LOCK_MS)
            return NO_SUCH_CODE
        if counted.until_ms:
            self._lock(terminal, now_ms, counted.until_ms)
        return _locked_until(counted.until_ms, now_ms) if counted.was_locked else NO_SUCH_CODE

    async def refresh(self) -> None:
        """Reads who is locked, and whom an operator let go; what is over is forgotten."""
        now_ms = self._clock.now_ms()
        self._own = {terminal: lock for terminal, lock in self._own.items() if lock[1] > now_ms}
        try:
            locks = await read_locks(self._valkey, now_ms, within_s=COUNT_WITHIN_S)
        except Unavailable as error:
            self._note_store(error)
            return
        self._note_store(None)
        self._shared = locks.locked
        for terminal, at_ms in locks.let_go.items():
            self._terminals.forget(terminal, at_ms)
            if self._own.get(terminal, (at_ms + 1, 0))[0] <= at_ms:
                del self._own[terminal]

    def _is_over(self, limits: _Limits, terminal: Terminal, now_ms: int) -> bool:
        since_ms = now_ms - _WINDOW_MS
        count = self._terminals.count(terminal, since_ms)
        if count >= limits.terminal:
            return True
        return count >= limits.strict and self._merchants.count(terminal.merchant_no, since_ms) >= limits.merchant

    def _note_store(self, error: Unavailable | None) -> None:
        if error is not None and self._error is None:
            log.warning("lockout_alone", error=str(error))
        self._error = error
        _alone.set(error is not None)

    def _lock(self, terminal: Terminal, now_ms: int, until_ms: int) -> None:
        if self._own.get(terminal, (0, 0))[1] <= now_ms:
            _locked.inc()
            log.warning("terminal_locked", merchant_no=terminal.merchant_no, terminal_no=terminal.terminal_no)
        self._own[terminal] = (now_ms, until_ms)

    async def _count_all(self, terminals: Sequence[Terminal]) -> list[_Counted]:
        numbers = [number for terminal in terminals for number in terminal]
        answer = await self._count(TAG, [self._clock.now_ms(), _WINDOW_MS, _LOCK_MS, *LIMITS, *numbers])
        return [_Counted(until_ms, bool(was)) for until_ms, was in zip(answer[::2], answer[1::2], strict=True)]


def _terminal(caller: Caller) -> Terminal:
    return Terminal(caller.holder_no, caller.terminal_no)


def _locked_until(until_ms: int, now_ms: int) -> Refusal:
    return Refusal(
        code=Code.TERMINAL_LOCKED,
        detail="too many invalid codes came from this terminal; until the lock ends no code of it is looked at",
        retry_after_s=max(1, -((now_ms - until_ms) // 1000)),
    )
