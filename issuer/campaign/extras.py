"""What a campaign file may say beyond stocks and rounds: groups, packs and plans of release. All of it is optional."""

from collections.abc import Iterable
from typing import TypeAlias

import msgspec

from issuer.campaign import kinds
from issuer.campaign.kinds import ident, whole
from issuer.campaign.model import Group, Stage
from issuer.campaign.table import Table, Written

GROUPS_MAX = 32
PACKS_MAX = 256
ITEMS_MAX = 20
STAGES_MAX = 20
LIMIT_MAX = 99
STAGE_S_MAX = 30 * 86_400

SHORT_ID = ident("[a-z0-9-]{2,32}", "2 to 32 small letters, digits and hyphens", "big-ticket")

_PACK = ("id", "partner", "items", "group", "granted")


class PackLine(msgspec.Struct, frozen=True, kw_only=True):
    """A pack as written: it is there in every round that does not leave packs out. Items: category and quantity."""

    pack_id: str
    partner_id: str
    items: "tuple[Written[ItemLine], ...]"
    group_id: str | None
    is_granted: bool


class ItemLine(msgspec.Struct, frozen=True, kw_only=True):
    """So many vouchers of the partner's stock in a category."""

    category_id: str
    quantity: int


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How stocks are released, and where it is written, campaign or round. No stages: it could not be read."""

    table: Table
    stages: tuple[Written[Stage], ...]

    @property
    def values(self) -> tuple[Stage, ...]:
        return tuple(stage.value for stage in self.stages)


Groups: TypeAlias = tuple[Written[Group], ...]
Packs: TypeAlias = tuple[Written[PackLine], ...]


def groups(top: Table) -> Iterable[Written[Group]]:
    """The groups that can be read."""
    if not top.has("groups"):
        return
    for row in top.rows("groups", what="group", known=("id", "per_person"), most=GROUPS_MAX):
        group_id = row.read("id", SHORT_ID)
        per_person = row.read("per_person", whole(1, LIMIT_MAX))
        if group_id is not None and per_person is not None:
            yield Written(Group(group_id=group_id, per_person=per_person), row)


def packs(top: Table) -> Iterable[Written[PackLine]]:
    """The packs that can be read whole."""
    if not top.has("packs"):
        return
    for row in top.rows("packs", what="pack", known=_PACK, most=PACKS_MAX):
        if (line := _pack(row)) is not None:
            yield Written(line, row)


def _pack(row: Table) -> PackLine | None:
    pack_id = row.read("id", SHORT_ID)
    partner_id = row.read("partner", kinds.PARTNER_ID)
    items = _items(row)
    group_id, is_granted = membership(row)
    if pack_id is None or partner_id is None or not items:
        return None
    return PackLine(pack_id=pack_id, partner_id=partner_id, items=items, group_id=group_id, is_granted=is_granted)


def _items(row: Table) -> tuple[Written[ItemLine], ...]:
    rows = row.rows("items", what="item", known=("category", "quantity"), most=ITEMS_MAX)
    items = []
    for each in rows:
        category_id = each.read("category", kinds.CATEGORY_ID)
        quantity = each.read("quantity", whole(1, ITEMS_MAX))
        if category_id is not None and quantity is not None:
            items.append(Written(ItemLine(category_id=category_id, quantity=quantity), each))
    return tuple(items) if len(items) == len(rows) else ()


def membership(row: Table) -> tuple[str | None, bool]:
    """The group of a stock or pack, and whether it is only granted."""
    group_id = row.read("group", SHORT_ID, required=False)
    return group_id, row.read("granted", kinds.FLAG, required=False) or False


def plan(table: Table) -> Plan | None:
    """The plan of release in the campaign or a round; None where none is written."""
    if not table.has("release"):
        return None
    rows = table.rows("release", what="stage", known=("after", "percent"), most=STAGES_MAX)
    stages = []
    for row in rows:
        after_s = row.read("after", whole(0, STAGE_S_MAX))
        share_bp = row.read("percent", kinds.PERCENT_BP)
        if after_s is not None and share_bp is not None:
            stages.append(Written(Stage(after_s=after_s, share_bp=share_bp), row))
    return Plan(table=table, stages=tuple(stages) if len(stages) == len(rows) else ())
