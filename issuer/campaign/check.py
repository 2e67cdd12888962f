"""The rules a campaign keeps, each with the line that breaks it and what to write instead."""

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta

from issuer.campaign import money_rules
from issuer.campaign.complaints import Code, Complaint, Spot
from issuer.campaign.kinds import END_OF_DAY
from issuer.campaign.model import Round
from issuer.campaign.parse import Lines, Parsed
from issuer.campaign.table import Table, Written
from kernel.ids import ROUND_NO_MAX
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


def _complaint(code: Code, spot: Spot, message: str) -> Complaint:
    return Complaint(spot.line, spot.path, message, code)


# ---------------------------------------------------------------- names


def ids_are_unique(parsed: Parsed) -> Iterator[Complaint]:
    """No two partners, categories or rounds share an id."""
    yield from _unique("partner", [(each.value.partner_id, each.table) for each in parsed.partners])
    yield from _unique("category", [(each.value.category_id, each.table) for each in parsed.categories])
    yield from _unique("round", [(each.value.round_id, each.table) for each in parsed.rounds])


def _unique(what: str, named: Sequence[tuple[str, Table]]) -> Iterator[Complaint]:
    first: dict[str, int] = {}
    for name, table in named:
        spot = table.spot_of("id")
        if name in first:
            words = f"{name} is the id of another {what}, on line {first[name]}; give this one an id of its own"
            yield _complaint(Code.DUPLICATE_ID, spot, words)
        first.setdefault(name, spot.line)


def stocks_name_what_exists(parsed: Parsed) -> Iterator[Complaint]:
    """Partners and categories of stocks are declared, and each pair has one stock a list."""
    partners = [each.value.partner_id for each in parsed.partners]
    categories = [each.value.category_id for each in parsed.categories]
    for lines in parsed.stock_lists:
        yield from _one_stock_a_pair(lines)
        for line in lines:
            yield from _declared(Code.UNKNOWN_PARTNER, "partner", line.value.partner_id, partners, line.table)
            yield from _declared(Code.UNKNOWN_CATEGORY, "category", line.value.category_id, categories, line.table)


def _declared(code: Code, what: str, name: str, known: Sequence[str], table: Table) -> Iterator[Complaint]:
    if name not in known:
        either = ", ".join(known) or "none that could be read"
        yield _complaint(code, table.spot_of(what), f"there is no {what} {name} in this file; it has {either}")


def _one_stock_a_pair(lines: Lines) -> Iterator[Complaint]:
    first: dict[tuple[str, str], int] = {}
    for line in lines:
        pair = line.value.partner_id, line.value.category_id
        if pair in first:
            words = f"{pair[0]} and {pair[1]} have a stock on line {first[pair]} already; add the quantities up in one"
            yield _complaint(Code.DUPLICATE_STOCK, line.table.spot, words)
        first.setdefault(pair, line.table.spot.line)


def names_fit(parsed: Parsed) -> Iterator[Complaint]:
    """The name of every stock fits where partners store it."""
    names = (stock.stock_id for each in parsed.campaign.rounds for stock in each.stocks)
    longest = max(names, key=len, default="")
    if len(longest) > STOCK_ID_MAX:
        words = f"a stock would be called {longest}, {len(longest)} letters, and at most {STOCK_ID_MAX} are possible"
        yield _complaint(
            Code.NAME_TOO_LONG, parsed.top.spot_of("id"), f"{words}; shorten the id of the campaign or of its parts"
        )


def rounds_have_numbers(parsed: Parsed) -> Iterator[Complaint]:
    """There are numbers for all rounds: a voucher's number has ten bits for its round."""
    if len(parsed.rounds) > ROUND_NO_MAX:
        words = f"there are {len(parsed.rounds)} rounds; at most {ROUND_NO_MAX} can be numbered"
        yield _complaint(Code.TOO_MANY, parsed.top.spot_of("rounds"), words)


# ---------------------------------------------------------------- offers


def faces_fit(parsed: Parsed) -> Iterator[Complaint]:
    """Faces are within bounds and the fund pays some of each."""
    for line in _all_lines(parsed):
        face_value_fen = line.value.face_value_fen
        if face_value_fen > FACE_FEN_MAX:
            words = f"a face of {format_yuan(face_value_fen)} is above {format_yuan(FACE_FEN_MAX)} yuan"
            yield _complaint(Code.FACE_OUT_OF_RANGE, line.table.spot_of("face"), f"{words}; write a smaller face")
        elif parsed.campaign.funding.funded_fen(face_value_fen) == 0:
            words = "merchants would bear the whole face, and nothing would be left to pay them; raise another share"
            yield _complaint(Code.NOTHING_FUNDED, line.table.spot_of("face"), words)


