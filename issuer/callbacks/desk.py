"""What operators do about callbacks: who is told, with which key, and what to send again.

Expected refusals are `Refused`, with a line for the operator. Each function is one transaction.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

import sql
from issuer.callbacks.endpoint import complaint_about
from issuer.callbacks.envelope import CallbackKey
from issuer.callbacks.event import EventKey, Kind, parse_event_id
from issuer.callbacks.retry import DEFAULT_RETRY_AFTER_S, ENTRIES_MAX
from kernel.postgres import Connection
from kernel.sealing import seal

_queries = sql.load("callbacks")
_YEAR_S = 366 * 86_400


class Refused(msgspec.Struct, frozen=True):
    """It was not done, and why."""

    detail: str


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What a partner subscribes to."""

    url: str
    kinds: Sequence[Kind] = tuple(Kind)
    may_be_private: bool = False
    retry_after_s: Sequence[int] = DEFAULT_RETRY_AFTER_S


class Subscribed(msgspec.Struct, frozen=True, kw_only=True):
    """A subscription that holds now. `key` is there when one was made, for this one time."""

    partner_id: str
    url: str
    kinds: list[Kind]
    key: CallbackKey | None


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """A subscription as it stands. Serial numbers of keys: the newest first."""

    partner_id: str
    url: str
    kinds: list[str]
    is_active: bool
    may_be_private: bool
    retry_after_s: list[int]
    changed_at: datetime
    serial_nos: list[str]


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """How the events of one subscriber stand."""

    partner_id: str
    is_active: bool
    waiting: int
    due: int
    oldest_at: datetime | None
    delivered: int
    dead: int
    last_delivered_at: datetime | None


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """An event that was given up."""

    event_id: str
    partner_id: str
    kind: str
    happened_at: datetime
    died_at: datetime
    tries: int
    last_error: str


async def subscribe(
    conn: Connection, master_key: bytes, partner_id: str, wish: Wish, now: datetime
) -> Subscribed | Refused:
    """Begins or changes a partner's subscription; the first time, a key is made. What happened before is not told."""
    if complaint := _complaint(wish):
        return Refused(complaint)
    kinds = sorted(set(wish.kinds), key=list(Kind).index)
    async with conn.transaction():
        partner_no = await _partner_no(conn, partner_id)
        if isinstance(partner_no, Refused):
            return partner_no
        await conn.execute(
            _queries["subscribe"],
            partner_no,
            wish.url,
            [kind.value for kind in kinds],
            wish.may_be_private,
            list(wish.retry_after_s),
            now,
        )
        has_key = await conn.fetchval(_queries["has_key"], partner_no)
        key = None if has_key else await _add_key(conn, master_key, partner_no, now)
    return Subscribed(partner_id=partner_id, url=wish.url, kinds=kinds, key=key)


async def rotate(conn: Connection, master_key: bytes, partner_id: str, not_before: datetime) -> CallbackKey | Refused:
    """A new key that seals messages from a time on; until then the partner can put it beside the old one."""
    async with conn.transaction():
        partner_no = await _partner_no(conn, partner_id)
        if isinstance(partner_no, Refused):
            return partner_no
        return await _add_key(conn, master_key, partner_no, not_before)


async def unsubscribe(conn: Connection, partner_id: str, now: datetime) -> Refused | None:
    """Nothing new is told. What waits stays, and goes out when the partner subscribes again."""
    partner_no = await _partner_no(conn, partner_id)
    if isinstance(partner_no, Refused):
        return partner_no
    ended = await conn.fetchval(_queries["unsubscribe"], partner_no, now)
    return None if ended is not None else Refused(f"{partner_id} does not subscribe")


async def subscriptions(conn: Connection) -> list[Listed]:
    """All subscriptions, ended ones too."""
    return [Listed(**dict(row)) for row in await conn.fetch(_queries["listed"])]


async def queues(conn: Connection, now: datetime) -> list[Queue]:
    """How the events of each subscriber stand; reads them all."""
    return [Queue(**dict(row)) for row in await conn.fetch(_queries["queues"], now)]


async def open_expiries(conn: Connection) -> int:
    """Booked expiries whose events are still being written down."""
    count: int = await conn.fetchval(_queries["open_expiries"])
    return count


async def dead_letters(conn: Connection, partner_id: str | None, limit: int) -> list[DeadLetter]:
    """Events that were given up, the newest first."""
    return [_dead_letter(row) for row in await conn.fetch(_queries["dead"], partner_id, limit)]


async def redeliver(conn: Connection, event_id: str, now: datetime) -> Refused | None:
    """Puts one event back at the start of its schedule, delivered or not."""
    key = parse_event_id(event_id)
    if key is None:
        return Refused(f"{event_id} is no event's id; ids look like 0040A0000001-1-USED")
    found = await conn.fetchval(_queries["redeliver"], key.voucher_id, key.attempt, key.kind.value, now, key.part)
    return None if found is not None else Refused(f"there is no event {event_id}")


async def redeliver_since(
    conn: Connection, partner_id: str, since: datetime, now: datetime, *, delivered_too: bool
) -> int | Refused:
    """Puts back a partner's dead letters of what happened since a time; how many those are."""
    partner_no = await _partner_no(conn, partner_id)
    if isinstance(partner_no, Refused):
        return partner_no
    count: int = await conn.fetchval(_queries["redeliver_since"], partner_no, since, now, delivered_too)
    return count


def _complaint(wish: Wish) -> str | None:
    if bad := complaint_about(wish.url, may_be_private=wish.may_be_private):
        return f"{wish.url}: {bad}"
    if not wish.kinds:
        return "name at least one kind of event"
    if not 1 <= len(wish.retry_after_s) <= ENTRIES_MAX or not all(0 < s <= _YEAR_S for s in wish.retry_after_s):
        return f"a schedule has 1 to {ENTRIES_MAX} entries, each in seconds above zero"
    return None


async def _partner_no(conn: Connection, partner_id: str) -> int | Refused:
    numbers = {row["partner_id"]: row["partner_no"] for row in await conn.fetch(_queries["partners"])}
    if partner_id in numbers:
        return int(numbers[partner_id])
    return Refused(f"there is no partner {partner_id!r}; there are: {', '.join(numbers) or 'none yet'}")


async def _add_key(conn: Connection, master_key: bytes, partner_no: int, not_before: datetime) -> CallbackKey:
    key = CallbackKey.fresh()
    sealed = seal(master_key, key.material, key.serial_no)
    await conn.execute(_queries["add_key"], key.serial_no, partner_no, sealed, not_before)
    return key


def _dead_letter(row: Any) -> DeadLetter:
    return DeadLetter(
        event_id=str(EventKey(row["voucher_id"], row["attempt"], Kind(row["kind"]), row["part"])),
        partner_id=row["partner_id"],
        kind=row["kind"],
        happened_at=row["happened_at"],
        died_at=row["died_at"],
        tries=row["tries"],
        last_error=row["last_error"] or "",
    )
