"""./hanquan campaign: checks campaign files and shows what they say."""

import os
import sys
from pathlib import Path
from typing import Annotated

import asyncpg
import msgspec
from cyclopts import App, Parameter
from rich.table import Table

from issuer.campaign.catalogue import CampaignCatalogue, read_catalogue
from issuer.campaign.complaints import Complaint
from issuer.campaign.exposure import largest_exposure
from issuer.campaign.kinds import format_percent
from issuer.campaign.load import LoadedCampaign, NotLoaded, load_city
from issuer.campaign.load import load as load_campaign
from issuer.campaign.model import Campaign, Round
from issuer.campaign.money_rules import expected_spending_fen
from issuer.campaign.read import Refused, read_campaign
from issuer.campaign.shipped import shipped_document, shipped_names
from kernel.clock import CITY_ZONE, open_clock
from kernel.money import format_yuan
from stack.console import Data, out, run
from stack.data_folder import DEFAULT, DataFolder
from stack.errors import StackError
from stack.reach import Reach

app = App(
    name="campaign", version_flags=(), help="Check a campaign file, or show what a campaign will hand out and cost."
)

BUCKETS, SHARDS = 2, 1
"""One machine: two buckets, so that two batches can commit at once, and one shard. Only the first load counts."""

SHOWN_MAX = 200
"""Complaints printed; whoever has more mends these first."""

Json = Annotated[bool, Parameter(negative=(), help="Answer in JSON, money in fen.")]


@app.command
def check(file: str, /, *, json: Json = False) -> int:
    """Read a campaign file and say everything that is wrong with it, or what it will cost.

    The exit status is 0 when the file is fine and 1 otherwise.

    Parameters
    ----------
    file
        A YAML file, or the name of a campaign that comes with Hanquan, such as wuhan-2020.
    """
    answer = read_campaign(_document(file))
    if json:
        _print_json(answer)
    elif isinstance(answer, Refused):
        _print_complaints(file, answer.complaints)
    else:
        out.print(_totals(answer))
    return 1 if isinstance(answer, Refused) else 0


@app.command
def show(name: str, /, *, json: Json = False) -> int:
    """Show a campaign that comes with Hanquan, or a file: its totals, rounds and stocks.

    Parameters
    ----------
    name
        A name such as wuhan-2020, or a YAML file.
    """
    answer = read_campaign(_document(name))
    if isinstance(answer, Refused) or json:
        return check(name, json=json)
    for part in (_totals(answer), "", _rounds(answer), "", _stocks(answer.rounds[0])):
        out.print(part)
    return 0


@app.command
def load(file: str, /, *, data: Data = DEFAULT) -> int:
    """Load a checked campaign into the running stack and book its fund; its rounds open by themselves.

    Parameters
    ----------
    file
        A YAML file, or the name of a campaign that comes with Hanquan.
    """
    document = _document(file)
    answer = read_campaign(document)
    if isinstance(answer, Refused):
        _print_complaints(file, answer.complaints)
        return 1
    loaded = run(_load(Reach(DataFolder(data)), answer, document.decode()))
    if loaded is not None:
        out.print(f"loaded {loaded.campaign_id}: {len(loaded.round_nos)} rounds, {len(loaded.stock_nos)} stocks")
        out.print("give each partner a key with: ./hanquan enrol partner PARTNER_ID")
    return 0


@app.command(name="list")
def list_(*, data: Data = DEFAULT) -> None:
    """List what the running stack has to hand out: every round that was loaded, with its vouchers and budget."""
    catalogue = run(_read_loaded(Reach(DataFolder(data))))
    if catalogue is not None:
        out.print(_loaded(catalogue))


async def _read_loaded(reach: Reach) -> CampaignCatalogue:
    conn = await asyncpg.connect(reach.dsn("hanquan_operator"))
    try:
        return await read_catalogue(conn)
    finally:
        await conn.close()


