"""Requests of a till that arrive together go through the same steps together, each judged on its own.

    look    how things stand, and what the rules say; who has an outcome now is done
    book    under the bucket's lock, which decides every race

Two requests that could decide one another (one voucher, one number, one payment, one person) are never booked in one
statement: the second looks again, at what the first has left. What is refused leaves nothing behind.
"""

from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from typing import Protocol, TypeVar
from uuid import UUID

import msgspec

from kernel.errors import Code, Refusal
from redemption.numbers import Number
from redemption.wire import Done

PASSES_MAX = 16
"""How often a request looks again before it is sent away: as many of one batch may have stood in its way."""


class Attempt(Protocol):
    """One request on its way: its number with what it was sent with, and how it ended (None: not yet)."""

    number: Number
    outcome: Done | Refusal | None


AnyAttempt = TypeVar("AnyAttempt", bound=Attempt)
Step = Callable[[Sequence[AnyAttempt]], Awaitable[None]]


async def serve(
    attempts: Sequence[AnyAttempt],
    look: Step[AnyAttempt],
    book: Step[AnyAttempt],
    stakes: Callable[[AnyAttempt], Iterable[Hashable]],
) -> list[Done | Refusal]:
    """Takes attempts through both steps until each has its outcome. The same request twice at once is one request,
    and a replay of it.

    stakes   what an attempt would have to itself; of two with one in common one is booked, then the other looks again
    """
    firsts: dict[tuple[UUID, int], AnyAttempt] = {}
    for attempt in attempts:
        firsts.setdefault((attempt.number.key, attempt.number.body_hash), attempt)
    asked = [firsts[attempt.number.key, attempt.number.body_hash] for attempt in attempts]
    await _in_passes(list(firsts.values()), look, book, stakes)
    return [_told(first, attempt) for first, attempt in zip(asked, attempts, strict=True)]


def _told(first: Attempt, attempt: Attempt) -> Done | Refusal:
    outcome = first.outcome or CROWDED
    is_replay = attempt is not first and isinstance(outcome, Done)
    return msgspec.structs.replace(outcome, replayed=True) if is_replay else outcome


async def _in_passes(
    under_way: list[AnyAttempt],
    look: Step[AnyAttempt],
    book: Step[AnyAttempt],
    stakes: Callable[[AnyAttempt], Iterable[Hashable]],
) -> None:
    for _ in range(PASSES_MAX):
        await look(under_way)
        under_way = [attempt for attempt in under_way if attempt.outcome is None]
        if not under_way:
            return
        await book(_apart(under_way, stakes))
        under_way = [attempt for attempt in under_way if attempt.outcome is None]


def _apart(attempts: Iterable[AnyAttempt], stakes: Callable[[AnyAttempt], Iterable[Hashable]]) -> list[AnyAttempt]:
    """The attempts without those that have a stake in common with an earlier one."""
    taken: set[Hashable] = set()
    apart = []
    for attempt in attempts:
        mine = set(stakes(attempt))
        if taken.isdisjoint(mine):
            taken |= mine
            apart.append(attempt)
    return apart


CROWDED = Refusal(
    code=Code.SYSTEM_BUSY, detail="too many requests for one thing at once; send the same again", retry_after_s=1
)
