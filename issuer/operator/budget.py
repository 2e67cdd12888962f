"""A stock's quantity up or down. The current value comes along, so that nobody edits what somebody else has changed.

Up: the books first, then the shards get their part. Down: units come back from the shards first, because they may be
sold at this very moment; only what came back leaves the books. Every step is written down before it is taken, and a
shard applies a number once, so whoever comes next ends what a crash left: an operator's next call, or the publisher.
"""

import contextlib
from datetime import datetime

import msgspec

from issuer.operator.office import Office, no_such, published_alone, refused
from issuer.operator.shards import apply_adjustments, held_by_shards, plan_of
from issuer.operator.store import Outcome, PendingEdit, StockRow
from issuer.stock import StockStore
from kernel.errors import Code, Refusal, StoreDown, Unavailable
from kernel.postgres import Connection

PASSES_MAX = 5
"""How often shards are asked for what is still missing, while claims go on."""


class Edited(msgspec.Struct, frozen=True, kw_only=True):
    """An edit that is done. `replayed`: it was done before."""

    stock_id: str
    quantity: int
    replayed: bool


async def edit_budget(office: Office, stock_id: str, current: int, target: int, why: str) -> Edited | Refusal:
    """Changes a stock's quantity from `current` to `target` vouchers.

    STALE_VALUE when the quantity is another; RULE_LIMIT with BELOW_ISSUED (too many are out), OVER_ROUND_BUDGET,
    BUDGET_SHORT; STATE_CONFLICT when it is over. Raises StoreDown, and Unavailable while a shard is being rebuilt; sent
    again, the same edit answers the same."""
    stock = await find(office, stock_id)
    if isinstance(stock, Refusal):
        return stock
    async with published_alone(office.conn, stock.round_no):
        await resume(office, stock.round_no)
        is_held = await _is_held(office, stock)
        begun = await office.book.edit(stock.stock_no, current, target, is_held, office.by, why, office.now)
        return await _carry_out(office, stock, begun)


async def find(office: Office, stock_id: str) -> StockRow | Refusal:
    """The stock of that name."""
    rows = await office.book.stocks(office.now, stock_id=stock_id)
    return rows[0] if rows else no_such(f"stock {stock_id}")


async def resume(office: Office, round_no: int) -> None:
    """Ends what a crash left of earlier edits, and of moves between shards. The caller holds the lock of the round."""
    with contextlib.suppress(StoreDown):  # a shard that is away, or was lost: its moves wait, and nothing else does
        await office.store.moves.finish_all(round_no, office.shards)
    await apply_adjustments(office.conn, office.store, office.shards, round_no)
    for edit in await office.book.pending_edits(round_no):
        await take_back(office, edit)
        await apply_adjustments(office.conn, office.store, office.shards, round_no)


async def keep_up(conn: Connection, store: StockStore, shards: int, round_no: int, now: datetime) -> None:
    """For the publisher: ends what a crash left of edits, and brings every shard that holds a round up to the books.
    To be done once a second, and always before a shard that lost a round is dealt its part again: until then units may
    be neither in the books nor on a shard. The connection is in no transaction and holds the lock of the round."""
    await resume(Office(conn=conn, store=store, shards=shards, by="", now=now), round_no)


async def _carry_out(office: Office, stock: StockRow, begun: Outcome) -> Edited | Refusal:
    match begun.name:
        case "REPLAYED":
            return Edited(stock_id=stock.stock_id, quantity=begun.value, replayed=True)
        case "DONE":
            ended = begun
        case "PENDING" if begun.number is not None:
            (edit,) = await office.book.pending_edits(stock.round_no)
            ended = await take_back(office, edit)
        case _:
            return refused(begun)
    await apply_adjustments(office.conn, office.store, office.shards, stock.round_no)
    if ended.name == "REFUSED":
        return await _sold_meanwhile(office, stock, ended.value)
    return Edited(stock_id=stock.stock_id, quantity=ended.value, replayed=False)


async def _is_held(office: Office, stock: StockRow) -> bool:
    """Whether shards hold the stock. Some of them only: one lost its data, and will be back in a moment."""
    held = [stock.stock_no in one for one in await held_by_shards(office.store, office.shards, [stock.stock_no])]
    if any(held) and not all(held) and office.now < stock.closes_at:
        raise Unavailable("a shard of the claim store is being brought back")
    return any(held)


async def take_back(office: Office, edit: PendingEdit) -> Outcome:
    """Takes the units of a pending edit back from the shards, and ends it: DONE, or REFUSED when too many were sold
    meanwhile. The caller holds the lock of the round and brings the shards up to the books afterwards."""
    for _ in range(PASSES_MAX):
        missing = edit.units - await _collect(office, edit)
        held = await held_by_shards(office.store, office.shards, [edit.stock_no])
        left = {shard: one[edit.stock_no].left for shard, one in enumerate(held) if edit.stock_no in one}
        plan = plan_of(left, missing)
        if not missing or not plan:
            break
        await office.book.ask_back(edit.edit_no, plan)
    await _collect(office, edit)
    return await office.book.finish_edit(edit.edit_no, office.now)


async def _collect(office: Office, edit: PendingEdit) -> int:
    """Asks every shard for what was written down and it has not given; how many units are back in all."""
    given = 0
    for asked in await office.book.asked_back(edit.edit_no):
        held = (await office.store.stocks(asked.shard, [edit.stock_no])).get(edit.stock_no)
        applied = asked.applied
        if held is None:  # the shard lost all it had; what it gives again, it is published with
            applied = 0
        elif applied is None or held.adjusted < asked.adjust_no:
            applied = await office.store.adjust(asked.shard, edit.stock_no, asked.adjust_no, asked.delta) or 0
        if applied != asked.applied:
            await office.book.note_given(edit.edit_no, asked.adjust_no, applied)
        given -= applied
    return given


async def _sold_meanwhile(office: Office, stock: StockRow, quantity: int) -> Refusal:
    held = await held_by_shards(office.store, office.shards, [stock.stock_no])
    issued = quantity - sum(one[stock.stock_no].left for one in held if stock.stock_no in one)
    detail = f"{issued} of {quantity} vouchers are out already; nothing was changed"
    return Refusal(code=Code.RULE_LIMIT, rule="BELOW_ISSUED", detail=detail)
