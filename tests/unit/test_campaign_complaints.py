"""Every complaint about a campaign file: made by one bad line, it names that line and says what to write."""

import pytest

from issuer.campaign.complaints import Code, Complaint
from issuer.campaign.read import Refused, read_campaign
from tests.small_campaign import SMALL, small

R1 = "{id: r1, opens: 2020-04-23 12:00, closes: 2020-04-23, budget: 400}"
R2 = "{id: r2, opens: 2020-04-30 12:00, closes: 2020-04-30 18:30, budget: 400}"
STOCK = "{partner: wechat, category: dining, face: 20, quantity: 10}"
OTHER = '{partner: alipay, category: dining, face: "20.50", quantity: 10, minimum: 70}'
PARTNERS = "".join(f"  - {{id: p{n}, name: {{zh: 名, en: name}}}}\n" for n in range(33))
FOLDS = "[" * 8 + "]" * 8

# What is replaced in the good file, the line of the complaint, its code, and some of its words.
UNREADABLE = [
    ("fund: 1000", "fund: 1000 \u0007", 4, Code.ODD_CHARACTER, "invisible character U+0007 stands on this line"),
    ("rollover: yes", "rollover:\tyes", 5, Code.TAB, "write spaces instead"),
    ("fund: 1000", "fund：1000", 4, Code.FULL_WIDTH_COLON, "write an ordinary colon and a space"),
    ("zone: Asia/Shanghai", "zone:Asia/Shanghai", 3, Code.NOT_YAML, "a space is missing after the colon"),
    ("rollover: yes", "rollover", 5, Code.NOT_YAML, 'this line is no "name: value"'),
    ("zh: 小券, en: Small vouchers}", "zh: 小券, en: Small vouchers", 3, Code.NOT_YAML, "a { is not closed"),
    ("fund: 1000", "fund: a: 1000", 4, Code.NOT_YAML, "put text that holds a colon in quotes"),
    ("fund: 1000", "  fund: 1000", 4, Code.NOT_YAML, "far to the right as its neighbours"),
    ("closes: 2020-04-30", 'closes: "2020-04-30', 22, Code.NOT_YAML, "a quote is opened and never closed"),
    ("fund: 1000", "fund: @1000", 4, Code.NOT_YAML, "put the value in quotes"),
    (f"  - {R2}", f" - {R2}", 22, Code.NOT_YAML, "indented differently from its neighbours"),
    ("fund: 1000", "fund: [1000", 5, Code.NOT_YAML, "a [ is not closed"),
    ("fund: 1000", "fund: &money 1000", 4, Code.ANCHOR, "&money is a YAML shortcut; write the value out"),
    ("fund: 1000", "fund: *money", 4, Code.ANCHOR, "*money is a YAML shortcut"),
    ("fund: 1000", "fund: !!int 1000", 4, Code.TAG, "is a YAML tag; leave it out"),
    ("fund: 1000", f"fund: {FOLDS}", 4, Code.TOO_DEEP, "more than 8 deep"),
    ("partners:", "---\npartners:", 8, Code.SECOND_DOCUMENT, "write one campaign a file"),
    (SMALL, "- a list\n", 1, Code.EMPTY, 'start with "id: my-campaign"'),
    (SMALL, "# nothing\n", 1, Code.EMPTY, "the file is empty"),
]
WRONG_FIELDS = [
    ("rollover: yes", "fund: 2000\nrollover: yes", 5, Code.DUPLICATE_KEY, "written twice, first on line 4"),
    ("fund: 1000", "fund: 1000\nfunds: 1000", 5, Code.UNKNOWN_FIELD, "did you mean fund?"),
    (
        "days: 7}",
        "days: 7, zzz: 1}",
        16,
        Code.UNKNOWN_FIELD,
        "no field 'zzz'; it has days, days_after_claim, until",
    ),
    ("id: small-2020", "? [a]\n: b\nid: small-2020", 1, Code.UNKNOWN_FIELD, "the campaign has no field '?'"),
    ("zone: Asia/Shanghai\n", "", 1, Code.MISSING_FIELD, "the campaign lacks zone; write zone: Asia/Shanghai"),
    ("fund: 1000", "fund:", 4, Code.MISSING_FIELD, 'fund is empty; write fund: "20.50"'),
    (", budget: 400}\n  - {id: r2", "}\n  - {id: r2", 21, Code.MISSING_FIELD, "round lacks budget"),
    ("validity: {days: 7}\n", "", 20, Code.MISSING_FIELD, "says how long vouchers are good"),
    ("fund: 1000", "fund: [1000]", 4, Code.WRONG_SHAPE, "fund must be a single value"),
    ("{zh: 小券, en: Small vouchers}", "小券", 2, Code.WRONG_SHAPE, "title must hold fields"),
    (f"  - {R1}\n  - {R2}\n", "  r1\n", 21, Code.WRONG_SHAPE, "rounds must be a list"),
    (R2, "r2", 22, Code.WRONG_SHAPE, 'a round must hold fields; write "- id: ..."'),
    ("{days: 7}", "{days: 7, until: 2020-07-31}", 16, Code.WRONG_SHAPE, "validity needs one of"),
    ("{days: 7}", "{}", 16, Code.WRONG_SHAPE, "validity needs one of"),
    ("fund: 1000", "fund: 1000.5", 4, Code.UNQUOTED_DECIMAL, 'write it in quotes, "1000.5"'),
    ("expected_redemption: 50", "expected_redemption: 50.5", 6, Code.UNQUOTED_DECIMAL, 'in quotes, "50.5"'),
    ("fund: 1000", 'fund: "1,000"', 4, Code.BAD_AMOUNT, "write the digits alone"),
    ("fund: 1000", "fund: 1_000", 4, Code.BAD_AMOUNT, "write the digits alone"),
    ("fund: 1000", "fund: -1000", 4, Code.BAD_AMOUNT, "negative"),
    ("fund: 1000", 'fund: "1000.123"', 4, Code.BAD_AMOUNT, "more than two decimals"),
    ("fund: 1000", "fund: 1000元", 4, Code.BAD_AMOUNT, "not an amount in yuan"),
    ("fund: 1000", "fund: 1e3", 4, Code.BAD_AMOUNT, "not an amount in yuan"),
    ("fund: 1000", "fund: 1000000000001", 4, Code.BAD_AMOUNT, "above the largest amount"),
    ("face: 20,", "face: 0,", 18, Code.BAD_AMOUNT, "an amount must be more than 0"),
    ("quantity: 10}", "quantity: 1,000}", 18, Code.UNKNOWN_FIELD, "no field '000'"),
    ("quantity: 10}", "quantity: ten}", 18, Code.BAD_NUMBER, "not a whole number from 1 to 100000000"),
    ("quantity: 10}", "quantity: 0}", 18, Code.BAD_NUMBER, "not a whole number from 1"),
    ("expected_redemption: 50", "expected_redemption: 50%", 6, Code.BAD_NUMBER, "without a % sign"),
    ("expected_redemption: 50", "expected_redemption: 101", 6, Code.BAD_NUMBER, "from 0 to 100"),
    ("partner: 1}", "partner: 10}", 14, Code.BAD_NUMBER, "whole number from 1 to 9"),
    ("zh: 小券", f"zh: {'券' * 81}", 2, Code.BAD_TEXT, "this one has 81"),
    ("RESTORE", "R" * 201, 15, Code.BAD_TEXT, "this value has 201 characters"),
    ("id: small-2020", "id: Small", 1, Code.BAD_ID, "small letters, digits and hyphens, such as wuhan-2020"),
    ("id: r1", "id: r_1", 21, Code.BAD_ID, "1 to 16 letters, digits and hyphens"),
    ("{id: dining", "{id: 餐饮", 12, Code.BAD_ID, "such as dining"),
    ("opens: 2020-04-23 12:00", "opens: 2020-04-23", 21, Code.BAD_TIME, "lacks the time of day"),
    ("opens: 2020-04-23 12:00", "opens: 23 April", 21, Code.BAD_TIME, "write date and time"),
    ("closes: 2020-04-30 18:30", "closes: 2020-04-31", 22, Code.BAD_TIME, "does not exist"),
    ("18:30", "24:30", 22, Code.BAD_TIME, "does not exist"),
    ("opening_time: 12:00", "opening_time: noon", 7, Code.BAD_TIME, "such as 12:00"),
    ("opening_time: 12:00", "opening_time: 25:00", 7, Code.BAD_TIME, "such as 12:00"),
    ("RESTORE", "CASH", 15, Code.BAD_CHOICE, "write RESTORE or RETURN_TO_BUDGET"),
    ("vouchers_per_payment: 1", "vouchers_per_payment: 2", 15, Code.BAD_CHOICE, "write 1"),
    ("rollover: yes", "rollover: maybe", 5, Code.BAD_CHOICE, "write yes or no"),
    ("Asia/Shanghai", "UTC", 3, Code.NOT_OF_ZONE, "counted in Asia/Shanghai"),
    ("2020-04-23 12:00", "2020-04-23T12:00Z", 21, Code.NOT_OF_ZONE, "write 2020-04-23 12:00"),
    ("2020-04-23 12:00", "2020-04-23 12:00 +09:00", 21, Code.NOT_OF_ZONE, "not a time in Asia/Shanghai"),
]
BROKEN_RULES = [
    ("{id: alipay", "{id: wechat", 10, Code.DUPLICATE_ID, "id of another partner, on line 9"),
    (
        "- {id: dining",
        "- {id: dining, name: {zh: 餐, en: D}}\n  - {id: dining",
        13,
        Code.DUPLICATE_ID,
        "another category",
    ),
    ("{id: r2", "{id: r1", 22, Code.DUPLICATE_ID, "another round, on line 21"),
    ("partner: alipay", "partner: wechat", 19, Code.DUPLICATE_STOCK, "have a stock on line 18 already"),
    ("partner: alipay", "partner: meituan", 19, Code.UNKNOWN_PARTNER, "it has wechat, alipay"),
    ("category: dining, face: 20,", "category: malls, face: 20,", 18, Code.UNKNOWN_CATEGORY, "it has dining"),
    ("id: small-2020", f"id: {'s' * 30}", 1, Code.NAME_TOO_LONG, "47 letters, and at most 40"),
    ("categories:", f"{PARTNERS}categories:", 9, Code.TOO_MANY, "partners has 35 entries; at most 32"),
    ("merchant: 10}", "merchant: 11}", 13, Code.FUNDING_NOT_WHOLE, "60 + 30 + 11 is 101"),
    ("platform: 30", 'platform: "29.99"', 13, Code.FUNDING_NOT_WHOLE, "60 + 29.99 + 10 is 99.99"),
    ("face: 20,", "face: 1000001,", 18, Code.FACE_OUT_OF_RANGE, "above 1,000,000.00 yuan"),
    (
        "{city: 60, platform: 30, merchant: 10}",
        "{city: 0, platform: 0, merchant: 100}",
        18,
        Code.NOTHING_FUNDED,
        "whole face",
    ),
    (
        "minimum: 70",
        'minimum: "61.49"',
        19,
        Code.MINIMUM_TOO_LOW,
        "61.49 is below 3 times the face; write at least 61.50",
    ),
    (
        "budget: 400}\n  - {id: r2",
        "budget: 400, stocks: [{partner: wechat, category: dining, face: 9, quantity: 0},"
        " {partner: alipay, category: dining, face: 9, quantity: 0}]}\n  - {id: r2",
        21,
        Code.NO_STOCKS,
        "takes out every stock",
    ),
    ("2020-04-23 12:00", "2020-04-23 20:00", 21, Code.WRONG_HOUR, "opens at 20:00 in Asia/Shanghai"),
    ("18:30", "12:00", 22, Code.CLOSES_TOO_EARLY, "not after it opens 2020-04-30 12:00"),
    ("{days: 7}", "{until: 2020-04-29}", 22, Code.VALIDITY_TOO_SHORT, "good until 2020-04-29 23:59"),
    ("18:30,", "18:30, valid_until: 2020-04-30 18:00,", 22, Code.VALIDITY_TOO_SHORT, "close earlier, or let them"),
    (
        "closes: 2020-04-23,",
        "closes: 2020-04-30, valid_until: 2020-04-30,",
        22,
        Code.ROUNDS_OVERLAP,
        "while round r1 (line 21) is open until",
    ),
    ("budget: 400", "budget: 364", 21, Code.BUDGET_TOO_SMALL, "is 364.00 yuan, and its 20 vouchers can cost 364.50"),
    ("fund: 1000", "fund: 399", 21, Code.BUDGET_OVER_FUND, "400.00 yuan, is more than the fund, 399.00"),
    ("fund: 1000\nrollover: yes", "fund: 799\nrollover: no", 4, Code.BUDGETS_OVER_FUND, "add up to 800.00 yuan"),
    ("fund: 1000", "fund: 581", 22, Code.PLAN_OVER_FUND, "182.25 yuan will be spent if 50 % of earlier"),
]
LIMITS = "limits: {per_person_round_and_partner: 1}"
OFFER = "offer: {minimum"
BIG = f"groups: [{{id: big, per_person: 1}}]\n{OFFER}"
GROUPED = ("face: 20, quantity: 10", "face: 20, quantity: 10, group: big")
PACK = "packs:\n  - {id: family, partner: wechat, items: [{category: dining, quantity: 2}]}\nrounds:"
STAGES = "release: [{after: 0, percent: 50}, {after: 60, percent: 100}]\nrounds:"


