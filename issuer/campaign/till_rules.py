"""Rules about scopes and about caps on use."""

from collections.abc import Iterator
from itertools import combinations

from issuer.campaign.complaints import Code, Complaint
from issuer.campaign.model import RedeemCap
from issuer.campaign.parse import Parsed
from issuer.campaign.table import Table
from kernel.money import format_yuan


def scopes_are_declared(parsed: Parsed) -> Iterator[Complaint]:
    """The scope of a stock is in the list of scopes."""
    known = [each.value.scope_id for each in parsed.scopes]
    there = f"this file has {', '.join(known)}" if known else "write scopes: [{id: ..., districts: [...]}] first"
    for scope_id, table in _named(parsed):
        if scope_id not in known:
            yield Complaint.at(table.spot_of("scope"), Code.UNKNOWN_SCOPE, f"there is no scope {scope_id}; {there}")


def scopes_are_used(parsed: Parsed) -> Iterator[Complaint]:
    """A scope limits something. (Where a scope is misspelt, that is the complaint.)"""
    used = {scope_id for scope_id, _ in _named(parsed)}
    known = {each.value.scope_id for each in parsed.scopes}
    for each in parsed.scopes:
        scope_id = each.value.scope_id
        if scope_id not in used and used <= known:
            words = f"no stock has the scope {scope_id}; write scope: {scope_id} on its line, or leave it out"
            yield Complaint.at(each.table.spot_of("id"), Code.UNUSED_SCOPE, words)


def _named(parsed: Parsed) -> Iterator[tuple[str, Table]]:
    for lines in parsed.stock_lists:
        for line in lines:
            if line.value.scope_id is not None:
                yield line.value.scope_id, line.table


def caps_are_written_once(parsed: Parsed) -> Iterator[Complaint]:
    """One cap for each period, and for each way of counting."""
    first: dict[tuple[str, bool], int] = {}
    for each in parsed.caps:
        kind = each.value.period, each.value.is_per_partner
        if kind in first:
            words = f"{_name(each.value)} has a cap on line {first[kind]} already; keep one of them"
            yield Complaint.at(each.table.spot, Code.DUPLICATE_CAP, words)
        first.setdefault(kind, each.table.spot.line)


def caps_are_reached(parsed: Parsed) -> Iterator[Complaint]:
    """The wider of two caps is the larger one: else the narrower one is never reached."""
    for one, other in combinations(parsed.caps, 2):
        for narrow, wide in ((one, other), (other, one)):
            if _is_within(narrow.value, wide.value) and wide.value.face_fen_max < narrow.value.face_fen_max:
                words = f"the cap on {_name(wide.value)}, {format_yuan(wide.value.face_fen_max)} yuan, is below that on"
                words += f" {_name(narrow.value)}, {format_yuan(narrow.value.face_fen_max)}, which is never reached;"
                words += " raise the one or lower the other"
                yield Complaint.at(wide.table.spot_of("face"), Code.LIMIT_TOO_LOW, words)


def faces_can_be_used(parsed: Parsed) -> Iterator[Complaint]:
    """No voucher alone is worth more than a person may use."""
    least = min((each.value.face_fen_max for each in parsed.caps), default=None)
    if least is None:
        return
    for lines in parsed.stock_lists:
        for line in lines:
            if line.value.face_value_fen > least:
                words = f"nobody could use a face of {format_yuan(line.value.face_value_fen)}, because redeem_caps"
                words += f" allow {format_yuan(least)}; lower the face or raise the cap"
                yield Complaint.at(line.table.spot_of("face"), Code.LIMIT_TOO_LOW, words)


def _is_within(narrow: RedeemCap, wide: RedeemCap) -> bool:
    """Whatever counts against the narrow cap counts against the wide one, too."""
    periods = (narrow.period, wide.period)
    counted = (narrow.is_per_partner, wide.is_per_partner)
    return narrow != wide and periods != ("CAMPAIGN", "MONTH") and counted != (False, True)


def _name(cap: RedeemCap) -> str:
    whose = "one partner's vouchers" if cap.is_per_partner else "all partners' vouchers"
    return f"{whose} in {'a month' if cap.period == 'MONTH' else 'the campaign'}"


RULES = (
    scopes_are_declared,
    scopes_are_used,
    caps_are_written_once,
    caps_are_reached,
    faces_can_be_used,
)
