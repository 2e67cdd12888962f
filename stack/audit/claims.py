"""Statements that need evidence from outside PostgreSQL: the claim store, and the clients' log."""

from stack.audit.room import Found, Room, Skipped


async def wins_are_vouchers(room: Room) -> Found | Skipped:
    """Wins of the claim store against vouchers, stock by stock."""
    before = room.evidence.stock_wins
    if before is None:
        return Skipped("the claim store was not asked")
    if not before:
        return Skipped("the claim store no longer holds any round")
    after = room.evidence.stock_wins_after or before
    most = [after.get(stock_no, wins) for stock_no, wins in before.items()]
    violations, shown = await room.violations(
        "a1a_wins_and_vouchers", list(before), list(before.values()), most
    )
    return Found(len(before), violations, shown)


async def drained(room: Room) -> Found | Skipped:
    """The drain's position against the ends of the shards' logs."""
    ends = room.evidence.log_ends
    if ends is None:
        return Skipped("the claim store was not asked")
    violations, shown = await room.violations("a1c_drained", list(ends), list(ends.values()))
    return Found(len(ends), violations, shown)


async def demand_served(room: Room) -> Found | Skipped:
    """Demand against vouchers, stock by stock."""
    demand = room.evidence.demand
    if demand is None:
        return Skipped("no log of the clients was given")
    violations, shown = await room.violations(
        "a1g_demand_served", list(demand), list(demand.values())
    )
    return Found(len(demand), violations, shown)