def pack(*changes: tuple[str, str]) -> tuple[str, str]:
    """A pack on line 21, with words of it replaced."""
    return "rounds:", small(*changes, text=PACK)


def stages(*changes: tuple[str, str]) -> tuple[str, str]:
    """A plan of release on line 20, with words of it replaced."""
    return "rounds:", small(*changes, text=STAGES)


# As above, but several changes.
GOOD_IN = f"scopes: [{{id: old, districts: [a, b]}}]\n{OFFER}"
SCOPED = ("face: 20, quantity: 10", "face: 20, quantity: 10, scope: old")


def scope(*changes: tuple[str, str]) -> list[tuple[str, str]]:
    """A scope on line 15, which a stock has, with words of it replaced."""
    return [SCOPED, (OFFER, small(*changes, text=GOOD_IN))]


def caps(*written: str | int) -> tuple[str, str]:
    """The good file with caps on what is used: period, yuan, period, yuan, ..."""
    rows = "".join(
        f"  - {{period: {period}, face: {face}}}\n" for period, face in zip(written[::2], written[1::2], strict=True)
    )
    return OFFER, f"redeem_caps:\n{rows}{OFFER}"


BROKEN_EXTRAS = [
    ([(LIMITS, f"{LIMITS[:-1]}, per_person_and_round: 100}}")], 14, Code.BAD_NUMBER, "whole number from 1 to 99"),
    ([(LIMITS, f"{LIMITS[:-1]}, face_per_person: 0}}")], 14, Code.BAD_AMOUNT, "more than 0"),
    ([("partner: 1}", "partner: 2, per_person_and_round: 1}")], 14, Code.LIMIT_TOO_LOW, "never reached; write 2 or"),
    (
        [(LIMITS, f'{LIMITS[:-1]}, face_per_person: "20.49"}}')],
        19,
        Code.LIMIT_TOO_LOW,
        "nobody could claim a face of 20.50",
    ),
    ([("WeChat Pay}", "WeChat Pay}, claims_per_second: 0")], 9, Code.BAD_NUMBER, "whole number from 1 to 1000000"),
    ([("quantity: 10}", "quantity: 10, granted: maybe}")], 18, Code.BAD_CHOICE, "write yes or no"),
    ([GROUPED], 18, Code.UNKNOWN_GROUP, "there is no group big; write groups:"),
    ([GROUPED, (OFFER, BIG.replace("big", "huge"))], 19, Code.UNKNOWN_GROUP, "this file has huge"),
    ([(OFFER, BIG)], 15, Code.UNUSED_GROUP, "no stock and no pack is in group big"),
    (
        [GROUPED, (OFFER, BIG.replace("[", "[{id: big, per_person: 2}, "))],
        15,
        Code.DUPLICATE_ID,
        "another group, on line 15",
    ),
    ([(OFFER, BIG.replace("1}", "100}"))], 15, Code.BAD_NUMBER, "whole number from 1 to 99"),
    ([pack(("family", "dining"))], 21, Code.DUPLICATE_ID, "its stock would have the pack's name"),
    (
        [pack(("packs:", PACK.removesuffix("rounds:").rstrip()))],
        22,
        Code.DUPLICATE_ID,
        "another pack family, on line 21",
    ),
    ([pack(("wechat", "meituan"))], 21, Code.UNKNOWN_PARTNER, "it has wechat, alipay"),
    ([pack(("category: dining", "category: malls"))], 21, Code.UNKNOWN_CATEGORY, "it has dining"),
    ([pack(("[{", "[{category: dining, quantity: 1}, {"))], 21, Code.DUPLICATE_STOCK, "stands in this pack already"),
    ([pack(("quantity: 2", "quantity: 0"))], 21, Code.BAD_NUMBER, "whole number from 1 to 20"),
    (
        [pack(("quantity: 2", "quantity: 11"))],
        21,
        Code.PACK_TOO_LARGE,
        "has 10 dining in round r1, and one pack takes 11",
    ),
    ([pack((", items: [{category: dining, quantity: 2}]", ""))], 21, Code.MISSING_FIELD, "pack lacks items"),
    ([pack(("quantity: 2}]", "quantity: 2}], group: big"))], 21, Code.UNKNOWN_GROUP, "there is no group big"),
    ([pack(("family", "a-rather-long-name-of-a-pack"))], 1, Code.NAME_TOO_LONG, "a pack would be called"),
    (
        [pack(("quantity: 2", "quantity: 3")), (LIMITS, f"{LIMITS[:-1]}, face_per_person: 59}}")],
        21,
        Code.LIMIT_TOO_LOW,
        "nobody could claim a pack of 60.00",
    ),
    (
        [pack(), ("quantity: 10}", "quantity: 10, granted: yes}")],
        21,
        Code.PACK_OF_GRANTED,
        "nobody can claim it in a pack",
    ),
    (
        [
            pack(),
            (R2, R2.replace("400}", "400, stocks: [{partner: wechat, category: dining, face: 20, quantity: 0}]}")),
        ],
        21,
        Code.PACK_WITHOUT_STOCK,
        "wechat has no dining in round r2",
    ),
    ([stages(("percent: 50", "percent: 50%"))], 20, Code.BAD_NUMBER, "without a % sign"),
    ([stages(("after: 60", "after: -1"))], 20, Code.BAD_NUMBER, "whole number from 0"),
    ([stages(("percent: 50", "percent: 0"))], 20, Code.STAGES_NOT_RISING, "the first stage releases nothing"),
    ([stages(("after: 60", "after: 0"))], 20, Code.STAGES_NOT_RISING, "0 s after the opening, not later"),
    ([stages(("percent: 50", "percent: 100"))], 20, Code.STAGES_NOT_RISING, "what is released stays so"),
    ([stages(("percent: 100", "percent: 99"))], 20, Code.STAGES_NOT_WHOLE, "the last stage releases 99 %"),
    ([stages(("percent: 100", 'percent: "99.99"'))], 20, Code.STAGES_NOT_WHOLE, "releases 99.99 %"),
    ([stages(("after: 60", "after: 23400"))], 20, Code.STAGE_TOO_LATE, "round r2 closes 23400 s after it opens"),
    (
        [stages(), (R1, R1.replace("400}", "400, release: [{after: 43199, percent: 100}]}"))],
        22,
        Code.STAGE_TOO_LATE,
        "round r1 closes 43199 s after",
    ),
    ([("rounds:", "release: []\nrounds:")], 20, Code.WRONG_SHAPE, "release must be a list"),
    ([SCOPED], 18, Code.UNKNOWN_SCOPE, "there is no scope old; write scopes: [{id: ..., districts: [...]}]"),
    (scope(("id: old", "id: new")), 19, Code.UNKNOWN_SCOPE, "this file has new"),
    ([(OFFER, GOOD_IN)], 15, Code.UNUSED_SCOPE, "no stock has the scope old"),
    (scope(("[{id: old", "[{id: old, districts: [c]}, {id: old")), 15, Code.DUPLICATE_ID, "another scope"),
    (scope(("[a, b]", "[a, a]")), 15, Code.DUPLICATE_ID, "a stands here twice"),
    (scope((", districts: [a, b]", "")), 15, Code.MISSING_FIELD, "a scope names districts, merchants or both"),
    (scope(("[a, b]", "a")), 15, Code.WRONG_SHAPE, "districts must be a list of 1 to 100"),
    (scope(("[a, b]", "[]")), 15, Code.WRONG_SHAPE, "districts must be a list of 1 to 100"),
    (scope(("[a, b]", "[[a], b]")), 15, Code.WRONG_SHAPE, "districts holds single values"),
    (scope(("districts: [a, b]", "merchants: [面馆]")), 15, Code.BAD_ID, "such as NOODLES-0001"),
    ([caps("week", 100)], 16, Code.BAD_CHOICE, "write month or campaign"),
    ([caps("month", 100, "month", 100)], 17, Code.DUPLICATE_CAP, "vouchers in a month has a cap on line 16 already"),
    (
        [caps("month", 100, "campaign", 99)],
        17,
        Code.LIMIT_TOO_LOW,
        "is below that on all partners' vouchers in a month",
    ),
    ([caps("campaign", 99, "month", 100)], 16, Code.LIMIT_TOO_LOW, "is never reached"),
    ([caps("month", 30, "month, per_partner: yes", 31)], 16, Code.LIMIT_TOO_LOW, "one partner's vouchers in a month"),
    ([caps("campaign", 20)], 21, Code.LIMIT_TOO_LOW, "nobody could use a face of 20.50"),
    ([("RESTORE}", "RESTORE, till_code: PAPER}")], 15, Code.BAD_CHOICE, "write ANY or ROTATING"),
    ([("RESTORE}", "RESTORE, stacks_with: {shop: yes}}")], 15, Code.MISSING_FIELD, "stacks_with lacks platform"),
    ([("{days: 7}", "{days: 7, days_after_claim: 7}")], 16, Code.WRONG_SHAPE, "the day of the claim is the first"),
    ([("{days: 7}", "{days_after_claim: 367}")], 16, Code.BAD_NUMBER, "whole number from 1 to 366"),
]
CASES = UNREADABLE + WRONG_FIELDS + BROKEN_RULES


