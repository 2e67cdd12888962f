"""What the books say of the tills' requests: is everything that was told there, once, as told, and nothing else?"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import sql
from kernel.codes import CodeBook
from kernel.postgres import Connection
from stack.faults.drill import Weighed
from stack.faults.till_asks import Ask, Key

_queries = sql.load("faults")


class Entry(NamedTuple):
    """A redemption, refund, hold or its cancellation in the books. `fen`: the bill, or what the customer got back."""

    key: Key
    code: str
    attempt: int
    fen: int
    subsidy_fen: int
    lives_on: bool
    """Of a refund: whether the voucher may be used again."""


def weigh(
    asked: Mapping[Key, Ask], done: Mapping[Key, Any], refused: Collection[Key], entries: Iterable[Entry]
) -> Weighed:
    """Holds what tills were told against the books. Every outcome is known by now."""
    there: dict[Key, list[Entry]] = defaultdict(list)
    for entry in entries:
        there[entry.key].append(entry)
    return Weighed(
        lost=[
            f"{_words(key)}: told, not there as told" for key in done if not _is_as_told(asked[key], done[key], there)
        ],
        doubled=[f"{_words(key)}: there {len(each)} times" for key, each in there.items() if len(each) > 1]
        + _used_twice([entry for each in there.values() for entry in each])
        + _given_back_twice([entry for each in there.values() for entry in each]),
        unasked=[f"{_words(key)}: there, but nobody asked" for key in there if key not in asked]
        + [f"{_words(key)}: there, but told it came too late" for key in there if _came_too_late(done.get(key))]
        + [f"{_words(key)}: there, but refused" for key in there if key in refused and key not in done],
    )


def _is_as_told(ask: Ask, answer: Mapping[str, Any], there: Mapping[Key, list[Entry]]) -> bool:
    if _came_too_late(answer):
        return True
    subsidy_fen = answer.get("subsidy_fen")
    return any(
        (entry.code, entry.fen) == (ask.code, ask.fen) and subsidy_fen in (None, entry.subsidy_fen)
        for entry in there.get(ask.key, ())
    )


def _came_too_late(answer: Mapping[str, Any] | None) -> bool:
    """Whether a cancellation found that time had ended the hold: then it leaves nothing."""
    return answer is not None and answer.get("state") == "RUN_OUT"


def _used_twice(entries: Iterable[Entry]) -> list[str]:
    """Vouchers with more uses than refunds gave back, and one."""
    uses, lives = Counter[str](), Counter[str]()
    for entry in entries:
        uses[entry.code] += entry.key.verb == "redeem"
        lives[entry.code] += entry.lives_on
    return [
        f"voucher {code}: used {count} times, given back {lives[code]} times"
        for code, count in uses.items()
        if count > lives[code] + 1
    ]


def _given_back_twice(entries: Iterable[Entry]) -> list[str]:
    """Purchases of which more was given back than paid, to the customer or to the city."""
    cash_fen, subsidy_fen = Counter[tuple[str, int]](), Counter[tuple[str, int]]()
    for entry in entries:
        sign = {"redeem": 1, "refund": -1}.get(entry.key.verb, 0)
        cash_fen[entry.code, entry.attempt] += sign * entry.fen
        subsidy_fen[entry.code, entry.attempt] += sign * entry.subsidy_fen
    return [
        f"voucher {code}, use {attempt}: more was given back than paid"
        for (code, attempt), left_fen in cash_fen.items()
        if left_fen < 0 or subsidy_fen[code, attempt] < 0
    ]


def _words(key: Key) -> str:
    return f"{key.verb} {key.number} of {key.shop}"


async def read_entries(conn: Connection, vouchers: Iterable[str], codes: CodeBook) -> list[Entry]:
    """What was done with these vouchers (codes), as the books hold it."""
    numbers = [codes.decode(code) for code in set(vouchers)]
    rows = await conn.fetch(_queries["deeds_of_vouchers"], numbers)
    return [
        Entry(
            Key(row["merchant_id"], row["verb"], row["number"]),
            codes.encode(row["voucher_id"]),
            row["attempt"],
            row["fen"],
            row["subsidy_fen"],
            row["lives_on"],
        )
        for row in rows
    ]
