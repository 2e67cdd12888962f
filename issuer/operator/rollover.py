"""What a round left over goes into the next one, by an explicit and recorded step.

Vouchers nobody claimed join the stock of the same partner, category and value. Money of expired vouchers that finance
returned to BUDGET (`settle return`) raises the next round's budget, and a budget edit then makes vouchers of it.
Finance moves the money and an operator moves the plan: neither does both.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from issuer.operator.budget import resume
from issuer.operator.life import NOT_DRAINED, is_drained
from issuer.operator.office import Office, no_such, published_alone, refused
from issuer.operator.shards import apply_adjustments, held_by_shards
from issuer.operator.store import StockRow
from kernel.errors import Refusal


class RolledStock(msgspec.Struct, frozen=True, kw_only=True):
    """Units of one stock; without a `to_stock_id` the next round has no such stock, and they are gone."""

    from_stock_id: str
    to_stock_id: str | None
    units: int


class RolledOver(msgspec.Struct, frozen=True, kw_only=True):
    """A rollover as it stands in the books. `replayed`: there was nothing new to roll over."""

    rollover_no: int
    from_round_id: str
    to_round_id: str
    carried_fen: int
    returned_fen: int
    stocks: list[RolledStock]
    replayed: bool


async def roll_over(
    office: Office, campaign_id: str, from_round_id: str, to_round_id: str, why: str = ""
) -> RolledOver | Refusal:
    """Closes the stocks of a round that is over and carries what is left into another round of its campaign, in one
    transaction. Run again it does nothing, unless finance has returned more money since.

    STATE_CONFLICT when the first is not over or the second is; SYSTEM_BUSY while wins are on their way into the books;
    RULE_LIMIT with BUDGET_SHORT when BUDGET could not pay for all that the second would give out. Raises StoreDown."""
    numbers = [await office.book.round_no(campaign_id, round_id) for round_id in (from_round_id, to_round_id)]
    from_no, to_no = numbers
    if from_no is None or to_no is None:
        return no_such(f"round {from_round_id if from_no is None else to_round_id} in campaign {campaign_id}")
    async with published_alone(office.conn, from_no, to_no):
        for round_no in (from_no, to_no):
            await resume(office, round_no)
        stocks = [row for row in await office.book.stocks(office.now, campaign_id) if row.round_no == from_no]
        left = await _left_over(office, stocks)
        if isinstance(left, Refusal):
            return left
        rolled = await office.book.roll_over(from_no, to_no, left, office.by, why, office.now)
        if rolled.name not in ("ROLLED", "REPLAYED") or rolled.number is None:
            return refused(rolled)
        for round_no in (from_no, to_no):
            await apply_adjustments(office.conn, office.store, office.shards, round_no)
    return _answer(*await office.book.rollover(rolled.number), replayed=rolled.name == "REPLAYED")


async def _left_over(office: Office, stocks: list[StockRow]) -> list[tuple[int, int, int]] | Refusal:
    """What each shard has left of stocks that are over: stock, shard, units. SYSTEM_BUSY while that and the vouchers in
    the books are not the whole quantity. Nothing of stocks that are not over: the books will refuse them."""
    numbers = [row.stock_no for row in stocks]
    if any(row.state not in ("ENDED", "CLOSED") for row in stocks):
        return []
    if not await is_drained(office, dict.fromkeys(numbers, "ENDED")):
        return NOT_DRAINED
    held = await held_by_shards(office.store, office.shards, numbers)
    fresh = {row.stock_no: row for row in await office.book.stocks(office.now, stocks[0].campaign_id)}
    for number in numbers:
        left = [one[number].left for one in held if number in one]
        if len(left) == office.shards and sum(left) != fresh[number].quantity - fresh[number].issued:
            return NOT_DRAINED  # units on their way between shards; or a fault that the audit names
    return [(no, shard, one[no].left) for no in numbers for shard, one in enumerate(held) if no in one and one[no].left]


def _answer(rollover: Mapping[str, Any], stocks: list[Mapping[str, Any]], *, replayed: bool) -> RolledOver:
    names = set(RolledOver.__struct_fields__)
    told = {name: value for name, value in rollover.items() if name in names}
    return RolledOver(**told, stocks=[RolledStock(**each) for each in stocks], replayed=replayed)