def complaints_about(text: str) -> tuple[Complaint, ...]:
    answer = read_campaign(text.encode())
    return answer.complaints if isinstance(answer, Refused) else ()


@pytest.mark.parametrize(("old", "new", "line", "code", "words"), CASES, ids=[f"{case[3]}-{case[4]}" for case in CASES])
def test_a_bad_line_is_named(old: str, new: str, line: int, code: Code, words: str) -> None:
    text = small((old, new))
    found = [each for each in complaints_about(text) if each.code == code and each.line == line]
    assert any(words in each.message for each in found), complaints_about(text)


@pytest.mark.parametrize(
    ("changes", "line", "code", "words"), BROKEN_EXTRAS, ids=[f"{case[2]}-{case[3]}" for case in BROKEN_EXTRAS]
)
def test_a_bad_limit_pack_or_stage_is_named(changes: list[tuple[str, str]], line: int, code: Code, words: str) -> None:
    found = complaints_about(small(*changes))
    assert [each.code for each in found] == [code]
    assert (found[0].line, words in found[0].message) == (line, True), found


def test_limits_packs_and_stages_at_the_boundary_are_fine() -> None:
    cap = (LIMITS, f"{LIMITS[:-1]}, per_person_and_round: 1, face_per_person: 40}}")
    assert complaints_about(small(cap, pack())) == ()
    assert complaints_about(small(pack(("quantity: 2", "quantity: 10")))) == ()
    assert complaints_about(small(stages(("after: 60", "after: 23399")))) == ()
    without = R2.replace(
        "400}", "400, packs: no, stocks: [{partner: wechat, category: dining, face: 20, quantity: 0}]}"
    )
    assert complaints_about(small(pack(), (R2, without))) == ()


