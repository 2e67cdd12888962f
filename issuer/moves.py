"""Stock moves between shards, so that the last voucher can be claimed by anyone.

A move has three steps, each a script on one shard and each harmless to repeat: give (units leave one shard and are
on their way), take (they arrive at the other, once), given (the first shard forgets them). Whoever comes next
finishes what a dead worker left on the way. See issuer/lua/give.lua.
"""

from collections.abc import Mapping, Sequence
from enum import Enum

import msgspec
from redis.asyncio import Redis

from issuer import keys
from issuer.lua import lua
from kernel.errors import StoreDown
from kernel.scripts import ScriptRunner, read_replicated
from kernel.valkey import guard

LOOKS_MAX = 16
"""Looks at all shards for one fetch. Two in a row that agree end it; others claim and move meanwhile."""


FENCE = 1_000_000
"""Move numbers passed over when a shard is dealt its part again; more than it could have made meanwhile."""


class Fetched(Enum):
    """What came of asking other shards for units."""

    MOVED = "MOVED"
    """Some arrived, or are here already: ask again."""
    HELD = "HELD"
    """There are some, and their release stage is still to come."""
    NOTHING = "NOTHING"
    """No shard has any, and none are on the way."""


class Wanted(msgspec.Struct, frozen=True):
    """What a shard lacks.

    least     units that are of any use
    units     units that are asked for now
    is_held   the shard has units, and their release stage is still to come
    """

    round_no: int
    stock_no: int
    least: int
    units: int
    is_held: bool = False


class Move(msgspec.Struct, frozen=True):
    """Units on their way. `text` is what the giver remembers: seq:stock_no:units."""

    giver: int
    taker: int
    text: str

    @property
    def seq(self) -> int:
        return int(self.text.split(":")[0])

    @property
    def stock_no(self) -> int:
        return int(self.text.split(":")[1])

    @property
    def units(self) -> int:
        return int(self.text.split(":")[2])


class View(msgspec.Struct, frozen=True):
    """What one shard says of a stock: equal views of all shards, one after the other, were true at one time,
    because every move raises a number in `out`."""

    left: int
    moved: int
    out: tuple[tuple[bytes, bytes], ...]

    def moves(self, giver: int) -> list[Move]:
        """What is on the way from this shard."""
        return [Move(giver, int(to), move.decode()) for to, move in self.out if not to.startswith(b"n:")]


