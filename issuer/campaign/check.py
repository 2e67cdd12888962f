"""The rules a campaign keeps, each with the line that breaks it and what to write instead."""

from collections.abc import Callable, Iterator, Sequence

from issuer.campaign import limit_rules, money_rules, pack_rules, till_rules
from issuer.campaign.complaints import Code, Complaint
from issuer.campaign.model import Round
from issuer.campaign.parse import Lines, Parsed, StockLine
from issuer.campaign.table import Table, Written
from kernel.money import format_yuan

STOCK_ID_MAX = 40
"""Letters in the name of a stock: what partners' systems store (schema.sql, table stock)."""

FACE_FEN_MAX = 100_000_000
"""One million yuan, as the table stock has it."""

Rule = Callable[[Parsed], Iterator[Complaint]]


def check(parsed: Parsed) -> tuple[Complaint, ...]:
    """All that is wrong with a file, by line: what could not be read and which rules are broken."""
    found = [complaint for rule in RULES for complaint in rule(parsed)]
    return tuple(sorted((*parsed.complaints, *found)))


# ---------------------------------------------------------------- names


def ids_are_unique(parsed: Parsed) -> Iterator[Complaint]:
    """No two partners, categories, groups, scopes or rounds share an id."""
    yield from _unique("partner", [(each.value.partner_id, each.table) for each in parsed.partners])
    yield from _unique("category", [(each.value.category_id, each.table) for each in parsed.categories])
    yield from _unique("group", [(each.value.group_id, each.table) for each in parsed.groups])
    yield from _unique("scope", [(each.value.scope_id, each.table) for each in parsed.scopes])
    yield from _unique("round", [(each.value.round_id, each.table) for each in parsed.rounds])


def _unique(what: str, named: Sequence[tuple[str, Table]]) -> Iterator[Complaint]:
    first: dict[str, int] = {}
    for name, table in named:
        spot = table.spot_of("id")
        if name in first:
            words = f"{name} is the id of another {what}, on line {first[name]}; give this one an id of its own"
            yield Complaint.at(spot, Code.DUPLICATE_ID, words)
        first.setdefault(name, spot.line)


def stocks_name_what_exists(parsed: Parsed) -> Iterator[Complaint]:
    """Partners and categories of stocks are declared, and each pair has one stock a list."""
    partners = [each.value.partner_id for each in parsed.partners]
    categories = [each.value.category_id for each in parsed.categories]
    for lines in parsed.stock_lists:
        yield from _one_stock_a_pair(lines)
        for line in lines:
            yield from _declared("partner", line.value.partner_id, partners, line.table)
            yield from _declared("category", line.value.category_id, categories, line.table)


def _declared(what: str, name: str, known: Sequence[str], table: Table) -> Iterator[Complaint]:
    if known and name not in known:
        code = Code.UNKNOWN_PARTNER if what == "partner" else Code.UNKNOWN_CATEGORY
        yield Complaint.at(
            table.spot_of(what), code, f"there is no {what} {name} in this file; it has {', '.join(known)}"
        )


def _one_stock_a_pair(lines: Lines) -> Iterator[Complaint]:
    first: dict[tuple[str, str], int] = {}
    for line in lines:
        pair = line.value.partner_id, line.value.category_id
        if pair in first:
            words = f"{pair[0]} and {pair[1]} have a stock on line {first[pair]} already; add the quantities up in one"
            yield Complaint.at(line.table.spot, Code.DUPLICATE_STOCK, words)
        first.setdefault(pair, line.table.spot.line)


def names_fit(parsed: Parsed) -> Iterator[Complaint]:
    """The name of every stock and pack fits where partners store it."""
    rounds = parsed.campaign.rounds
    stocks = [("stock", stock.stock_id) for each in rounds for stock in each.stocks]
    packs = [("pack", pack.pack_id) for each in rounds for pack in each.packs]
    what, longest = max((*stocks, *packs), key=lambda named: len(named[1]), default=("", ""))
    if len(longest) > STOCK_ID_MAX:
        words = f"a {what} would be called {longest}, {len(longest)} letters, and at most {STOCK_ID_MAX} are possible"
        words += f"; shorten the id of the campaign, round, partner or {'category' if what == 'stock' else 'pack'}"
        yield Complaint.at(parsed.top.spot_of("id"), Code.NAME_TOO_LONG, words)


# ---------------------------------------------------------------- offers


