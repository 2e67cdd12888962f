"""A campaign in tables: what it costs, what one person may have, what its rounds hand out."""

from collections.abc import Iterator
from datetime import timedelta

from rich.table import Table

from issuer.campaign.catalogue import CampaignCatalogue
from issuer.campaign.exposure import largest_exposure
from issuer.campaign.kinds import format_percent
from issuer.campaign.model import Campaign, Pack, Round, Stage, Stock
from issuer.campaign.money_rules import expected_spending_fen
from issuer.grants.grant import GrantReport
from issuer.grants.people import People
from kernel.clock import CITY_ZONE
from kernel.money import BP_WHOLE, format_yuan

_AT_ONCE = Stage(after_s=0, share_bp=BP_WHOLE)


def summary(campaign: Campaign) -> Iterator[Table]:
    """What a campaign costs and which rules hold for a person."""
    yield _totals(campaign)
    yield _limits(campaign)
    yield _till(campaign)
    if campaign.scopes:
        yield _scopes(campaign)
    having = [each for each in campaign.rounds if each.packs]
    if having:
        yield _packs(having)
    if any(each.stages for each in campaign.rounds):
        yield _stages(campaign)


def details(campaign: Campaign) -> Iterator[Table]:
    """Its rounds, and what the first of them hands out."""
    yield _rounds(campaign)
    yield _stocks(campaign.rounds[0])


def loaded_rounds(catalogue: CampaignCatalogue) -> Table:
    """Every round that was loaded, with its vouchers and budget."""
    table = empty_table("campaign", "round", "opens", "closes", "vouchers", ">", "budget, yuan", ">")
    for each in catalogue.rounds.values():
        opens, closes = (f"{at.astimezone(CITY_ZONE):%F %R}" for at in (each.opens_at, each.closes_at))
        vouchers = sum(stock.quantity for stock in catalogue.stocks_of(each.round_no))
        budget = format_yuan(each.budget_fen)
        table.add_row(each.campaign_id, each.round_id, opens, closes, f"{vouchers:,}", budget)
    return table


def grant_results(report: GrantReport, people: People) -> Table:
    """How many people of a list got what."""
    table = empty_table("", "people", ">", "", title=f"{report.offer_id}, run {report.run_no}")
    for result, count in sorted(report.results.items(), key=lambda pair: -pair[1]):
        table.add_row(_RESULTS.get(result, result), f"{count:,}", "")
    table.add_row("on the list", f"{report.people:,}", f"{people.twice:,} lines were repeats" if people.twice else "")
    if report.stopped:
        table.caption, table.caption_justify = f"The run stopped: {report.stopped}.", "left"
    return table


_RESULTS = {
    "GRANTED": "granted",
    "HAD_IT": "had it already",
    "USER_ALREADY_CLAIMED": "have what a round allows from the partner",
    "PERSON_LIMIT": "have what a round allows from all partners",
    "GROUP_LIMIT": "have what the group allows",
    "FACE_LIMIT": "would have more money than the campaign allows",
    "SOLD_OUT": "came too late: nothing is left",
    "NOT_RELEASED": "must wait for the next release stage",
    "IDEMPOTENCY_MISMATCH": "their grant's number was used for something else",
    "NOT_TRIED": "were not tried",
}


def _totals(campaign: Campaign) -> Table:
    table = empty_table("", "yuan", ">", "", title=f"{campaign.title_zh}  {campaign.title_en}")
    for name, amount_fen, remark in _lines(campaign):
        table.add_row(name, format_yuan(amount_fen), remark)
    return table


def _lines(campaign: Campaign) -> list[tuple[str, int, str]]:
    rounds = list(campaign.rounds)
    expected_fen = expected_spending_fen(campaign, rounds)
    share = "100" if campaign.expected_redemption_bp is None else format_percent(campaign.expected_redemption_bp)
    lines = [
        ("Fund", campaign.fund_fen, _shares(campaign)),
        ("Budgets of all rounds", campaign.budgets_fen, _days(rounds)),
        ("Face of all vouchers", campaign.total_face_fen, f"{campaign.quantity:,} vouchers"),
        ("Cost if all are used", campaign.exposure_fen, "what the fund would pay"),
        ("Expected subsidy", expected_fen, f"if {share} % are used"),
        ("Left in the fund then", campaign.fund_fen - expected_fen, ""),
        ("Least turnover", campaign.least_spending_fen, "bills at the least, all used"),
    ]
    if (live := largest_exposure(rounds)) is not None:
        first, last = live.rounds[0].round_id, live.rounds[-1].round_id
        names = first if first == last else f"{first} to {last}"
        lines.insert(4, ("Most committed at one time", live.budget_fen, f"from {live.at:%F %R}, {names}"))
    return lines


def _shares(campaign: Campaign) -> str:
    funding = campaign.funding
    parties = (("city", funding.city_bp), ("platform", funding.platform_bp), ("merchant", funding.merchant_bp))
    paid = ", ".join(f"{who} {format_percent(share_bp)} %" for who, share_bp in parties if share_bp)
    return f"{paid}; {'with' if campaign.rollover else 'without'} rollover"


def _days(rounds: list[Round]) -> str:
    first = min(each.opens_at for each in rounds)
    last = max(each.valid_until for each in rounds)
    return f"{len(rounds)} rounds, {first:%F} to {last:%m-%d}"


def _rounds(campaign: Campaign) -> Table:
    table = empty_table("round", "opens", "closes", "good until", "vouchers", ">", "budget, yuan", ">")
    for each in campaign.rounds:
        ends = (f"{moment:%m-%d %R}" for moment in (each.closes_at, each.valid_until))
        table.add_row(
            each.round_id, f"{each.opens_at:%F %R}", *ends, f"{each.quantity:,}", format_yuan(each.budget_fen)
        )
    return table


