"""When an event is sent again, and when it is given up."""

from collections.abc import Sequence
from datetime import datetime, timedelta

DEFAULT_RETRY_AFTER_S = (
    *(15, 15, 30, 180, 600, 1_200, 1_800, 1_800, 1_800, 3_600),
    *(10_800, 10_800, 10_800, 21_600, 21_600),
)
"""Seconds between attempts: WeChat Pay's schedule for its own notifications, 16 attempts within 24 h 4 min."""

ENTRIES_MAX = 100


def next_attempt(retry_after_s: Sequence[int], tries: int, now: datetime) -> datetime | None:
    """When to try again after `tries` failed attempts; None: no more, the event is a dead letter."""
    return now + timedelta(seconds=retry_after_s[tries - 1]) if tries <= len(retry_after_s) else None
