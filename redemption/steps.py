"""Requests of a till go through the same steps together, each on its own: whoever has an outcome is done."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Protocol, TypeVar
from uuid import UUID

from kernel.errors import Broken
from redemption.catalogue import Catalogue
from redemption.ledger import Registered
from redemption.numbers import Number


class Attempt(Protocol):
    """One request on its way: its number with what it was sent with, and how it ended (None: not yet)."""

    @property
    def number(self) -> Number: ...

    @property
    def outcome(self) -> object: ...


AnyAttempt = TypeVar("AnyAttempt", bound=Attempt)
Step = Callable[[Sequence[AnyAttempt], Catalogue, datetime], Awaitable[None]]


def distinct(attempts: Sequence[AnyAttempt]) -> dict[tuple[UUID, int], AnyAttempt]:
    """The first attempt of each number and body: the same request twice at once is one request."""
    firsts: dict[tuple[UUID, int], AnyAttempt] = {}
    for attempt in attempts:
        firsts.setdefault((attempt.number.key, attempt.number.body_hash), attempt)
    return firsts


async def go_through(
    attempts: Sequence[AnyAttempt], steps: Sequence[Step[AnyAttempt]], catalogue: Catalogue, now: datetime
) -> None:
    """Takes attempts through the steps, until each has its outcome."""
    under_way = attempts
    for step in steps:
        under_way = [attempt for attempt in under_way if attempt.outcome is None]
        if under_way:
            await step(under_way, catalogue, now)
    if any(attempt.outcome is None for attempt in attempts):
        raise Broken("a request went through all steps and came to no end")


def is_mismatch(number: Number, owners: dict[UUID, Registered]) -> bool:
    """Whether a number is taken by another body."""
    owner = owners.get(number.key)
    return owner is not None and owner.body_hash != number.body_hash