def test_the_good_file_is_good() -> None:
    assert complaints_about(SMALL) == ()


@pytest.mark.parametrize(
    ("old", "new", "line", "code", "words"), BROKEN_RULES[7:], ids=[case[3] for case in BROKEN_RULES[7:]]
)
def test_one_mistake_is_one_complaint(old: str, new: str, line: int, code: Code, words: str) -> None:
    assert {each.code for each in complaints_about(small((old, new)))} - {Code.BUDGET_TOO_SMALL} == {code} - {
        Code.BUDGET_TOO_SMALL
    }


def test_live_money_counts_until_validity_ends() -> None:
    overlapping = ("closes: 2020-04-23,", "closes: 2020-04-23, valid_until: 2020-04-30 12:00,")
    text = small(("fund: 1000", "fund: 799"), overlapping)
    (complaint,) = complaints_about(text)
    assert (complaint.line, complaint.code) == (22, Code.EXPOSURE_OVER_FUND)
    assert (
        "rounds r1, r2 are live at one time, with 800.00 yuan of budget against a fund of 799.00" in complaint.message
    )
    one_second_earlier = small(("2020-04-30 12:00,", "2020-04-30 11:59:59,"), text=text)
    assert complaints_about(one_second_earlier) == ()
    assert complaints_about(small(("fund: 799", "fund: 800"), text=text)) == ()


