"""The books of stocks, as operators read and change them. Every rule is checked by the functions of the schema."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

import msgspec

import sql
from kernel.errors import Broken
from kernel.postgres import Connection

_queries = sql.load("stock_life")


class Verb(StrEnum):
    """What can be done to a stock."""

    SUBMIT = "SUBMIT"
    APPROVE = "APPROVE"
    REJECT = "REJECT"
    PAUSE = "PAUSE"
    RESUME = "RESUME"
    END = "END"
    CLOSE = "CLOSE"


class StockRow(msgspec.Struct, frozen=True, kw_only=True):
    """A stock as it stands. Times aware UTC. `issued`: vouchers in the books, behind the claims by the drain's lag."""

    stock_no: int
    stock_id: str
    campaign_id: str
    round_id: str
    round_no: int
    partner_id: str
    category: str
    state: str
    quantity: int
    issued: int
    face_value_fen: int
    funded_fen: int
    opens_at: datetime
    closes_at: datetime
    valid_until: datetime


class Outcome(msgspec.Struct, frozen=True):
    """What a function of the schema said: an outcome by its name, and words for a refusal."""

    name: str
    detail: str = ""
    number: int | None = None
    """The edit or the rollover."""
    value: Any = None
    """The quantity, or the state."""


class AskedBack(msgspec.Struct, frozen=True, kw_only=True):
    """Units that a shard was asked for (negative); `applied` is None until it has answered."""

    adjust_no: int
    shard: int
    delta: int
    applied: int | None


class PendingEdit(msgspec.Struct, frozen=True, kw_only=True):
    """An edit downwards that was begun and not ended; `units` are to come back."""

    edit_no: int
    stock_no: int
    units: int


class StockBook:
    """One connection's view of the books, as hanquan_operator."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn

    async def shards(self) -> int:
        """How many shards the city has; 1 before there is a city."""
        return int(await self._conn.fetchval(_queries["shards"]) or 1)

    async def operator_name(self, operator_no: int) -> str:
        """The name of whoever signs with a key."""
        name = await self._conn.fetchval(_queries["operator_name"], operator_no)
        if name is None:
            raise Broken(f"operator {operator_no} signs and is not enrolled")
        return str(name)

    async def stocks(self, at: datetime, campaign_id: str | None = None, stock_id: str | None = None) -> list[StockRow]:
        """Stocks as they stand, by the opening of their rounds."""
        rows = await self._conn.fetch(_queries["stocks"], at, campaign_id, stock_id)
        return [StockRow(**row) for row in rows]

    async def moves(self, stock_no: int) -> list[Mapping[str, Any]]:
        """Every move of a stock, in order."""
        return [dict(row) for row in await self._conn.fetch(_queries["moves"], stock_no)]

    async def edits(self, stock_no: int) -> list[Mapping[str, Any]]:
        """Every edit of a stock's quantity, in order."""
        return [dict(row) for row in await self._conn.fetch(_queries["edits"], stock_no)]

    async def move(self, stock_no: int, verb: Verb, by: str, why: str, at: datetime) -> Outcome:
        """MOVED, REPLAYED, or why not. `value` is the state now."""
        row = await self._fetch("move", stock_no, verb, by, why, at)
        return Outcome(row["outcome"], row["detail"] or "", None, row["state"])

    async def edit(
        self, stock_no: int, current: int, target: int, is_held: bool, by: str, why: str, at: datetime
    ) -> Outcome:
        """DONE, PENDING, REPLAYED, or why not. `number` is the edit, `value` the true quantity."""
        row = await self._fetch("edit", stock_no, current, target, is_held, by, why, at)
        return Outcome(row["outcome"], row["detail"] or "", row["edit_no"], row["quantity"])

    async def pending_edits(self, round_no: int) -> list[PendingEdit]:
        """Edits of a round's stocks that a crash left behind."""
        return [PendingEdit(**row) for row in await self._conn.fetch(_queries["pending_edits"], round_no)]

    async def asked_back(self, edit_no: int) -> list[AskedBack]:
        """What an edit asked of shards, in order."""
        return [AskedBack(**row) for row in await self._conn.fetch(_queries["asked_back"], edit_no)]

    async def ask_back(self, edit_no: int, units: Mapping[int, int]) -> None:
        """Writes down what is to be taken from shards (units by shard), before any of it is."""
        await self._conn.execute(_queries["ask_back"], edit_no, list(units), list(units.values()))

    async def note_given(self, edit_no: int, adjust_no: int, applied: int) -> None:
        """Writes down what a shard gave (negative)."""
        await self._conn.execute(_queries["note_given"], edit_no, adjust_no, applied)

    async def finish_edit(self, edit_no: int, at: datetime) -> Outcome:
        """DONE, or REFUSED and the units go back. `value` is the quantity."""
        row = await self._fetch("finish_edit", edit_no, at)
        return Outcome(row["outcome"], value=row["quantity"])

    async def round_no(self, campaign_id: str, round_id: str) -> int | None:
        """The number of a round."""
        number: int | None = await self._conn.fetchval(_queries["round_no"], campaign_id, round_id)
        return number

    async def has_campaign(self, campaign_id: str) -> bool:
        """Whether there is a campaign of this name."""
        return bool(await self._conn.fetchval(_queries["has_campaign"], campaign_id))

    async def not_drained(self, log_ends: Mapping[int, str]) -> list[int]:
        """Shards whose log is not in the books up to these entries."""
        rows = await self._conn.fetch(_queries["not_drained"], list(log_ends), list(log_ends.values()))
        return [row["shard"] for row in rows]

    async def roll_over(
        self, from_no: int, to_no: int, left: Sequence[tuple[int, int, int]], by: str, why: str, at: datetime
    ) -> Outcome:
        """ROLLED, REPLAYED, or why not. `left`: stock, shard, units left there. `number` is the rollover."""
        columns = [list(column) for column in zip(*left, strict=True)] or [[], [], []]
        row = await self._fetch("roll_over", from_no, to_no, *columns, by, why, at)
        return Outcome(row["outcome"], row["detail"] or "", row["rollover_no"])

    async def rollover(self, rollover_no: int) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
        """A rollover, and what became of each stock."""
        row = await self._fetch("rollover", rollover_no)
        return dict(row), [dict(each) for each in await self._conn.fetch(_queries["rolled_stocks"], rollover_no)]

    async def _fetch(self, name: str, *arguments: object) -> Any:
        row = await self._conn.fetchrow(_queries[name], *arguments)
        if row is None:
            raise Broken(f"{name} answered nothing")
        return row
