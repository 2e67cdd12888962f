"""Stock, limits and request numbers, as Valkey holds them: a typed stub for each script."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import msgspec
from redis.asyncio import Redis

from antifraud.gate import GateLimits, digest_person, gate_source
from issuer import keys
from issuer.lua import lua
from issuer.moves import Moves
from issuer.record import (
    Claim,
    find_record,
    pack_claim,
    pack_record,
    person_field,
    request_digest,
    request_member,
    unpack_answer,
    unpack_later,
)
from kernel.errors import Broken, Code
from kernel.scripts import ScriptRunner, await_replicas
from kernel.valkey import guard

NOT_YET = timedelta(microseconds=999)


class Granted(msgspec.Struct, frozen=True):
    """A claim that has its vouchers: `serial` is that of the first. `claimed_ms` in campaign time."""

    serial: int
    claimed_ms: int
    replayed: bool


class Denied(msgspec.Struct, frozen=True):
    """A claim that was refused, and by which rule when the code alone does not say.

    again_ms   campaign time at which more is released; 0: nothing more is planned
    """

    code: Code
    rule: str | None = None
    again_ms: int = 0


_DENIED = {
    b"IDEMPOTENCY_MISMATCH": Denied(Code.IDEMPOTENCY_MISMATCH),
    b"NOT_STARTED": Denied(Code.NOT_STARTED),
    b"ENDED": Denied(Code.ENDED),
    b"PAUSED": Denied(Code.PAUSED),
    b"UNPUBLISHED": Denied(Code.SYSTEM_BUSY),
    b"SOLD_OUT": Denied(Code.SOLD_OUT),
    b"USER_ALREADY_CLAIMED": Denied(Code.USER_ALREADY_CLAIMED),
    b"REQUEST_BLOCKED": Denied(Code.REQUEST_BLOCKED),
    b"FREQUENCY_LIMITED": Denied(Code.FREQUENCY_LIMITED),
    b"DEVICE_LIMIT": Denied(Code.RULE_LIMIT, "DEVICE_LIMIT"),
    b"PERSON_LIMIT": Denied(Code.RULE_LIMIT, "PERSON_LIMIT"),
    b"GROUP_LIMIT": Denied(Code.RULE_LIMIT, "GROUP_LIMIT"),
    b"FACE_LIMIT": Denied(Code.RULE_LIMIT, "FACE_LIMIT"),
}


class StockOnShard(msgspec.Struct, frozen=True, kw_only=True):
    """What a shard holds of a stock.

    left       units that can still be claimed here
    total      units that were dealt to this shard; what release stages are shares of
    moved      units that came from other shards less those that went
    state      RUN, PAUSED or ENDED
    adjusted   the last adjustment applied
    """

    left: int
    total: int
    moved: int = 0
    state: str = "RUN"
    adjusted: int = 0

    @property
    def allotted(self) -> int:
        """Units that are here or were won here; claims do not change it."""
        return self.total + self.moved


class PublishedRound(msgspec.Struct, frozen=True, kw_only=True):
    """What `publish` writes on one shard: the fields of the round's hash as claim.lua reads them, and its stocks."""

    round_no: int
    opens_ms: int
    hash_buckets: int
    fields: Mapping[str, int | str | bytes]
    serial: int = 0
    stocks: Mapping[int, StockOnShard] = {}
    moves: Mapping[int, tuple[int, int]] = {}
    """By other shard: the last move from it that counts as taken, and the last number of a move to it."""


class Remembered(msgspec.Struct, frozen=True):
    """A win to be put back into a store that lost it."""

    claim: Claim
    serial: int
    claimed_ms: int