class Moves:
    """Moves units of a round's stocks between shards. Raises StoreDown."""

    def __init__(self, valkey: Redis, replicas: int = 0) -> None:
        self._valkey = valkey
        self._replicas = replicas
        self._give = ScriptRunner(valkey, lua("give.lua"), replicas=replicas)
        self._take = ScriptRunner(valkey, lua("take.lua"), replicas=replicas)
        self._given = ScriptRunner(valkey, lua("given.lua"), replicas=replicas)

    async def fetch(self, wanted: Wanted, taker: int, shards: int) -> Fetched:
        """Brings units of a stock to a shard that lacks them, if there is one anywhere."""
        before: Sequence[View] = ()
        for _ in range(LOOKS_MAX):
            views = await self.look(wanted.round_no, wanted.stock_no, shards)
            if not wanted.is_held and views[taker].left >= wanted.least:
                return Fetched.MOVED
            if await self._arrived(wanted, taker, views) or await self._asked(wanted, taker, views):
                return Fetched.MOVED
            if views == before:
                there_are = sum(view.left for view in views) >= wanted.least
                return Fetched.HELD if there_are else Fetched.NOTHING
            before = views
        raise StoreDown("units of this stock are on the move")

    async def look(self, round_no: int, stock_no: int, shards: int) -> list[View]:
        """What each shard says. StoreDown when one does not hold the stock: nobody can say what it would have."""
        pipe = self._valkey.pipeline(transaction=False)
        for shard in range(shards):
            pipe.hgetall(keys.out_key(shard, round_no))
            pipe.hmget(keys.stock_key(shard, stock_no), "left", "moved")
        answers = await guard(pipe.execute())
        views = list(zip(answers[::2], answers[1::2], strict=True))
        for shard, (_, (left, _)) in enumerate(views):
            if left is None:
                raise StoreDown(f"shard {shard} does not hold the stock")
        return [View(int(left), int(moved), tuple(sorted(out.items()))) for out, (left, moved) in views]

    async def outs(self, round_no: int, shards: int) -> list[Mapping[bytes, bytes]]:
        """By shard, what each remembers of the moves it made: the one on its way to another, and the last number."""
        pipe = self._valkey.pipeline(transaction=False)
        for shard in range(shards):
            pipe.hgetall(keys.out_key(shard, round_no))
        outs: list[Mapping[bytes, bytes]] = await guard(pipe.execute())
        return outs

    async def on_the_way(self, round_no: int, shards: int) -> list[Move]:
        """Units of a round that left a shard and have not arrived."""
        outs = await self.outs(round_no, shards)
        moves = [move for giver, out in enumerate(outs) for move in View(0, 0, tuple(out.items())).moves(giver)]
        return [move for move in moves if not await self._is_taken(round_no, move)]

    async def _is_taken(self, round_no: int, move: Move) -> bool:
        last = await guard(self._valkey.hget(keys.in_key(move.taker, round_no), str(move.giver)))
        return int(last or 0) >= move.seq

    async def finish(self, round_no: int, move: Move) -> bool:
        """Brings a move to its end, whoever began it; False when the taker does not hold the stock, or the giver
        knows nothing of the move: somebody else finished it, or a failover took it back."""
        if self._replicas:
            out = keys.out_key(move.giver, round_no), str(move.taker)
            held = await read_replicated(self._valkey, keys.tag(move.giver), self._replicas, *out)
            if held != move.text.encode():
                return False
        args = [round_no, move.giver, move.seq, move.stock_no, move.units]
        if not await self._take(keys.tag(move.taker), args):
            return False
        await self._given(keys.tag(move.giver), [round_no, move.taker, move.text])
        return True

    async def finish_all(self, round_no: int, shards: int) -> None:
        """Finishes every move of a round that somebody left on its way."""
        for move in await self.on_the_way(round_no, shards):
            await self.finish(round_no, move)

    async def fence(self, round_no: int, lost: int, shards: Sequence[int]) -> dict[int, int]:
        """Makes sure that no unit which a lost shard gave can still arrive at these: it is dealt again. By shard, the
        number from which the lost one's moves to it go on."""
        pipe = self._valkey.pipeline(transaction=False)
        for shard in shards:
            pipe.hincrby(keys.in_key(shard, round_no), str(lost), FENCE)
        numbers = dict(zip(shards, await guard(pipe.execute()), strict=True))
        if self._replicas:  # what is dealt again must not come in after a failover took the fence away
            for shard in shards:
                await read_replicated(
                    self._valkey, keys.tag(shard), self._replicas, keys.in_key(shard, round_no), str(lost)
                )
        return numbers

    async def _arrived(self, wanted: Wanted, taker: int, views: Sequence[View]) -> bool:
        """Finishes what is on the way; whether some of it was for us."""
        on_the_way = [move for giver, view in enumerate(views) for move in view.moves(giver)]
        done = [move for move in on_the_way if await self.finish(wanted.round_no, move)]
        return any((move.taker, move.stock_no) == (taker, wanted.stock_no) for move in done)

    async def _asked(self, wanted: Wanted, taker: int, views: Sequence[View]) -> bool:
        """Asks the others, the richest first."""
        givers = sorted((shard for shard in range(len(views)) if shard != taker), key=lambda shard: -views[shard].left)
        for giver in givers:
            if views[giver].left <= 0:
                break
            answer = await self._give(keys.tag(giver), [wanted.round_no, wanted.stock_no, taker, wanted.units])
            if answer:
                move = Move(giver, taker, answer.decode())
                if await self.finish(wanted.round_no, move) and move.stock_no == wanted.stock_no:
                    return True
        return False