def faces_fit(parsed: Parsed) -> Iterator[Complaint]:
    """Faces are within bounds and the fund pays some of each."""
    for line in _all_lines(parsed):
        face_value_fen = line.value.face_value_fen
        if face_value_fen > FACE_FEN_MAX:
            words = f"a face of {format_yuan(face_value_fen)} is above {format_yuan(FACE_FEN_MAX)} yuan"
            yield Complaint.at(line.table.spot_of("face"), Code.FACE_OUT_OF_RANGE, f"{words}; write a smaller face")
        elif parsed.campaign.funding.funded_fen(face_value_fen) == 0:
            words = "merchants would bear the whole face, and nothing would be left to pay them; raise another share"
            yield Complaint.at(line.table.spot_of("face"), Code.NOTHING_FUNDED, words)


def minimums_fit(parsed: Parsed) -> Iterator[Complaint]:
    """A stock's own minimum is not below what the offer promises."""
    times = parsed.campaign.offer.minimum_spend_times
    for line in _all_lines(parsed):
        least_fen = line.value.face_value_fen * times
        if line.value.minimum_fen is not None and line.value.minimum_fen < least_fen:
            words = f"the minimum {format_yuan(line.value.minimum_fen)} is below {times} times the face;"
            words += f" write at least {format_yuan(least_fen)}, or leave it out"
            yield Complaint.at(line.table.spot_of("minimum"), Code.MINIMUM_TOO_LOW, words)


def _all_lines(parsed: Parsed) -> Iterator[Written[StockLine]]:
    for lines in parsed.stock_lists:
        yield from lines


def rounds_have_stocks(parsed: Parsed) -> Iterator[Complaint]:
    """A round hands something out. (Where no line of the template could be read, that is the complaint.)"""
    for each in parsed.rounds:
        if not each.value.stocks and parsed.stock_lists[0]:
            words = f"round {each.value.round_id} takes out every stock of the template; leave one, or the round out"
            yield Complaint.at(each.table.spot_of("stocks"), Code.NO_STOCKS, words)


# ---------------------------------------------------------------- times


def rounds_open_on_the_hour(parsed: Parsed) -> Iterator[Complaint]:
    """Every round opens at the hour that the city announced."""
    hour = parsed.campaign.opening_time
    for each in parsed.rounds:
        opens_at = each.value.opens_at
        if opens_at.time() != hour:
            words = f"round {each.value.round_id} opens at {opens_at:%R} in {parsed.campaign.zone}, and this campaign"
            words += f" at {hour:%R}; write {opens_at:%F} {hour:%R}, or change opening_time"
            yield Complaint.at(each.table.spot_of("opens"), Code.WRONG_HOUR, words)


def rounds_close_after_opening(parsed: Parsed) -> Iterator[Complaint]:
    """Opening is before closing."""
    for each in parsed.rounds:
        if each.value.closes_at <= each.value.opens_at:
            words = f"round {each.value.round_id} closes {each.value.closes_at:%F %R}, not after it opens"
            words += f" {each.value.opens_at:%F %R}; write a later time"
            yield Complaint.at(each.table.spot_of("closes"), Code.CLOSES_TOO_EARLY, words)


def vouchers_outlive_their_round(parsed: Parsed) -> Iterator[Complaint]:
    """Nobody claims a voucher that is no longer good."""
    for each in parsed.rounds:
        if each.value.valid_until < each.value.closes_at and each.value.opens_at < each.value.closes_at:
            words = f"vouchers of round {each.value.round_id} are good until {each.value.valid_until:%F %R} and could"
            words += f" be claimed until {each.value.closes_at:%F %R}; close earlier, or let them be good longer"
            yield Complaint.at(each.table.spot_of(_end_key(each)), Code.VALIDITY_TOO_SHORT, words)


def _end_key(each: Written[Round]) -> str:
    return "valid_until" if each.table.has("valid_until") else "closes"


def rounds_take_turns(parsed: Parsed) -> Iterator[Complaint]:
    """One round at a time is open for claims."""
    before: Written[Round] | None = None
    for each in sorted(parsed.rounds, key=lambda written: written.value.opens_at):
        if before is not None and each.value.opens_at < before.value.closes_at:
            words = f"round {each.value.round_id} opens {each.value.opens_at:%F %R} while round {before.value.round_id}"
            words += f" (line {before.table.spot.line}) is open until {before.value.closes_at:%F %R};"
            words += " open this one later or close that one earlier"
            yield Complaint.at(each.table.spot_of("opens"), Code.ROUNDS_OVERLAP, words)
        if before is None or each.value.closes_at > before.value.closes_at:
            before = each


RULES: tuple[Rule, ...] = (
    ids_are_unique,
    stocks_name_what_exists,
    names_fit,
    faces_fit,
    minimums_fit,
    rounds_have_stocks,
    rounds_open_on_the_hour,
    rounds_close_after_opening,
    vouchers_outlive_their_round,
    rounds_take_turns,
    *limit_rules.RULES,
    *pack_rules.RULES,
    *money_rules.RULES,
    *till_rules.RULES,
)