class StockStore:
    """The scripts, on one Valkey or a cluster. Raises StoreDown when the outcome is not known.

    replicas   how many replicas must hold what was decided before it is told
    """

    def __init__(self, valkey: Redis, limits: GateLimits, replicas: int = 0) -> None:
        self._valkey = valkey
        self._replicas = replicas
        self._claim = ScriptRunner(valkey, gate_source(limits) + "\n" + lua("claim.lua"), replicas=replicas)
        self._publish = ScriptRunner(valkey, lua("publish.lua"), replicas=replicas)
        self._adjust = ScriptRunner(valkey, lua("adjust.lua"), replicas=replicas)
        self.moves = Moves(valkey, replicas)

    @property
    def valkey(self) -> Redis:
        """The client underneath."""
        return self._valkey

    async def claim(
        self, shard: int, claims: Sequence[Claim], pack: Callable[[Claim], bytes] = pack_claim
    ) -> list[Granted | Denied]:
        """Decides claims of one shard, atomically and in order; durable when this returns."""
        answers = await self._claim(keys.tag(shard), [pack(claim) for claim in claims])
        return [_outcome(answer) for answer in answers]

    async def publish(self, shard: int, round_: PublishedRound) -> bool:
        """Makes a round claimable on a shard; False when it was published before."""
        fields = dict(round_.fields) | {
            "opens_ms": round_.opens_ms,
            "hash_buckets": round_.hash_buckets,
            "serial": round_.serial,
        }
        args: list[Any] = [
            round_.round_no,
            len(fields),
            len(round_.moves),
            *(x for pair in fields.items() for x in pair),
        ]
        for other, numbers in round_.moves.items():
            args += (other, *numbers)
        for no, stock in round_.stocks.items():
            args += (no, stock.left, stock.total, stock.moved, stock.state, stock.adjusted)
        return bool(await self._publish(keys.tag(shard), args))

    async def remember(self, shard: int, round_: PublishedRound, wins: Sequence[Remembered]) -> None:
        """Puts back what people won in a round that is about to be published again. All wins of a person at once."""
        pipe = self._valkey.pipeline(transaction=False)
        records: dict[tuple[str, bytes], bytes] = defaultdict(bytes)
        for win in wins:
            digest = request_digest(win.claim.card.offer.partner_no, win.claim.out_request_no)
            key = keys.request_key(shard, round_.round_no, digest, round_.hash_buckets)
            pipe.sadd(key, request_member(digest))
            person = digest_person(win.claim.person)
            who = keys.person_key(shard, round_.round_no, person, round_.hash_buckets), person_field(person)
            records[who] += pack_record(win.claim, win.serial, win.claimed_ms - round_.opens_ms)
        for (key, field), record in records.items():
            pipe.hset(key, field, record)
        await guard(pipe.execute())

    async def remember_faces(self, shard: int, campaign_no: int, faces: Iterable[tuple[bytes, int]]) -> None:
        """Puts back the face (fen) that people, by token, won in a campaign."""
        pipe = self._valkey.pipeline(transaction=False)
        for person, face_fen in faces:
            digest = digest_person(person)
            pipe.hset(keys.cap_key(shard, campaign_no, digest), person_field(digest), str(face_fen))
        await guard(pipe.execute())

    async def knows_faces(self, shard: int, campaign_no: int) -> bool:
        """Whether a shard holds all that people won in a campaign."""
        return bool(await guard(self._valkey.exists(keys.capped_key(shard, campaign_no))))

    async def mark_faces(self, shard: int, campaign_no: int) -> None:
        """Says so."""
        await guard(self._valkey.set(keys.capped_key(shard, campaign_no), 1))

    async def is_published(self, shard: int, round_no: int) -> bool:
        """Whether a shard knows a round."""
        return bool(await guard(self._valkey.hexists(keys.round_key(shard, round_no), "opens_ms")))

    async def stocks(self, shard: int, stock_nos: Sequence[int]) -> dict[int, StockOnShard]:
        """How stocks stand on a shard; those that it does not hold are left out."""
        pipe = self._valkey.pipeline(transaction=False)
        for no in stock_nos:
            pipe.hgetall(keys.stock_key(shard, no))
        rows = await guard(pipe.execute())
        return {no: _stock(row) for no, row in zip(stock_nos, rows, strict=True) if b"left" in row}

    async def set_states(self, shard: int, states: Mapping[int, str]) -> None:
        """Sets stocks of published rounds to RUN, PAUSED or ENDED."""
        pipe = self._valkey.pipeline(transaction=False)
        for no, state in states.items():
            pipe.hset(keys.stock_key(shard, no), "state", state)
        await guard(pipe.execute())

    async def adjust(self, shard: int, stock_no: int, adjust_no: int, delta: int) -> int | None:
        """Adds units to a stock, or takes some back, once for each number; the numbers of a stock only rise, and
        the last one may be asked again. What was applied: of a negative delta at most what is left here. None when
        the shard does not hold the stock or applied a later number."""
        is_known, applied = await self._adjust(keys.tag(shard), [stock_no, adjust_no, delta])
        return int(applied) if is_known else None

    async def has_log(self, shard: int) -> bool:
        """Whether a shard ever granted anything, as far as it knows: a log that is drained is still there."""
        return bool(await guard(self._valkey.exists(keys.log_key(shard))))

    async def log_length(self, shard: int) -> int:
        """Entries of a shard's log that are not drained."""
        return int(await guard(self._valkey.xlen(keys.log_key(shard))))

    async def left(self, shard: int, round_no: int, stock_nos: Sequence[int]) -> dict[int, int] | None:
        """What is left of each stock on one shard; None when the shard does not hold the round."""
        if not await self.is_published(shard, round_no):
            return None
        return {no: stock.left for no, stock in (await self.stocks(shard, stock_nos)).items()}

    async def told(self, shard: int, claims: Sequence[Claim]) -> tuple[Claim, Granted] | None:
        """Which of one person's claims of a round was granted, if one was, and what."""
        round_no = claims[0].card.offer.round.round_no
        row = await guard(self._valkey.hmget(keys.round_key(shard, round_no), "hash_buckets", "opens_ms"))
        if row[0] is None:
            return None
        digest = digest_person(claims[0].person)
        key = keys.person_key(shard, round_no, digest, int(row[0]))
        records = await guard(self._valkey.hget(key, person_field(digest)))
        if records is None:
            return None
        await await_replicas(self._valkey, keys.tag(shard), self._replicas)
        found = ((claim, find_record(records, claim)) for claim in claims)
        return next(
            ((claim, Granted(won[0], int(row[1]) + won[1], replayed=True)) for claim, won in found if won), None
        )


def _stock(row: Mapping[bytes, bytes]) -> StockOnShard:
    return StockOnShard(
        left=int(row[b"left"]),
        total=int(row[b"total"]),
        moved=int(row[b"moved"]),
        state=row[b"state"].decode(),
        adjusted=int(row[b"adjusted"]),
    )


def _outcome(answer: bytes) -> Granted | Denied:
    kind = answer[:1]
    if len(answer) == 13 and kind in b"GR":
        return Granted(*unpack_answer(answer), replayed=kind == b"R")
    denied = _DENIED.get(answer)
    if denied is not None:
        return denied
    if len(answer) == 9 and kind == b"L":
        return Denied(Code.SOLD_OUT, again_ms=unpack_later(answer))
    raise Broken(f"claim.lua answered {answer!r}")
