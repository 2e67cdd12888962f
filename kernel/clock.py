"""Where time comes from. Nobody else in Hanquan reads the system's clock.

Rounds open by the store's time, not by this one (see issuer/lua/claim.lua); this clock serves
everything that is not a race at noon: signatures, validity at the till, business days.
"""

import mmap
import os
import struct
import time
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Protocol
from zoneinfo import ZoneInfo

CITY_ZONE = ZoneInfo("Asia/Shanghai")

_OFFSET = struct.Struct("<q")
_MOMENTS_KEPT = 256
"""Requests that are booked together have one moment: it is put in city time once."""


class Clock(Protocol):
    """Tells the time. Injected everywhere, so that tests and demonstrations can own it."""

    def now(self) -> datetime:
        """Aware, in UTC."""
        ...

    def now_ms(self) -> int:
        """Milliseconds since 1970."""
        ...

    def offset_ms(self) -> int:
        """How far this clock is ahead of the system's (0 in production)."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def offset_ms(self) -> int:
        return 0


class ManualClock:
    """Stands still until it is told to move."""

    def __init__(self, start: datetime) -> None:
        self._now = start.astimezone(UTC)

    def now(self) -> datetime:
        return self._now

    def now_ms(self) -> int:
        return to_ms(self._now)

    def offset_ms(self) -> int:
        return to_ms(self._now) - SystemClock().now_ms()

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)

    def set(self, moment: datetime) -> None:
        self._now = moment.astimezone(UTC)


class FileClock:
    """The machine's clock plus an offset that several processes share through a file of 8 bytes.

    Replays use it to live through a week of 2020 in a minute. A reader pays one memory access.
    """

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if os.fstat(fd).st_size < _OFFSET.size:
                os.write(fd, _OFFSET.pack(0))
            self._map = mmap.mmap(fd, _OFFSET.size)
        finally:
            os.close(fd)

    def now(self) -> datetime:
        return from_ms(self.now_ms())

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self.offset_ms()

    def offset_ms(self) -> int:
        offset: int = _OFFSET.unpack_from(self._map)[0]
        return offset

    def move_to(self, moment: datetime) -> None:
        """From now on this clock, in every process that has the file, tells `moment` and runs on."""
        _OFFSET.pack_into(self._map, 0, to_ms(moment) - time.time_ns() // 1_000_000)


def open_clock(path: str | None) -> Clock:
    """The system's clock, or the shared one when a clock file is configured."""
    return FileClock(Path(path)) if path else SystemClock()


def to_ms(moment: datetime) -> int:
    """Milliseconds since 1970 of an aware moment, by integer arithmetic."""
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def from_ms(ms: int) -> datetime:
    """The aware UTC moment `ms` milliseconds after 1970."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)


def business_day(moment: datetime) -> date:
    """The city's calendar day of a moment; settlement is by this day."""
    return _in_city(moment)[0]


def end_of_day(moment: datetime, days: int = 1) -> datetime:
    """The last second of the city's `days`-th day from a moment on, the day of the moment being the first."""
    last = business_day(moment) + timedelta(days=days - 1)
    return datetime(last.year, last.month, last.day, 23, 59, 59, tzinfo=CITY_ZONE)


def ends_at(valid_until: datetime, valid_days: int | None, claimed_at: datetime) -> datetime:
    """When a voucher ends: at its stock's end, or with its own last day if that is before. Like voucher_end in SQL."""
    return valid_until if valid_days is None else min(valid_until, end_of_day(claimed_at, valid_days))


def rfc3339(moment: datetime) -> str:
    """A moment as partners read it: city time with its offset, milliseconds when there are any."""
    return _in_city(moment)[1]


@lru_cache(_MOMENTS_KEPT)
def _in_city(moment: datetime) -> tuple[date, str]:
    there = moment.astimezone(CITY_ZONE)
    return there.date(), there.isoformat(timespec="milliseconds" if moment.microsecond else "seconds")
