"""Stock, limits and request numbers, as Valkey holds them: a typed stub for each script."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from importlib.resources import files
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

from antifraud.gate import GateLimits, digest_person, gate_source
from issuer import keys
from issuer.catalogue import Offered
from issuer.record import Claim, pack_claim, pack_told, person_field, request_digest, unpack_answer
from kernel.clock import to_ms
from kernel.errors import Broken, Code, StoreDown

HASH_ENTRIES = 96
"""How full a small hash of a round gets; below Valkey's listpack limit, so an entry costs its bytes."""
RESTORE_PAGE = 2_000
NOT_YET = timedelta(microseconds=999)
SERIAL_GAP = 1 << 20
"""Serials passed over when a round is restored: numbers of wins that were lost before the drain saw them.
Somebody may hold such a code; it must never become another person's voucher."""


class Granted(msgspec.Struct, frozen=True):
    """A claim that has its voucher. `claimed_ms` in campaign time."""

    serial: int
    claimed_ms: int
    replayed: bool


class Denied(msgspec.Struct, frozen=True):
    """A claim that was refused, and by which rule when the code alone does not say."""

    code: Code
    rule: str | None = None


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
}


class PublishedRound(msgspec.Struct, frozen=True, kw_only=True):
    """What `publish` writes on one shard. Times in campaign ms."""

    round_no: int
    opens_ms: int
    closes_ms: int
    offset_ms: int
    limit: int
    hash_buckets: int
    serial: int
    left: Mapping[int, int]
    paused: Mapping[int, bool]


class StockStore:
    """The scripts, on one Valkey or a cluster. Raises StoreDown when the outcome is not known."""

    def __init__(self, valkey: Redis, limits: GateLimits) -> None:
        self._valkey = valkey
        self._claim = _Script(valkey, gate_source(limits) + "\n" + _lua("claim.lua"))
        self._publish = _Script(valkey, _lua("publish.lua"))

    async def claim(self, shard: int, claims: Sequence[Claim]) -> list[Granted | Denied]:
        """Decides claims of one shard, atomically and in order; durable when this returns."""
        answers = await self._claim(keys.tag(shard), [pack_claim(claim) for claim in claims])
        return [_outcome(answer) for answer in answers]

    async def publish(self, shard: int, round_: PublishedRound) -> bool:
        """Makes a round claimable on a shard; False when it was published before."""
        head = [round_.round_no, round_.opens_ms, round_.closes_ms, round_.offset_ms, round_.limit]
        stocks = [x for no, left in round_.left.items() for x in (no, left, int(round_.paused[no]))]
        return bool(await self._publish(keys.tag(shard), [*head, round_.hash_buckets, round_.serial, *stocks]))

    async def restore(self, shard: int, fresh: PublishedRound, told: Sequence[tuple[Claim, int, int]]) -> None:
        """Publishes a round of which `told` (claim, serial, claimed_ms) was given away before, with the
        answers and limits that follow from it. One at a time per round: the caller holds a lock."""
        buckets = fresh.hash_buckets
        held: Counter[tuple[str, bytes]] = Counter()
        for start in range(0, len(told), RESTORE_PAGE):
            pipe = self._valkey.pipeline(transaction=False)
            for claim, serial, claimed_ms in told[start : start + RESTORE_PAGE]:
                digest = request_digest(claim.partner_no, claim.out_request_no)
                key = keys.request_key(shard, fresh.round_no, digest, buckets)
                pipe.hset(key, digest, pack_told(claim, serial, claimed_ms))
                person = digest_person(claim.person)
                who = keys.person_key(shard, fresh.round_no, person, buckets), person_field(claim, person)
                held[who] += 1
                pipe.hset(who[0], who[1], str(held[who]))
            await guard(pipe.execute())
        gone = Counter(claim.stock_no for claim, _, _ in told)
        left = {no: quantity - gone[no] for no, quantity in fresh.left.items()}
        serial = max((serial + SERIAL_GAP for _, serial, _ in told), default=0)
        await self.publish(shard, msgspec.structs.replace(fresh, left=left, serial=serial))

    async def is_published(self, shard: int, round_no: int) -> bool:
        """Whether a shard knows a round."""
        return bool(await guard(self._valkey.hexists(keys.round_key(shard, round_no), "opens_ms")))

    async def paused(self, shard: int, round_no: int, stock_nos: Sequence[int]) -> dict[int, bool]:
        """Which stocks of a round a shard holds back."""
        fields = [f"paused:{no}" for no in stock_nos]
        values = await guard(self._valkey.hmget(keys.round_key(shard, round_no), fields))
        return {no: value == b"1" for no, value in zip(stock_nos, values, strict=True)}

    async def pause(self, shard: int, round_no: int, paused: Mapping[int, bool]) -> None:
        """Holds stocks of a published round back, or lets them go again."""
        fields: dict[Any, Any] = {f"paused:{no}": int(is_paused) for no, is_paused in paused.items()}
        await guard(self._valkey.hset(keys.round_key(shard, round_no), mapping=fields))

    async def has_log(self, shard: int) -> bool:
        """Whether a shard ever granted anything, as far as it knows: a log that is drained is still there."""
        return bool(await guard(self._valkey.exists(keys.log_key(shard))))

    async def left(self, shard: int, round_no: int, stock_nos: Sequence[int]) -> dict[int, int] | None:
        """What is left of each stock on one shard; None when the shard does not hold the round."""
        key = keys.round_key(shard, round_no)
        values = await guard(self._valkey.hmget(key, [f"left:{no}" for no in stock_nos]))
        if all(value is None for value in values):
            return None
        return {no: int(value or 0) for no, value in zip(stock_nos, values, strict=True)}

    async def told(
        self, shard: int, round_no: int, partner_no: int, out_request_no: str
    ) -> tuple[bytes, Granted] | None:
        """What a request number was granted in a round, with the digest of the body that asked."""
        buckets = await guard(self._valkey.hget(keys.round_key(shard, round_no), "hash_buckets"))
        if buckets is None:
            return None
        digest = request_digest(partner_no, out_request_no)
        value = await guard(self._valkey.hget(keys.request_key(shard, round_no, digest, int(buckets)), digest))
        return None if value is None else (value[:8], Granted(*unpack_answer(value[7:]), replayed=True))


