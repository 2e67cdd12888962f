"""./hanquan campaign: checks campaign files and shows what they say, loads them, grants vouchers to a list."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import asyncpg
import msgspec
from cyclopts import App, Parameter
from rich.table import Table

from issuer.campaign.catalogue import CampaignCatalogue, read_catalogue
from issuer.campaign.complaints import Complaint
from issuer.campaign.load import LoadedCampaign, NotLoaded
from issuer.campaign.load import load as load_campaign
from issuer.campaign.model import Campaign
from issuer.campaign.read import Refused, read_campaign
from issuer.campaign.shipped import shipped_document, shipped_names
from issuer.grants.people import BadList, read_people
from issuer.operator.life import CampaignMoved, approve_campaign, submit_campaign
from kernel.clock import open_clock
from stack.campaign_tables import details, grant_results, loaded_rounds, summary
from stack.console import Data, err, out, run
from stack.data_folder import DEFAULT, DataFolder
from stack.demo.progress import Progress
from stack.errors import StackError
from stack.granting import run_grant
from stack.new_city import found_city
from stack.operating import granted, office, staff_name
from stack.reach import Reach

app = App(
    name="campaign",
    version_flags=(),
    help="Check a campaign file, show what it costs, load it, grant vouchers to a list.",
)

SHOWN_MAX = 200
"""Complaints printed; whoever has more mends these first."""

By = Annotated[str, Parameter(name="--by", help="Who grants it; it is written down.")]
Loader = Annotated[str, Parameter(name="--by", help="Who does it. Whoever loads a campaign cannot approve it.")]
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
        _print_tables(summary(answer))
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
    _print_tables((*summary(answer), *details(answer)))
    return 0


@app.command
def load(file: str, /, *, by: Loader, data: Data = DEFAULT) -> int:
    """Load a checked campaign into the running stack and book its fund.

    Its rounds open by themselves once somebody else has approved it (campaign approve).

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
    loaded = run(_load(Reach(DataFolder(data)), answer, document.decode(), staff_name(by)))
    if loaded is not None:
        out.print(f"loaded {loaded.campaign_id}: {len(loaded.round_nos)} rounds, {_offers(loaded)}")
        out.print(f"somebody else must approve it: ./hanquan campaign approve {loaded.campaign_id} --by NAME")
        out.print("give each partner a key with: ./hanquan enrol partner PARTNER_ID")
    return 0


@app.command
def approve(campaign_id: str, /, *, by: Loader, data: Data = DEFAULT) -> None:
    """Approve every stock of a campaign that was loaded. Whoever loaded it cannot."""

    async def work() -> CampaignMoved:
        async with office(data, by) as desk:
            return granted(await approve_campaign(desk, campaign_id))

    approved = run(work())
    if approved is not None:
        if not approved.stocks:
            out.print(f"{approved.campaign_id}: every round is over; nothing is left to approve")
            return
        out.print(
            f"{approved.campaign_id}: {approved.stocks} stocks are {approved.state}, {approved.moved} of them now"
        )


@app.command
def grant(offer_id: str, file: str, /, *, by: By, json: Json = False, data: Data = DEFAULT) -> int:
    """Hand a stock or a pack to everybody on a list, once each, while its round is open.

    It can be run again, after a crash or with a longer list: who has it is passed over. The exit
    status is 0 when everybody on the list has it in the end.

    Parameters
    ----------
    offer_id
        The name of the stock or pack, such as city-tour_may_wechat_groceries.
    file
        One person token a line (32 hex digits), at most a million; a first line person_token is passed over.
    """
    people = read_people(_bytes_of(file))
    if isinstance(people, BadList):
        _print_bad_lines(file, people)
        return 1
    progress = Progress(err)
    reach = Reach(DataFolder(data))
    with progress.bar(f"granting {offer_id}", len(people.people)) as advance:
        report = run(run_grant(reach, offer_id, people, by, advance))
    if report is None:
        err.print("stopped; run the same list again to go on, nobody gets it twice")
        return 130
    if json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    else:
        out.print(grant_results(report, people))
    return 0 if report.everybody_has_it else 1


def _print_bad_lines(file: str, bad: BadList) -> None:
    table = Table("line", "what is wrong, and what to write", box=None, pad_edge=False)
    table.columns[0].justify = "right"
    for each in bad.lines:
        table.add_row(str(each.line), _plain(each.message))
    out.print(f"{_plain(file)}: nobody was granted anything; {bad.count:,} bad lines\n", soft_wrap=True)
    out.print(table)


def _offers(loaded: LoadedCampaign) -> str:
    packs = f", {len(loaded.pack_nos)} packs" if loaded.pack_nos else ""
    return f"{len(loaded.stock_nos)} stocks{packs}"


@app.command(name="list")
def list_(*, data: Data = DEFAULT) -> None:
    """List what the running stack has to hand out: every round that was loaded, with its vouchers and budget."""
    catalogue = run(_read_loaded(Reach(DataFolder(data))))
    if catalogue is not None:
        out.print(loaded_rounds(catalogue))


async def _read_loaded(reach: Reach) -> CampaignCatalogue:
    conn = await asyncpg.connect(reach.dsn("hanquan_operator"))
    try:
        return await read_catalogue(conn)
    finally:
        await conn.close()


async def _load(reach: Reach, campaign: Campaign, document: str, by: str) -> LoadedCampaign:
    clock = open_clock(os.environ.get("HANQUAN_CLOCK_FILE"))
    conn = await asyncpg.connect(reach.dsn("hanquan_operator"))
    try:
        await found_city(conn, reach.valkey_url)
        async with conn.transaction():
            loaded = await load_campaign(conn, campaign, document, now=clock.now(), state="DRAFT")
            if isinstance(loaded, LoadedCampaign):
                granted(await submit_campaign(conn, loaded.campaign_id, by, clock.now()))
    finally:
        await conn.close()
    if isinstance(loaded, NotLoaded):
        raise StackError(loaded.detail)
    return loaded


def _print_tables(tables: Iterable[Table]) -> None:
    for n, table in enumerate(tables):
        out.print(*([""] if n else []), table, sep="\n")


def _print_json(answer: Campaign | Refused) -> None:
    """One JSON object: the campaign, or the complaints about it."""
    sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")


def _document(name: str) -> bytes:
    if name in shipped_names():
        return shipped_document(name)
    shipped = ", ".join(shipped_names())
    return _bytes_of(name, f"; give a YAML file, or one of the campaigns that come along: {shipped}")


def _bytes_of(name: str, advice: str = "") -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise StackError(f"{name}: {error.strerror or 'cannot be read'}{advice}") from None


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
