"""The judge of the checkout's drill: what tills were told against what the books hold. Everything wrong is found."""

from typing import Any

import pytest

from stack.faults.kinds import choose
from stack.faults.till_asks import Ask, Key
from stack.faults.till_books import Entry, weigh
from stack.faults.till_kinds import ALONE, TILL_FAULTS

USE, BACK, AGAIN = Key("M1", "redeem", "use-1"), Key("M1", "refund", "back-1"), Key("M2", "redeem", "use-2")
LOSER = Key("M3", "redeem", "use-3")
HELD, GIVEN_UP, TOO_LATE = Key("M4", "hold", "hold-4"), Key("M4", "cancel", "no-4"), Key("M4", "cancel", "no-5")
ASKED = {
    USE: Ask(USE, "/", "CODE", 8_000, {}),
    BACK: Ask(BACK, "/", "CODE", 6_000, {}),
    AGAIN: Ask(AGAIN, "/", "CODE", 9_000, {}),
    LOSER: Ask(LOSER, "/", "CODE", 7_000, {}),
    HELD: Ask(HELD, "/", "KEPT", 7_000, {}),
    GIVEN_UP: Ask(GIVEN_UP, "/", "KEPT", 7_000, {}),
    TOO_LATE: Ask(TOO_LATE, "/", "KEPT", 7_000, {}),
}
DONE: dict[Key, dict[str, Any]] = {
    **{key: {"subsidy_fen": 2_000} for key in (USE, BACK, AGAIN)},
    **{HELD: {"state": "LOCKED"}, GIVEN_UP: {"state": "CANCELLED"}, TOO_LATE: {"state": "RUN_OUT"}},
}
BOOKS = [
    Entry(USE, "CODE", 1, 8_000, 2_000, False),
    Entry(BACK, "CODE", 1, 6_000, 2_000, True),
    Entry(AGAIN, "CODE", 2, 9_000, 2_000, False),
    Entry(HELD, "KEPT", 1, 7_000, 2_000, False),
    Entry(GIVEN_UP, "KEPT", 1, 7_000, 2_000, False),
]
KEPT = BOOKS[3:]


def test_books_that_agree() -> None:
    assert not any(weigh(ASKED, DONE, {LOSER}, BOOKS))


@pytest.mark.parametrize(
    ("entries", "lost", "doubled", "unasked"),
    [
        ([*BOOKS[:2], *KEPT], 1, 0, 0),
        ([BOOKS[0], *BOOKS[2:]], 1, 1, 0),  # the refund is not there, so the voucher was used twice
        ([*BOOKS[:2], BOOKS[2]._replace(fen=9_001), *KEPT], 1, 0, 0),
        ([*BOOKS[:2], BOOKS[2]._replace(subsidy_fen=1), *KEPT], 1, 0, 0),
        ([*BOOKS[:2], BOOKS[2]._replace(code="OTHER"), *KEPT], 1, 0, 0),
        ([BOOKS[0], BOOKS[1]._replace(lives_on=False), *BOOKS[2:]], 0, 1, 0),
        ([BOOKS[0], BOOKS[1]._replace(fen=8_001), *BOOKS[2:]], 1, 1, 0),  # more cash than was paid
        (BOOKS[:3], 2, 0, 0),
        (BOOKS[:4], 1, 0, 0),
        ([*BOOKS, BOOKS[2]._replace(attempt=3)], 0, 2, 0),
        ([*BOOKS, Entry(TOO_LATE, "KEPT", 2, 7_000, 2_000, False)], 0, 0, 1),
        ([*BOOKS, Entry(LOSER, "CODE", 3, 7_000, 2_000, False)], 0, 1, 1),
        ([*BOOKS, Entry(Key("M9", "redeem", "use-9"), "NINTH", 1, 7_000, 2_000, False)], 0, 0, 1),
    ],
)
def test_control_books_that_do_not_agree(entries: list[Entry], lost: int, doubled: int, unasked: int) -> None:
    weighed = weigh(ASKED, DONE, {LOSER}, entries)
    assert [len(part) for part in weighed] == [lost, doubled, unasked], weighed


def test_some_faults_come_alone() -> None:
    chosen = choose(5, 400, [*TILL_FAULTS], ALONE)
    assert {kinds[0] for kinds in chosen} == {*TILL_FAULTS}
    assert any(len(kinds) == 2 for kinds in chosen)
    assert all(len(kinds) == 1 for kinds in chosen if ALONE & {*kinds})
