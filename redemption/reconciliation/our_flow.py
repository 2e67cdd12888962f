"""Our side of a flow file, so that a partner can fetch from us what it would send us."""

from datetime import date

import sql
from kernel.postgres import Connection
from redemption.reconciliation.flow_file import FlowRow
from redemption.settlement.refusals import Refused, Why

_queries = sql.load("reconciliation")


async def our_flow(conn: Connection, campaign_no: int, partner_no: int, day: date) -> list[FlowRow]:
    """Redemptions and refunds of a partner's vouchers that `day` pays, in the order in which they happened.

    Of a closed day always the same rows; an open day can still grow.
    """
    return [FlowRow(*row) for row in await conn.fetch(_queries["our_flow"], campaign_no, partner_no, day)]


async def find_partner(conn: Connection, partner_id: str) -> int | Refused:
    """The number of a partner. UNKNOWN_PARTNER if there is none."""
    for row in await conn.fetch(_queries["partners"]):
        if row["partner_id"] == partner_id:
            return int(row["partner_no"])
    return Refused(Why.UNKNOWN_PARTNER, f"there is no partner {partner_id}")