def hash_buckets_for(stocks: Sequence[Offered], shards: int) -> int:
    """How many small hashes a round needs on each shard."""
    return max(1, sum(stock.quantity for stock in stocks) // (shards * HASH_ENTRIES))


def share_of(quantity: int, shard: int, shards: int) -> int:
    """A shard's part of a stock; the parts add up."""
    return quantity * (shard + 1) // shards - quantity * shard // shards


def fresh_round(stocks: Sequence[Offered], shard: int, shards: int, offset_ms: int) -> PublishedRound:
    """A round of which nothing has been given away, as one shard gets it."""
    first = stocks[0]
    return PublishedRound(
        round_no=first.round_no,
        opens_ms=to_ms(first.opens_at + NOT_YET),  # rounded up: not a part of a millisecond too early
        closes_ms=to_ms(first.closes_at),
        offset_ms=offset_ms,
        limit=first.per_person_and_partner_limit,
        hash_buckets=hash_buckets_for(stocks, shards),
        serial=0,
        left={stock.stock_no: share_of(stock.quantity, shard, shards) for stock in stocks},
        paused={stock.stock_no: stock.paused for stock in stocks},
    )


async def guard(command: Any) -> Any:
    """Awaits a command; StoreDown when the store fails it."""
    try:
        return await command
    except RedisError as error:
        raise StoreDown(f"the claim store did not answer: {type(error).__name__}") from error


class _Script:
    """A script by its hash, loaded again whenever the store has forgotten it."""

    def __init__(self, valkey: Redis, source: str) -> None:
        self._valkey = valkey
        self._source = source
        self._sha: str | None = None

    async def __call__(self, tag: str, args: Sequence[Any]) -> Any:
        if self._sha is None:
            self._sha = await guard(self._valkey.script_load(self._source))
        try:
            return await self._valkey.evalsha(self._sha, 1, tag, *args)
        except NoScriptError:  # a restarted store; nothing was done, so asking again is safe
            self._sha = None
            return await self(tag, args)
        except RedisError as error:
            raise StoreDown(f"the claim store did not answer: {type(error).__name__}") from error


def _outcome(answer: bytes) -> Granted | Denied:
    kind = answer[:1]
    if kind in (b"G", b"R") and len(answer) == 13:
        return Granted(*unpack_answer(answer), replayed=kind == b"R")
    denied = _DENIED.get(answer)
    if denied is None:
        raise Broken(f"claim.lua answered {answer!r}")
    return denied


def _lua(name: str) -> str:
    return files("issuer.lua").joinpath(name).read_text(encoding="utf-8")