def minimums_fit(parsed: Parsed) -> Iterator[Complaint]:
    """A stock's own minimum is not below what the offer promises."""
    times = parsed.campaign.offer.minimum_spend_times
    for line in _all_lines(parsed):
        least_fen = line.value.face_value_fen * times
        if line.value.minimum_fen is not None and line.value.minimum_fen < least_fen:
            words = f"the minimum {format_yuan(line.value.minimum_fen)} is below {times} times the face"
            words += f" {format_yuan(line.value.face_value_fen)}; write at least {format_yuan(least_fen)} or leave it out"
            yield _complaint(Code.MINIMUM_TOO_LOW, line.table.spot_of("minimum"), words)


def _all_lines(parsed: Parsed) -> Iterator[Written]:
    for lines in parsed.stock_lists:
        yield from lines


def rounds_have_stocks(parsed: Parsed) -> Iterator[Complaint]:
    """A round hands something out. (Where a line of stocks could not be read, that is the complaint.)"""
    for each in parsed.rounds:
        if not each.value.stocks and not parsed.complaints:
            words = f"round {each.value.round_id} takes out every stock of the template; leave one, or the round out"
            yield _complaint(Code.NO_STOCKS, each.table.spot_of("stocks"), words)


# ---------------------------------------------------------------- times


def rounds_open_on_the_hour(parsed: Parsed) -> Iterator[Complaint]:
    """Every round opens at the hour that the city announced."""
    hour = parsed.campaign.opening_time
    for each in parsed.rounds:
        opens_at = each.value.opens_at
        if opens_at.time() != hour:
            words = f"round {each.value.round_id} opens at {opens_at:%R} in {parsed.campaign.zone}, and this campaign"
            words += f" at {hour:%R}; write {opens_at:%F} {hour:%R}, or change opening_time"
            yield _complaint(Code.WRONG_HOUR, each.table.spot_of("opens"), words)


def rounds_close_after_opening(parsed: Parsed) -> Iterator[Complaint]:
    """Opening is before closing."""
    for each in parsed.rounds:
        if each.value.closes_at <= each.value.opens_at:
            words = f"round {each.value.round_id} closes {each.value.closes_at:%F %R}, not after it opens"
            words += f" {each.value.opens_at:%F %R}; write a later time"
            yield _complaint(Code.CLOSES_TOO_EARLY, each.table.spot_of("closes"), words)


def vouchers_outlive_their_round(parsed: Parsed) -> Iterator[Complaint]:
    """Nobody claims a voucher that is no longer good."""
    for each in parsed.rounds:
        if each.value.valid_until < each.value.closes_at and each.value.opens_at < each.value.closes_at:
            words = f"vouchers of round {each.value.round_id} are good until {each.value.valid_until:%F %R} and could"
            words += f" be claimed until {each.value.closes_at:%F %R}; close earlier, or let them be good longer"
            yield _complaint(Code.VALIDITY_TOO_SHORT, each.table.spot_of(_end_key(each)), words)


def _end_key(each: Written[Round]) -> str:
    return "valid_until" if each.table.has("valid_until") else "closes"


def rounds_take_turns(parsed: Parsed) -> Iterator[Complaint]:
    """One round at a time is open for claims."""
    before: Written[Round] | None = None
    for each in sorted(parsed.rounds, key=lambda written: written.value.opens_at):
        if before is not None and each.value.opens_at < before.value.closes_at:
            words = f"round {each.value.round_id} opens {each.value.opens_at:%F %R} while round {before.value.round_id}"
            words += f" (line {before.table.spot.line}) is open until {before.value.closes_at:%F %R}"
            yield _complaint(
                Code.ROUNDS_OVERLAP, each.table.spot_of("opens"), f"{words}; open this one later or close that one earlier"
            )
        if before is None or each.value.closes_at > before.value.closes_at:
            before = each


RULES: tuple[Rule, ...] = (
    ids_are_unique,
    stocks_name_what_exists,
    names_fit,
    rounds_have_numbers,
    faces_fit,
    minimums_fit,
    rounds_have_stocks,
    rounds_open_on_the_hour,
    rounds_close_after_opening,
    vouchers_outlive_their_round,
    rounds_take_turns,
    *money_rules.RULES,
)