def test_without_a_plan_only_live_money_counts() -> None:
    assert complaints_about(small(("fund: 1000", "fund: 400"), ("expected_redemption: 50\n", ""))) == ()


def test_too_many_rounds() -> None:
    dated = (f"{2001 + n // 336}-{n % 12 + 1:02}-{n // 12 % 28 + 1:02}" for n in range(1024))
    rows = "".join(f"  - {{id: r{n}, opens: {day} 12:00, closes: {day}, budget: 400}}\n" for n, day in enumerate(dated))
    text = small((f"  - {R1}\n  - {R2}\n", rows), ("fund: 1000", "fund: 99999999"), ("{days: 7}", "{days: 1}"))
    (complaint,) = complaints_about(text)
    assert (complaint.line, complaint.code) == (21, Code.TOO_MANY)
    assert "rounds has 1024 entries; at most 1023 are possible" in complaint.message


def test_too_many_stocks() -> None:
    names = [f"n{n}" for n in range(32)]
    parts = "".join(f"  - {{id: {name}, name: {{zh: 名, en: name}}}}\n" for name in names)
    pairs = ((partner, category) for partner in names for category in names)
    stocks = "".join(f"  - {{partner: {p}, category: {c}, face: 1, quantity: 1}}\n" for p, c in pairs)
    days = (f"2020-{n // 28 + 1:02}-{n % 28 + 1:02}" for n in range(20))
    rounds = "".join(f"  - {{id: r{n}, opens: {d} 12:00, closes: {d}, budget: 2000}}\n" for n, d in enumerate(days))
    head = small(("fund: 1000", "fund: 9999999")).partition("partners:")[0]
    rules = SMALL[SMALL.index("funding:") : SMALL.index("stocks:")]
    text = f"{head}partners:\n{parts}categories:\n{parts}{rules}stocks:\n{stocks}rounds:\n{rounds}"
    (complaint,) = complaints_about(text)
    assert complaint.code == Code.TOO_MANY
    assert "20 rounds of 1024 stocks are more than 20,000 stocks in all" in complaint.message


