"""The judge of a drill: what clients were told against what the books hold. Everything that is wrong is found."""

from collections import Counter

import pytest

from stack.faults.books import Entry, weigh
from stack.faults.crowd import Ask
from stack.faults.kinds import FAULTS, choose
from stack.faults.report import Report

ASKED = {number: Ask(number, "stock", f"person {number}") for number in ("r1-1", "r1-2", "r1-3")}
WON = {"r1-1": "CODE1", "r1-2": "CODE2"}
BOOKS = [Entry("r1-1", "person r1-1", "CODE1"), Entry("r1-2", "person r1-2", "CODE2")]


def test_books_that_agree() -> None:
    assert not any(weigh(ASKED, WON, BOOKS))


@pytest.mark.parametrize(
    ("entries", "lost", "doubled", "unasked"),
    [
        (BOOKS[:1], 1, 0, 0),
        ([], 2, 0, 0),
        ([BOOKS[0], Entry("r1-2", "person r1-2", "OTHER")], 1, 0, 0),
        ([*BOOKS, Entry("r1-2", "person r1-2", "SECOND")], 0, 2, 0),
        ([*BOOKS, Entry("r1-3", "person r1-2", "THIRD")], 0, 1, 1),
        ([*BOOKS, Entry("r1-3", "person r1-3", "THIRD")], 0, 0, 1),
        ([*BOOKS, Entry("r9-9", "person r9-9", "NINTH")], 0, 0, 2),
    ],
)
def test_control_books_that_do_not_agree(entries: list[Entry], lost: int, doubled: int, unasked: int) -> None:
    weighed = weigh(ASKED, WON, entries)
    assert [len(part) for part in weighed] == [lost, doubled, unasked]


def test_the_same_seed_chooses_the_same_faults() -> None:
    assert choose(7, 100) == choose(7, 100) != choose(8, 100)


def test_every_fault_comes_before_any_comes_again() -> None:
    chosen = choose(3, 5 * len(FAULTS))
    assert Counter(kinds[0] for kinds in chosen) == dict.fromkeys(FAULTS, 5)
    assert any(len(kinds) == 2 for kinds in chosen)
    assert all(len(set(kinds)) == len(kinds) for kinds in chosen)


@pytest.mark.parametrize(("name", "wrong"), [("lost", 1), ("doubled", 1), ("violations", 1), ("recovery_s_max", 10.1)])
def test_control_a_report_with_anything_wrong_does_not_hold(name: str, wrong: float) -> None:
    report = Report(acknowledged=5, recovery_s_max=10.0)
    assert report.holds
    setattr(report, name, wrong)
    assert not report.holds