def _loaded(catalogue: CampaignCatalogue) -> Table:
    table = _table("campaign", "round", "opens", "closes", "vouchers", ">", "budget, yuan", ">")
    for each in catalogue.rounds.values():
        opens, closes = (f"{at.astimezone(CITY_ZONE):%F %R}" for at in (each.opens_at, each.closes_at))
        vouchers = sum(stock.quantity for stock in catalogue.stocks_of(each.round_no))
        budget = format_yuan(each.budget_fen)
        table.add_row(each.campaign_id, each.round_id, opens, closes, f"{vouchers:,}", budget)
    return table


async def _load(reach: Reach, campaign: Campaign, document: str) -> LoadedCampaign:
    clock = open_clock(os.environ.get("HANQUAN_CLOCK_FILE"))
    conn = await asyncpg.connect(reach.dsn("hanquan_operator"))
    try:
        await load_city(conn, BUCKETS, SHARDS)
        loaded = await load_campaign(conn, campaign, document, now=clock.now())
    finally:
        await conn.close()
    if isinstance(loaded, NotLoaded):
        raise StackError(loaded.detail)
    return loaded


def _print_json(answer: Campaign | Refused) -> None:
    """One JSON object: the campaign, or the complaints about it."""
    sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")


def _document(name: str) -> bytes:
    if name in shipped_names():
        return shipped_document(name)
    try:
        return Path(name).read_bytes()
    except OSError as error:
        why = error.strerror or "cannot be read"
        shipped = ", ".join(shipped_names())
        raise StackError(
            f"{name}: {why}; give a YAML file, or one of the campaigns that come along: {shipped}"
        ) from None


def _print_complaints(file: str, complaints: tuple[Complaint, ...]) -> None:
    table = Table("line", "where", "what is wrong, and what to write", box=None, pad_edge=False)
    table.columns[0].justify = "right"
    for complaint in complaints[:SHOWN_MAX]:
        table.add_row(str(complaint.line), _plain(complaint.path), _plain(complaint.message))
    count = "1 complaint" if len(complaints) == 1 else f"{len(complaints)} complaints"
    out.print(f"{_plain(file)}: {count}\n", soft_wrap=True)
    out.print(table)
    if len(complaints) > SHOWN_MAX:
        out.print(f"\nand {len(complaints) - SHOWN_MAX} more")


def _plain(text: str) -> str:
    """Brackets of a path are letters here, not rich's markup."""
    return text.replace("[", "\\[")


def _totals(campaign: Campaign) -> Table:
    table = _table("", "yuan", ">", "", title=f"{campaign.title_zh}  {campaign.title_en}")
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
    table = _table("round", "opens", "closes", "good until", "vouchers", ">", "budget, yuan", ">")
    for each in campaign.rounds:
        ends = (f"{moment:%m-%d %R}" for moment in (each.closes_at, each.valid_until))
        table.add_row(
            each.round_id, f"{each.opens_at:%F %R}", *ends, f"{each.quantity:,}", format_yuan(each.budget_fen)
        )
    return table


def _stocks(each: Round) -> Table:
    titles = ("vouchers", ">", "face, yuan", ">", "least bill", ">", "fund pays", ">")
    table = _table("partner", "category", *titles, title=f"stocks of round {each.round_id}")
    for stock in each.stocks:
        amounts = (stock.face_value_fen, stock.transaction_minimum_fen, stock.funded_fen)
        yuan = (format_yuan(amount_fen) for amount_fen in amounts)
        table.add_row(stock.partner_id, stock.category_id, f"{stock.quantity:,}", *yuan)
    return table


def _table(*titles: str, title: str | None = None) -> Table:
    """An empty table; ">" after a column's title sets the column right."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name, following in zip(titles, (*titles[1:], ""), strict=True):
        if name != ">":
            table.add_column(name, justify="right" if following == ">" else "left", no_wrap=True)
    return table
