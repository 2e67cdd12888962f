"""Why not, in words: every refusal at the till has them, for two people and in two languages, numbers filled in."""

import ast
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from kernel.errors import Code, Refusal
from redemption.offers import Shown, best_of, judge
from redemption.words import BOOK, words
from tests.unit.test_offers import NOON, a_shop, an_offer

ROOT = Path(__file__).parents[2]
NOT_AT_A_TILL = {
    *(Code.USER_ALREADY_CLAIMED, Code.SOLD_OUT, Code.NOT_STARTED, Code.PAUSED, Code.ENDED),  # claims
    Code.STALE_VALUE,  # operators
}
CHINESE = re.compile("[一-鿿]")
ALL = {**BOOK.rules, **BOOK.codes}


def rules_in_the_source() -> Iterator[str]:
    """Every rule that the checkout names: rule="..." of a call, and the first word of a call to _rule."""
    for path in sorted((ROOT / "redemption").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                named = [keyword.value for keyword in node.keywords if keyword.arg == "rule"]
                named += node.args[:1] if isinstance(node.func, ast.Name) and node.func.id == "_rule" else []
                inside = (each for value in named for each in ast.walk(value) if isinstance(each, ast.Constant))
                yield from (each.value for each in inside if isinstance(each.value, str))


def test_no_rule_at_the_till_lacks_words() -> None:
    named = set(rules_in_the_source())
    assert {"TRANSACTION_MINIMUM", "NOT_CHOSEN", "ONE_VOUCHER_PER_PAYMENT"} <= named
    assert named == set(BOOK.rules)


def test_no_code_at_the_till_lacks_words() -> None:
    assert {code for code in Code if code not in BOOK.codes} == NOT_AT_A_TILL
    assert {name.partition(".")[0] for name in BOOK.codes} <= set(Code)


@pytest.mark.parametrize("name", ALL)
def test_words_are_in_their_languages_and_end(name: str) -> None:
    told = msgspec.structs.asdict(ALL[name])
    for reader, text in told.items():
        assert bool(CHINESE.search(re.sub(r"\{.*?\}", "", text))) == reader.endswith("_zh"), reader
        assert text.endswith("。" if reader.endswith("_zh") else "."), reader
    for person in ("cashier", "citizen"):
        facts = [set(re.findall(r"\{(\w+)\}", told[f"{person}_{language}"])) for language in ("zh", "en")]
        assert {re.sub("_(zh|en)$", "", fact) for fact in facts[0]} == {
            re.sub("_(zh|en)$", "", fact) for fact in facts[1]
        }


REFUSED = {
    "MERCHANT_SUSPENDED": judge(an_offer(), a_shop(suspended=True), 1, NOON, claimed_at=NOON),
    "CATEGORY": judge(an_offer(category_zh="餐饮", category_en="Dining"), a_shop("mall"), 1, NOON, claimed_at=NOON),
    "DISTRICT": judge(an_offer(districts=["hankou"]), a_shop(), 1, NOON, claimed_at=NOON),
    "MERCHANT": judge(an_offer(merchants=[2]), a_shop(), 1, NOON, claimed_at=NOON),
    "NOT_YET_VALID": judge(an_offer(), a_shop(), 1, datetime(2020, 4, 1, tzinfo=UTC), claimed_at=NOON),
    "EXPIRED": judge(an_offer(), a_shop(), 1, datetime(2020, 5, 1, tzinfo=UTC), claimed_at=NOON),
    "ROTATING_CODE": judge(an_offer(till_code="ROTATING"), a_shop(), 1, NOON, claimed_at=NOON, is_rotating=False),
    "NOT_STACKABLE": judge(
        an_offer(stacks_with=[]), a_shop(), 1, NOON, claimed_at=NOON, other_offers=frozenset({"SHOP"})
    ),
    "TRANSACTION_MINIMUM": judge(an_offer(), a_shop(), 5_999, NOON, claimed_at=NOON),
    "NOT_CHOSEN": best_of(
        [Shown(voucher_id=n, offer=an_offer(), claimed_at=NOON) for n in (1, 2)], a_shop(), 6_000, NOON
    )[1].outcome,
}


@pytest.mark.parametrize("rule", REFUSED)
def test_an_offers_refusal_says_every_fact(rule: str) -> None:
    refusal = REFUSED[rule]
    assert isinstance(refusal, Refusal)
    assert refusal.rule == rule
    for text in msgspec.structs.asdict(words(refusal)).values():
        assert "…" not in text
        assert "{" not in text


def test_numbers_are_filled_in() -> None:
    short, late, elsewhere = (REFUSED[rule] for rule in ("TRANSACTION_MINIMUM", "EXPIRED", "CATEGORY"))
    assert isinstance(short, Refusal)
    assert isinstance(late, Refusal)
    assert isinstance(elsewhere, Refusal)
    assert words(short).cashier_zh == "账单 59.99 元，此券须满 60.00 元，还差 0.01 元。"
    assert words(short).citizen_en == "This voucher needs a bill of 60.00 yuan; yours is 0.01 yuan short."
    assert words(late).citizen_zh == "您的券已于 2020年4月30日 12:00 到期，不能再使用。"
    assert words(late).cashier_en == "This voucher ended at 30 April 2020 12:00."
    assert words(elsewhere).cashier_zh == "此券仅限“餐饮”类商户使用，本店不属于该类。"
    assert words(elsewhere).citizen_en == "This voucher is good in shops of another kind: Dining."


def test_facts_can_be_told_later_and_a_missing_one_fails_nobody() -> None:
    short = Refusal(code=Code.RULE_LIMIT, rule="TRANSACTION_MINIMUM", detail="the bill is too small")
    assert "满 100.00 元可用，本单还差 … 元" in words(short, minimum_fen=10_000).citizen_zh


def test_words_go_by_rule_then_pointer_then_code() -> None:
    assert words(Refusal(code=Code.RULE_LIMIT, rule="NEW_RULE", detail="")) == BOOK.codes["RULE_LIMIT"]
    code = Refusal(code=Code.RESOURCE_NOT_EXISTS, detail="", pointer="voucher_code")
    assert words(code) == BOOK.codes["RESOURCE_NOT_EXISTS.voucher_code"]
    other = Refusal(code=Code.RESOURCE_NOT_EXISTS, detail="", pointer="use_request_no")
    assert words(other) == BOOK.codes["RESOURCE_NOT_EXISTS"]