def _stocks(each: Round) -> Table:
    titles = ("vouchers", ">", "face, yuan", ">", "least bill", ">", "fund pays", ">")
    table = empty_table("partner", "category", *titles, "", title=f"stocks of round {each.round_id}")
    for stock in each.stocks:
        amounts = (stock.face_value_fen, stock.transaction_minimum_fen, stock.funded_fen)
        yuan = (format_yuan(amount_fen) for amount_fen in amounts)
        table.add_row(stock.partner_id, stock.category_id, f"{stock.quantity:,}", *yuan, _remark(stock))
    return table


def _limits(campaign: Campaign) -> Table:
    table = empty_table("what one person may have", "at most", ">", "")
    remark = "a pack is one claim" if any(each.packs for each in campaign.rounds) else ""
    table.add_row("claims in a round at one partner", str(campaign.per_person_round_and_partner), remark)
    if campaign.per_person_and_round is not None:
        table.add_row("claims in a round at all partners", str(campaign.per_person_and_round), "")
    for group in campaign.groups:
        table.add_row(f"claims in a round, {group.group_id}", str(group.per_person), _members(campaign, group.group_id))
    if campaign.face_per_person_fen is not None:
        table.add_row("face in the campaign, yuan", format_yuan(campaign.face_per_person_fen), "")
    for cap in campaign.redeem_caps:
        period = "a month" if cap.period == "MONTH" else "the campaign"
        whose = "of one partner's vouchers" if cap.is_per_partner else ""
        table.add_row(f"face used in {period}, yuan", format_yuan(cap.face_fen_max), whose)
    return table


def _till(campaign: Campaign) -> Table:
    offer, days = campaign.offer, campaign.rounds[0].valid_days
    others = " and ".join(_OTHERS[other] for other in offer.stacks_with) or "nobody's"
    table = empty_table("at the till", "")
    table.add_row("the bill is at least", f"{offer.minimum_spend_times} times the face, or what a stock says itself")
    table.add_row("together with reductions of", others)
    table.add_row("code", "only the one that changes each minute" if offer.till_code == "ROTATING" else "any")
    table.add_row("good for", f"{days} days from the claim on" if days else "as long as its round says")
    table.add_row("a refund", _REFUNDS[offer.refund_policy])
    return table


_OTHERS = {"SHOP": "the shop", "PLATFORM": "a platform"}
_REFUNDS = {
    "RESTORE": "gives the voucher back when it is in full and in time; else its money, in proportion to the cash",
    "RETURN_TO_BUDGET": "takes the voucher, and gives all its money back",
    "PAID_SHARE": "takes the voucher, and gives its money back in proportion to the cash",
}


def _scopes(campaign: Campaign) -> Table:
    table = empty_table("scope", "good in", "")
    for scope in campaign.scopes:
        shops = f"{len(scope.merchant_ids):,} merchants" if scope.merchant_ids else ""
        table.add_row(scope.scope_id, ", ".join(scope.districts), shops)
    return table


def _members(campaign: Campaign, group_id: str) -> str:
    """Its stocks and packs, each named once though every round has it."""
    names: dict[str, None] = {}
    for each in campaign.rounds:
        stocks = [stock for stock in each.stocks if stock.group_id == group_id]
        packs = [pack for pack in each.packs if pack.group_id == group_id]
        names |= dict.fromkeys(f"{stock.partner_id} {stock.category_id}" for stock in stocks)
        names |= dict.fromkeys(f"pack {pack.partner_id} {_short(pack.pack_id)}" for pack in packs)
    return ", ".join(names)


def _packs(rounds: list[Round]) -> Table:
    each, names = rounds[0], ", ".join(each.round_id for each in rounds)
    table = empty_table("partner", "pack", "face, yuan", ">", "what is in it", "", title=f"packs of rounds {names}")
    for pack in each.packs:
        items = ", ".join(f"{item.quantity} {each.stock(item.stock_id).category_id}" for item in pack.items)
        face = format_yuan(each.face_of(pack))
        table.add_row(pack.partner_id, _short(pack.pack_id), face, items, _remark(pack))
    return table


def _remark(offer: Stock | Pack) -> str:
    scope_id = offer.scope_id if isinstance(offer, Stock) else None
    words = [offer.group_id or "", scope_id or "", "granted" if offer.is_granted else ""]
    return ", ".join(word for word in words if word)


def _short(pack_id: str) -> str:
    """The id in the file: the last part of the name."""
    return pack_id.rpartition("_")[2]


def _stages(campaign: Campaign) -> Table:
    table = empty_table("release in rounds", "after the opening", ">", "of each stock", ">")
    plans: dict[tuple[Stage, ...], list[str]] = {}
    for each in campaign.rounds:
        plans.setdefault(each.stages or (_AT_ONCE,), []).append(each.round_id)
    for stages, round_ids in plans.items():
        names = [", ".join(round_ids), *[""] * len(stages)]
        for name, stage in zip(names, stages, strict=False):
            table.add_row(name, str(timedelta(seconds=stage.after_s)), f"{format_percent(stage.share_bp)} %")
    return table


def empty_table(*titles: str, title: str | None = None) -> Table:
    """An empty table; ">" after a column's title sets the column right."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name, following in zip(titles, (*titles[1:], ""), strict=True):
        if name != ">":
            table.add_column(name, justify="right" if following == ">" else "left", no_wrap=name != "")
    return table
