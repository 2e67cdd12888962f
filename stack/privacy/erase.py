"""Removes what is stored about a person and may go. The ledger is not touched: this role could not."""

import hmac
from collections.abc import Mapping
from datetime import datetime
from uuid import UUID

import asyncpg
import msgspec

from antifraud.gate import shard_tag, unblock_person
from kernel.clock import rfc3339
from kernel.logs import clean
from stack.errors import StackError
from stack.privacy import holdings
from stack.privacy.export import queries, read_books, vouchers_of
from stack.privacy.holdings import Person, person_of
from stack.retention.desk import Custodian

SIGNALS_GROUND = "batches of many people, read once by the detectors; they go by their age"


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """Something that stays: on what ground, and until when (None: no date yet, the ground says what ends it)."""

    what: str
    ground: str
    until: str | None = None


class Erasure(msgspec.Struct, frozen=True, kw_only=True):
    """What was removed, by where it was, and what stays. `earlier`: when the same person was erased before."""

    erasure_no: int | None
    removed: Mapping[str, int]
    kept: tuple[Kept, ...]
    earlier: tuple[str, ...]
    is_dry_run: bool


class _DryRun(Exception):
    """Undoes what a dry run removed."""


def person_hash(master_key: bytes, token: bytes) -> bytes:
    """By which a person who asks again is recognised. Without the key nobody can tell whose it is."""
    return hmac.digest(master_key, b"erasure:" + token, "sha256")


async def erase(desk: Custodian, token: str, why: str, master_key: bytes, *, is_dry_run: bool = False) -> Erasure:
    """Removes closed cases, blocks that are over, callbacks that are over, the gate's verdict, and memberships in
    households while nothing can be claimed; writes down that it was done. Done again it removes what came since.

    The record is committed with the rows; Valkey comes after, and what a crash leaves there a second run removes.
    Raises StackError for a reason that names somebody.
    """
    if clean(why) != why or not 1 <= len(why) <= 500:
        raise StackError("--why must be 1 to 500 characters that hold no token, code, phone or document number")
    person = person_of(token, desk.buckets, desk.shards)
    digest = person_hash(master_key, person.token)
    earlier = tuple(rfc3339(row["erased_at"]) for row in await desk.conn.fetch(queries["earlier"], digest))
    kept = await _kept(desk, person)
    is_quiet = not await _claimed_until(desk)
    removed = {"households": len(await holdings.households(desk, person)) if is_quiet else 0}
    removed["gate_verdict"] = int(await _verdict_is_over(desk, person))
    number: int | None = None
    try:
        async with desk.conn.transaction():
            removed |= await _remove_rows(desk, person)
            number = await _record(desk, digest, removed, kept, why)
            if is_dry_run:
                raise _DryRun
    except _DryRun:
        number = None
    except asyncpg.CheckViolationError as error:
        raise StackError(f"cannot be written down: {error}") from error
    if not is_dry_run:
        await _remove_keys(desk, person, is_quiet=is_quiet, is_over=bool(removed["gate_verdict"]))
    return Erasure(erasure_no=number, removed=removed, kept=kept, earlier=earlier, is_dry_run=is_dry_run)


async def _remove_rows(desk: Custodian, person: Person) -> Mapping[str, int]:
    token = UUID(bytes=person.token)
    vouchers = await vouchers_of(desk, person)
    return {
        "flag": len(await desk.conn.fetch(queries["delete_flags"], str(token))),
        "person_block": len(await desk.conn.fetch(queries["delete_blocks"], token, desk.now)),
        "callback_event": len(await desk.conn.fetch(queries["delete_callbacks"], person.bucket, vouchers)),
    }


async def _record(desk: Custodian, digest: bytes, removed: Mapping[str, int], kept: tuple[Kept, ...], why: str) -> int:
    words = [msgspec.json.encode(each).decode() for each in (removed, kept)]
    number: int = await desk.conn.fetchval(queries["insert_erasure"], digest, *words, desk.by, why, desk.now)
    return number


async def _remove_keys(desk: Custodian, person: Person, *, is_quiet: bool, is_over: bool) -> None:
    if is_over:
        await unblock_person(desk.valkey, shard_tag(person.shard), person.digest)
    if is_quiet:
        await holdings.leave_households(desk, person)


async def _verdict_is_over(desk: Custodian, person: Person) -> bool:
    is_there = await holdings.verdict(desk, person) is not None
    return is_there and await _block_until(desk, person) is None


async def _block_until(desk: Custodian, person: Person) -> datetime | None:
    until: datetime | None = await desk.conn.fetchval(queries["block_until"], UUID(bytes=person.token), desk.now)
    return until


async def _claimed_until(desk: Custodian) -> datetime | None:
    until: datetime | None = await desk.conn.fetchval(queries["open_rounds"], desk.now)
    return until


# ---------------------------------------------------------------- what stays, and why


async def _kept(desk: Custodian, person: Person) -> tuple[Kept, ...]:
    return (*await _kept_rows(desk, person), *await _kept_keys(desk, person))


async def _kept_rows(desk: Custodian, person: Person) -> list[Kept]:
    rounds = sorted({number >> 38 for number in await vouchers_of(desk, person)})
    row = await desk.conn.fetchrow(queries["kept_until"], rounds)
    until = row["person_link"] if row else None
    ledger = "proof of how public money was spent, under the token alone; unlinked from it when this time is over"
    kept = [Kept(what="vouchers, uses, refunds, holds", ground=ledger, until=_told(until))] if rounds else []
    blocked = await _block_until(desk, person)
    if blocked:
        kept.append(Kept(what="block", ground="protects the fund from abuse; may be appealed", until=_told(blocked)))
    books = await read_books(desk, person)
    if any(row["closed_at"] is None for row in books.get("flag", ())):
        kept.append(Kept(what="open flags", ground="a case that a person has yet to close; it goes after that"))
    if any(row["next_at"] is not None for row in books.get("callback_event", ())):
        kept.append(Kept(what="callbacks that wait", ground="the partner is told once, within a day or two"))
    return kept


async def _kept_keys(desk: Custodian, person: Person) -> list[Kept]:
    kept = []
    remembered = [one["round_no"] for one in await holdings.remembered_claims(desk, person)]
    if remembered:
        row = await desk.conn.fetchrow(queries["kept_until"], remembered)
        ground = "holds everybody to the same limits, and answers a partner's retry"
        kept.append(Kept(what="remembered claims", ground=ground, until=_told(row["claim_keys"] if row else None)))
    open_until = await _claimed_until(desk)
    if open_until:
        ground = "holds a device to one household while something can be claimed"
        kept.append(Kept(what="households", ground=ground, until=_told(open_until)))
    signals_days = desk.keep_days["signals"]
    kept.append(Kept(what="signals", ground=f"{SIGNALS_GROUND}: {signals_days} days at most"))
    return kept


def _told(moment: datetime | None) -> str | None:
    return None if moment is None else rfc3339(moment)
