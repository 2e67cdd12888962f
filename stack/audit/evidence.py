"""Statements that need more than PostgreSQL's rows: the claim store, the clients' log, a list of tables."""

from stack.audit.room import Found, Remark, Room, Skipped

_NOT_ASKED = Skipped(Remark("the claim store was not asked", "未查询领券存储"))
_NO_ROUND = Skipped(Remark("the claim store holds no round", "领券存储中没有任何轮次"))
_NO_LOG = Skipped(Remark("no count of the clients' demand was given", "未提供客户端的需求统计"))


async def wins_are_vouchers(room: Room) -> Found | Skipped:
    """Wins of the claim store against vouchers, stock by stock."""
    before = room.evidence.stock_wins
    if before is None:
        return _NOT_ASKED
    if not before:
        return _NO_ROUND
    after = room.evidence.stock_wins_after or before
    most = [after.get(stock_no, wins) for stock_no, wins in before.items()]
    found = await room.violations("a1a_wins_and_vouchers", list(before), list(before.values()), most)
    return Found(len(before), *found, await _left_out(room, len(before)))


async def _left_out(room: Room, compared: int) -> Remark | None:
    others = await room.count("examined_stocks") - compared
    if others <= 0:
        return None
    return Remark(
        f"without {others} stocks whose rounds the claim store does not hold",
        f"未含领券存储中没有其轮次的 {others} 个批次",
    )


async def drained(room: Room) -> Found | Skipped:
    """The drain's position against the ends of the shards' logs."""
    ends = room.evidence.log_ends
    if ends is None:
        return _NOT_ASKED
    return Found(len(ends), *await room.violations("a1c_drained", list(ends), list(ends.values())))


async def demand_served(room: Room) -> Found | Skipped:
    """Demand against vouchers, stock by stock."""
    demand = room.evidence.demand
    if demand is None:
        return _NO_LOG
    found = await room.violations("a1g_demand_served", list(demand), list(demand.values()))
    return Found(len(demand), *found)


async def append_only(room: Room) -> Found:
    """The triggers of every table of money, and of all its partitions."""
    money = await room.names("money_tables")
    examined = await room.count("examined_guards", money)
    return Found(examined, *await room.violations("a7b_append_only", money))


async def privileges(room: Room) -> Found:
    """Who may do what to the tables of money."""
    money, derived = await room.names("money_tables"), await room.names("derived_tables")
    examined = await room.count("examined_guards", money)
    return Found(examined, *await room.violations("a7c_privileges", money, derived))
