"""Rules about money: budgets cover their stocks, and the fund covers the budgets."""

from collections.abc import Iterator

from issuer.campaign.complaints import Code, Complaint
from issuer.campaign.exposure import Exposure, exposures, largest_exposure
from issuer.campaign.kinds import format_percent
from issuer.campaign.model import Campaign, Round
from issuer.campaign.parse import Parsed
from issuer.campaign.table import Written
from kernel.money import BP_WHOLE, format_yuan


def budgets_cover_stocks(parsed: Parsed) -> Iterator[Complaint]:
    """A round's budget pays for every voucher of it."""
    for each in _short(parsed):
        words = f"the budget of round {each.value.round_id} is {_yuan(each.value.budget_fen)}, and its"
        words += f" {each.value.quantity:,} vouchers can cost {_yuan(each.value.exposure_fen)};"
        words += " raise the budget or hand out less"
        yield Complaint.at(each.table.spot_of("budget"), Code.BUDGET_TOO_SMALL, words)


def fund_covers_each_budget(parsed: Parsed) -> Iterator[Complaint]:
    """No round alone has more than the fund."""
    for each in _beyond_fund(parsed):
        words = f"the budget of round {each.value.round_id}, {_yuan(each.value.budget_fen)}, is more than the fund,"
        words += f" {_yuan(parsed.campaign.fund_fen)}; lower it or raise the fund"
        yield Complaint.at(each.table.spot_of("budget"), Code.BUDGET_OVER_FUND, words)


def fund_covers_all_budgets(parsed: Parsed) -> Iterator[Complaint]:
    """Without rollover every fen is given out once."""
    campaign = parsed.campaign
    if not campaign.rollover and campaign.budgets_fen > campaign.fund_fen and not _beyond_fund(parsed):
        words = f"the budgets of all rounds add up to {_yuan(campaign.budgets_fen)}, and the fund is"
        words += f" {_yuan(campaign.fund_fen)}; lower budgets, raise the fund, or write rollover: yes"
        yield Complaint.at(parsed.top.spot_of("fund"), Code.BUDGETS_OVER_FUND, words)


def fund_covers_what_is_live(parsed: Parsed) -> Iterator[Complaint]:
    """With rollover, money is counted on again only once the vouchers it paid for are past their end."""
    campaign = parsed.campaign
    largest = largest_exposure(campaign.rounds)
    if not campaign.rollover or largest is None or _beyond_fund(parsed) or largest.budget_fen <= campaign.fund_fen:
        return
    words = f"from {largest.at:%F %R} vouchers of {_names(largest.rounds)} are live at one time, with"
    words += f" {_yuan(largest.budget_fen)} of budget against a fund of {_yuan(campaign.fund_fen)};"
    words += " let validity end before the next round, lower budgets, or raise the fund"
    yield Complaint.at(_opening(parsed, largest).table.spot_of("budget"), Code.EXPOSURE_OVER_FUND, words)


def fund_covers_the_plan(parsed: Parsed) -> Iterator[Complaint]:
    """With rollover and a plan: what is left when the expected share of earlier vouchers was used pays what is live."""
    campaign = parsed.campaign
    if not campaign.rollover or campaign.expected_redemption_bp is None or _beyond_fund(parsed) or _short(parsed):
        return
    for exposure in exposures(campaign.rounds):
        over = [each for each in campaign.rounds if each.valid_until < exposure.at]
        spent_fen = expected_spending_fen(campaign, over)
        if spent_fen and spent_fen + exposure.budget_fen > campaign.fund_fen:
            opening = _opening(parsed, exposure)
            words = f"when round {opening.value.round_id} opens, {_yuan(spent_fen)} will be spent if"
            words += f" {format_percent(campaign.expected_redemption_bp)} % of earlier vouchers are used; that leaves"
            words += f" {_yuan(max(0, campaign.fund_fen - spent_fen))} for {_names(exposure.rounds)}, which"
            words += f" can cost {_yuan(exposure.budget_fen)}; lower this budget or raise the fund"
            yield Complaint.at(opening.table.spot_of("budget"), Code.PLAN_OVER_FUND, words)


def expected_spending_fen(campaign: Campaign, rounds: list[Round]) -> int:
    """What the fund pays for these rounds if the expected share of vouchers is used; rounded up."""
    share_bp = BP_WHOLE if campaign.expected_redemption_bp is None else campaign.expected_redemption_bp
    return -(-sum(each.exposure_fen for each in rounds) * share_bp // BP_WHOLE)


def _short(parsed: Parsed) -> list[Written[Round]]:
    return [each for each in parsed.rounds if each.value.budget_fen < each.value.exposure_fen]


def _beyond_fund(parsed: Parsed) -> list[Written[Round]]:
    return [each for each in parsed.rounds if each.value.budget_fen > parsed.campaign.fund_fen]


def _opening(parsed: Parsed, exposure: Exposure) -> Written[Round]:
    return next(each for each in parsed.rounds if each.value is exposure.rounds[-1])


def _names(rounds: tuple[Round, ...]) -> str:
    return ("round " if len(rounds) == 1 else "rounds ") + ", ".join(each.round_id for each in rounds)


def _yuan(amount_fen: int) -> str:
    return f"{format_yuan(amount_fen)} yuan"


RULES = (
    budgets_cover_stocks,
    fund_covers_each_budget,
    fund_covers_all_budgets,
    fund_covers_what_is_live,
    fund_covers_the_plan,
)
