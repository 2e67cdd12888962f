"""Rules about limits, groups and plans of release."""

from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise

from issuer.campaign.complaints import Code, Complaint
from issuer.campaign.extras import Plan
from issuer.campaign.kinds import format_percent
from issuer.campaign.model import Round
from issuer.campaign.parse import Parsed
from issuer.campaign.table import Table
from kernel.money import BP_WHOLE, format_yuan

# ---------------------------------------------------------------- groups


def groups_are_declared(parsed: Parsed) -> Iterator[Complaint]:
    """The group of a stock or pack is in the list of groups."""
    known = [each.value.group_id for each in parsed.groups]
    there = f"this file has {', '.join(known)}" if known else "write groups: [{id: ..., per_person: 1}] first"
    for group_id, table in _members(parsed):
        if group_id not in known:
            words = f"there is no group {group_id}; {there}"
            yield Complaint.at(table.spot_of("group"), Code.UNKNOWN_GROUP, words)


def groups_are_used(parsed: Parsed) -> Iterator[Complaint]:
    """A group limits something. (Where a group is misspelt, that is the complaint.)"""
    used = {group_id for group_id, _ in _members(parsed)}
    known = {each.value.group_id for each in parsed.groups}
    for each in parsed.groups:
        group_id = each.value.group_id
        if group_id not in used and used <= known:
            words = (
                f"no stock and no pack is in group {group_id}; write group: {group_id} on their lines, or leave it out"
            )
            yield Complaint.at(each.table.spot_of("id"), Code.UNUSED_GROUP, words)


def _members(parsed: Parsed) -> Iterator[tuple[str, Table]]:
    """Group and place of every line of a stock or pack that names a group."""
    stocks = ((line.value.group_id, line.table) for lines in parsed.stock_lists for line in lines)
    packs = ((pack.value.group_id, pack.table) for pack in parsed.packs)
    for group_id, table in (*stocks, *packs):
        if group_id is not None:
            yield group_id, table


# ---------------------------------------------------------------- limits


def limits_leave_room(parsed: Parsed) -> Iterator[Complaint]:
    """The limit over all partners is not below what one partner may give."""
    at_one, at_all = parsed.campaign.per_person_round_and_partner, parsed.campaign.per_person_and_round
    if parsed.limits is not None and at_all is not None and at_all < at_one:
        words = f"a person may claim {at_one} at one partner and {at_all} at all of them together, so the first is"
        words += f" never reached; write {at_one} or more, or lower per_person_round_and_partner"
        yield Complaint.at(parsed.limits.spot_of("per_person_and_round"), Code.LIMIT_TOO_LOW, words)


def faces_are_within_the_cap(parsed: Parsed) -> Iterator[Complaint]:
    """No voucher alone is worth more than a person may have."""
    cap_fen = parsed.campaign.face_per_person_fen
    for lines in parsed.stock_lists if cap_fen is not None else ():
        for line in lines:
            if cap_fen is not None and line.value.face_value_fen > cap_fen:
                words = (
                    f"nobody could claim a face of {format_yuan(line.value.face_value_fen)}, because face_per_person"
                )
                words += f" allows {format_yuan(cap_fen)} in the whole campaign; lower the face or raise the limit"
                yield Complaint.at(line.table.spot_of("face"), Code.LIMIT_TOO_LOW, words)


# ---------------------------------------------------------------- release


def stages_rise(parsed: Parsed) -> Iterator[Complaint]:
    """Each stage comes later than the one before, and more is released in it."""
    for plan in parsed.plans:
        if plan.values and plan.values[0].share_bp == 0:
            words = "the first stage releases nothing; write a percent above 0"
            yield Complaint.at(plan.stages[0].table.spot_of("percent"), Code.STAGES_NOT_RISING, words)
        for before, each in pairwise(plan.stages):
            if each.value.after_s <= before.value.after_s:
                words = f"this stage comes {each.value.after_s} s after the opening, not later than the one before"
                words += f" ({before.value.after_s} s); write the stages in order of time"
                yield Complaint.at(each.table.spot_of("after"), Code.STAGES_NOT_RISING, words)
            if each.value.share_bp <= before.value.share_bp:
                words = f"this stage has {format_percent(each.value.share_bp)} % released, not more than the one before"
                words += f" ({format_percent(before.value.share_bp)} %); what is released stays so, write more"
                yield Complaint.at(each.table.spot_of("percent"), Code.STAGES_NOT_RISING, words)


def stages_end_with_all(parsed: Parsed) -> Iterator[Complaint]:
    """In the end everything can be claimed."""
    for plan in parsed.plans:
        if plan.values and plan.values[-1].share_bp != BP_WHOLE:
            words = f"the last stage releases {format_percent(plan.values[-1].share_bp)} %, and the rest could never be"
            words += " claimed; add a stage with percent: 100"
            yield Complaint.at(plan.stages[-1].table.spot_of("percent"), Code.STAGES_NOT_WHOLE, words)


def stages_come_while_the_round_is_open(parsed: Parsed) -> Iterator[Complaint]:
    """Every stage comes before the round closes. A campaign's plan is held against its shortest round."""
    for plan in parsed.plans:
        shortest = min(_follow(parsed, plan), key=_length, default=None)
        for stage in plan.stages if shortest else ():
            if shortest is not None and timedelta(seconds=stage.value.after_s) >= _length(shortest) > timedelta():
                words = (
                    f"round {shortest.round_id} closes {_length(shortest) // timedelta(seconds=1)} s after it opens,"
                )
                words += f" and this stage comes after {stage.value.after_s} s; write less, or close the round later"
                yield Complaint.at(stage.table.spot_of("after"), Code.STAGE_TOO_LATE, words)


def _length(each: Round) -> timedelta:
    return each.closes_at - each.opens_at


def _follow(parsed: Parsed, plan: Plan) -> list[Round]:
    """The rounds that follow a plan: the round that wrote it, or those that wrote none."""
    if plan.table is parsed.top:
        return [each.value for each in parsed.rounds if not each.table.has("release")]
    return [each.value for each in parsed.rounds if each.table is plan.table]


RULES = (
    groups_are_declared,
    groups_are_used,
    limits_leave_room,
    faces_are_within_the_cap,
    stages_rise,
    stages_end_with_all,
    stages_come_while_the_round_is_open,
)
