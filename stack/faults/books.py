"""What the books say of a crowd's claims: is every win that was told there, once, with the code that was told?"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import sql
from issuer.record import request_key
from kernel.codes import CodeBook
from kernel.postgres import Connection
from stack.faults.crowd import Ask
from stack.faults.drill import Weighed

_queries = sql.load("faults")


class Entry(NamedTuple):
    """A voucher in the books."""

    number: str
    person: str
    code: str


def weigh(asked: Mapping[str, Ask], won: Mapping[str, str], entries: Iterable[Entry]) -> Weighed:
    """Holds what clients were told against the books. Every outcome is known by now, and the drain caught up."""
    codes: dict[str, list[str]] = defaultdict(list)
    people: Counter[str] = Counter()
    for entry in entries:
        codes[entry.number].append(entry.code)
        people[entry.person] += 1
    return Weighed(
        lost=[f"{number}: told {code}, not there" for number, code in won.items() if code not in codes.get(number, ())],
        doubled=[f"{number}: there {len(there)} times" for number, there in codes.items() if len(there) > 1]
        + [f"person {person}: {count} vouchers" for person, count in people.items() if count > 1],
        unasked=[f"{number}: there, but nobody was told" for number in codes if number not in won]
        + [f"{number}: won by nobody who asked" for number in codes if number not in asked],
    )


async def read_entries(conn: Connection, partner_id: str, numbers: Iterable[str], codes: CodeBook) -> list[Entry]:
    """The vouchers that a partner's numbers brought, as the books hold them."""
    partner_no = await conn.fetchval(_queries["partner_no"], partner_id)
    keys = {number: request_key(partner_no, number) for number in numbers}
    rows = await conn.fetch(_queries["vouchers_of_numbers"], list(keys.values()), list(keys))
    return [Entry(row["out_request_no"], row["person"].hex, codes.encode(row["voucher_id"])) for row in rows]