def test_not_utf8() -> None:
    (complaint,) = complaints_in(SMALL.encode("gb18030"))
    assert (complaint.line, complaint.code) == (9, Code.NOT_UTF8)
    assert 'choose the encoding "UTF-8"' in complaint.message


def test_a_byte_order_mark_does_no_harm() -> None:
    assert not isinstance(read_campaign(SMALL.encode("utf-8-sig")), Refused)


def test_a_huge_file() -> None:
    (complaint,) = complaints_in(SMALL.encode() + b"#" * 600_000)
    assert (complaint.line, complaint.code) == (1, Code.TOO_BIG)
    assert "at most 524,288" in complaint.message


def complaints_in(data: bytes) -> tuple[Complaint, ...]:
    answer = read_campaign(data)
    return answer.complaints if isinstance(answer, Refused) else ()


def test_all_complaints_come_at_once_in_order_of_lines() -> None:
    changes = [("fund: 1000", "fund: 1.5"), ("RESTORE", "CASH"), ("partner: alipay", "partner: x1"), ("18:30", "11:30")]
    found = complaints_about(small(*changes))
    assert [(each.line, each.code) for each in found] == [
        (4, Code.UNQUOTED_DECIMAL),
        (15, Code.BAD_CHOICE),
        (19, Code.UNKNOWN_PARTNER),
        (22, Code.CLOSES_TOO_EARLY),
    ]
    assert found[2].path == "stocks[1].partner"


def test_every_complaint_has_a_case() -> None:
    elsewhere = {Code.TOO_BIG, Code.NOT_UTF8, Code.EXPOSURE_OVER_FUND}
    assert {case[3] for case in CASES} | {case[2] for case in BROKEN_EXTRAS} | elsewhere == set(Code)
