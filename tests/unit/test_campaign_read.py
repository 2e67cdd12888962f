"""What a good campaign file says, and that no file, however odd, makes the reading fail."""

import re
from datetime import datetime, time, timedelta
from itertools import pairwise
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from issuer.campaign.exposure import exposures, largest_exposure
from issuer.campaign.model import Campaign, Funding, Group, PackItem, RedeemCap, Scope, Stage
from issuer.campaign.money_rules import expected_spending_fen
from issuer.campaign.read import Refused, read_campaign
from issuer.campaign.shipped import shipped_document, shipped_names
from kernel.clock import CITY_ZONE
from tests.small_campaign import SMALL, read, small

DOCS = Path(__file__).parents[2] / "docs" / "campaigns.md"


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=CITY_ZONE)


def wuhan() -> Campaign:
    return read(shipped_document("wuhan-2020").decode())


# ---------------------------------------------------------------- a small file


def test_amounts_become_fen_and_times_aware() -> None:
    campaign = read(SMALL)
    first, second = campaign.rounds
    assert (campaign.fund_fen, first.budget_fen) == (100_000, 40_000)
    assert campaign.funding == Funding(city_bp=6_000, platform_bp=3_000, merchant_bp=1_000)
    assert (campaign.rollover, campaign.expected_redemption_bp, campaign.opening_time) == (True, 5_000, time(12))
    assert (first.opens_at, first.closes_at) == (at("2020-04-23 12:00"), at("2020-04-23 23:59:59"))
    assert second.closes_at == at("2020-04-30 18:30")
    assert first.opens_at.utcoffset() == timedelta(hours=8)


def test_validity_counts_the_day_of_opening() -> None:
    first, second = read(SMALL).rounds
    assert first.valid_until == at("2020-04-29 23:59:59")
    assert second.valid_until == at("2020-05-06 23:59:59")


def test_validity_may_be_a_date_or_a_rounds_own() -> None:
    until = small(("{days: 7}", "{until: 2020-07-31}"), ("budget: 400}", "budget: 400, valid_until: 2020-04-25 20:00}"))
    assert [each.valid_until for each in read(until).rounds] == [at("2020-04-25 20:00"), at("2020-07-31 23:59:59")]


def test_validity_from_the_claim_ends_with_the_last_claims_last_day() -> None:
    days = ("{days: 7}", "{days_after_claim: 3}")
    first, second = read(small(days)).rounds
    assert (first.valid_days, first.valid_until) == (3, at("2020-04-25 23:59:59"))
    assert (second.valid_days, second.valid_until) == (3, at("2020-05-02 23:59:59"))
    for until, ends in (("2020-05-01 20:00", "2020-05-01 20:00"), ("2020-05-03", "2020-05-02 23:59:59")):
        bounded = read(small((days[0], f"{{days_after_claim: 3, until: {until}}}")))
        assert bounded.rounds[1].valid_until == at(ends)
    own = read(small(days, ("budget: 400}", "budget: 400, valid_until: 2020-04-24}")))
    assert own.rounds[0].valid_until == at("2020-04-24 23:59:59")
    assert {each.valid_days for each in read(SMALL).rounds} == {None}


def test_the_example_in_the_docs_is_a_good_one() -> None:
    example = DOCS.read_text(encoding="utf-8").partition("```yaml\n")[2].partition("```")[0]
    keys = [line.partition(":")[0] for line in example.splitlines() if line[0].isalpha()]
    rest = re.split(
        "(?m)^(?=[a-z])", small(("fund: 1000", "fund: 99999"), text=SMALL.replace("budget: 400", "budget: 12000"))
    )
    campaign = read("".join(part for part in rest if part.partition(":")[0] not in keys) + example)
    assert [scope.scope_id for scope in campaign.scopes] == ["old-town", "night-market"]
    assert (campaign.offer.refund_policy, campaign.offer.till_code) == ("PAID_SHARE", "ROTATING")


def test_what_is_not_said_about_the_till_means_what_it_always_meant() -> None:
    campaign = read(SMALL)
    assert (campaign.offer.stacks_with, campaign.offer.till_code) == (("SHOP", "PLATFORM"), "ANY")
    assert (campaign.scopes, campaign.redeem_caps) == ((), ())


def test_an_offset_may_be_written_when_it_is_the_zones() -> None:
    assert read(small(("opens: 2020-04-23 12:00", "opens: 2020-04-23T12:00:00+08:00"))) == read(SMALL)


def test_a_stock_has_a_name_a_minimum_and_what_the_fund_pays() -> None:
    wechat, alipay = read(SMALL).rounds[0].stocks
    assert (wechat.stock_id, alipay.stock_id) == ("small-2020_r1_wechat_dining", "small-2020_r1_alipay_dining")
    assert (wechat.transaction_minimum_fen, alipay.transaction_minimum_fen) == (6_000, 7_000)
    assert (wechat.funded_fen, alipay.funded_fen) == (1_800, 1_845)
    assert (wechat.total_face_fen, wechat.exposure_fen, wechat.least_spending_fen) == (20_000, 18_000, 60_000)


def test_a_round_scales_the_template_and_replaces_lines() -> None:
    own = "[{partner: wechat, category: dining, face: 10, quantity: 5}]"
    scaled_up, replaced = read(
        small(("budget: 400}", "budget: 600, scale: 155}"), ("budget: 400}", f"budget: 400, stocks: {own}}}"))
    ).rounds
    assert [stock.quantity for stock in scaled_up.stocks] == [16, 15]
    assert [(stock.quantity, stock.face_value_fen) for stock in replaced.stocks] == [(5, 1_000), (10, 2_050)]


def test_a_round_takes_a_stock_out() -> None:
    own = "[{partner: wechat, category: dining, face: 10, quantity: 0}]"
    first, _ = read(small(("budget: 400}", f"budget: 400, stocks: {own}}}"))).rounds
    assert [stock.partner_id for stock in first.stocks] == ["alipay"]


def test_live_money_ends_with_the_last_second_of_validity() -> None:
    text = small(("closes: 2020-04-23,", "closes: 2020-04-23, valid_until: 2020-04-30 12:00,"))
    first, both = exposures(read(text).rounds)
    assert (first.budget_fen, both.budget_fen) == (40_000, 80_000)
    assert [each.budget_fen for each in exposures(read(SMALL).rounds)] == [40_000, 40_000]


# ---------------------------------------------------------------- Wuhan, 2020


def test_wuhan_comes_along() -> None:
    assert shipped_names() == ["city-tour", "wuhan-2020"]


def test_wuhans_totals() -> None:
    campaign = wuhan()
    assert campaign.fund_fen == 500_000_000_00
    assert len(campaign.rounds) == 15
    assert campaign.quantity == 43_005_000
    assert campaign.total_face_fen == campaign.budgets_fen == campaign.exposure_fen == 836_130_000_00
    assert expected_spending_fen(campaign, list(campaign.rounds)) == 484_955_400_00


def test_wuhans_rounds_are_at_noon_on_one_sunday_and_then_thursdays() -> None:
    rounds = wuhan().rounds
    assert rounds[0].opens_at == at("2020-04-19 12:00")
    assert rounds[0].opens_at.isoweekday() == 7
    assert {each.opens_at.isoweekday() for each in rounds[1:]} == {4}
    assert {earlier.opens_at + timedelta(days=7) == later.opens_at for earlier, later in pairwise(rounds[1:])} == {True}
    assert rounds[0].valid_until == rounds[1].valid_until == at("2020-04-29 23:59:59")
    assert rounds[-1].valid_until == at("2020-07-29 23:59:59")


def test_wuhans_offers() -> None:
    campaign = wuhan()
    assert [partner.partner_id for partner in campaign.partners] == ["wechat", "alipay", "meituan"]
    assert len(campaign.categories) == 4
    for each in campaign.rounds:
        assert len(each.stocks) == 12
        for stock in each.stocks:
            assert 10_00 <= stock.face_value_fen <= 80_00
            assert stock.transaction_minimum_fen == 3 * stock.face_value_fen
            assert stock.funded_fen == stock.face_value_fen


def test_wuhans_money_is_there_at_every_opening() -> None:
    """If 58 of 100 vouchers are used, no round asks for more than earlier rounds have left."""
    campaign = wuhan()
    largest = largest_exposure(campaign.rounds)
    assert largest is not None
    assert [each.round_id for each in largest.rounds] == ["r01", "r02"]
    for exposure in exposures(campaign.rounds):
        over = [each for each in campaign.rounds if each.valid_until < exposure.at]
        assert expected_spending_fen(campaign, over) + exposure.budget_fen <= campaign.fund_fen


def test_wuhan_has_the_one_limit_and_nothing_new() -> None:
    campaign = wuhan()
    assert (campaign.per_person_round_and_partner, campaign.per_person_and_round) == (1, None)
    assert (campaign.face_per_person_fen, campaign.groups) == (None, ())
    assert {(each.packs, each.stages) for each in campaign.rounds} == {((), ())}
    assert {partner.claims_per_s_max for partner in campaign.partners} == {None}


# ---------------------------------------------------------------- limits, groups, packs, stages


def test_the_city_tour_has_all_there_is() -> None:
    campaign = read(shipped_document("city-tour").decode())
    assert (campaign.per_person_round_and_partner, campaign.per_person_and_round) == (1, 2)
    assert campaign.face_per_person_fen == 300_00
    assert campaign.groups == (Group(group_id="big-ticket", per_person=1),)
    assert [partner.claims_per_s_max for partner in campaign.partners] == [5_000, 5_000]
    assert campaign.redeem_caps == (
        RedeemCap(period="MONTH", is_per_partner=True, face_fen_max=150_00),
        RedeemCap(period="MONTH", is_per_partner=False, face_fen_max=200_00),
        RedeemCap(period="CAMPAIGN", is_per_partner=False, face_fen_max=250_00),
    )
    assert (campaign.offer.stacks_with, campaign.offer.till_code) == (("SHOP",), "ANY")
    assert campaign.scopes == (Scope(scope_id="old-town", districts=("Jiang'an", "Jianghan", "Wuchang")),)
    may, june, autumn = campaign.rounds
    assert [stock.category_id for stock in may.stocks if stock.scope_id] == ["museums"]
    assert (may.valid_days, may.valid_until) == (30, at("2021-06-01 23:59:59"))
    assert [(stock.partner_id, stock.category_id) for stock in may.stocks if stock.group_id] == [
        ("wechat", "hotels"),
        ("alipay", "hotels"),
    ]
    assert [stock.stock_id for stock in may.stocks if stock.is_granted] == ["city-tour_may_wechat_groceries"]
    assert [(pack.pack_id, pack.group_id, pack.is_granted, pack.vouchers) for pack in may.packs] == [
        ("city-tour_may_wechat_weekend", "big-ticket", False, 3),
        ("city-tour_may_wechat_family", None, False, 6),
        ("city-tour_may_wechat_welcome", None, True, 3),
    ]
    assert may.packs[0].items == (
        PackItem(stock_id="city-tour_may_wechat_dining", quantity=2),
        PackItem(stock_id="city-tour_may_wechat_hotels", quantity=1),
    )
    assert [may.face_of(pack) for pack in may.packs] == [140_00, 80_00, 70_00]
    assert (len(june.packs), autumn.packs) == (3, ())
    assert may.stages == autumn.stages == (stage(0, 5_000), stage(180, 8_000), stage(600, 10_000))
    assert june.stages == (stage(0, 3_333), stage(86_400, 6_666), stage(129_600, 10_000))


def stage(after_s: int, share_bp: int) -> Stage:
    return Stage(after_s=after_s, share_bp=share_bp)


def test_a_rounds_own_line_says_all_there_is() -> None:
    """Group and granted of the template do not reach through a line that takes its place."""
    grouped = ("offer: {min", "groups: [{id: big, per_person: 1}]\noffer: {min")
    own = "budget: 400, stocks: [{partner: wechat, category: dining, face: 20, quantity: 5}]}\n  - {id: r2"
    text = small(
        grouped, ("quantity: 10}", "quantity: 10, group: big, granted: yes}"), ("budget: 400}\n  - {id: r2", own)
    )
    first, second = (each.stocks[0] for each in read(text).rounds)
    assert (first.group_id, first.is_granted, first.quantity) == (None, False, 5)
    assert (second.group_id, second.is_granted, second.quantity) == ("big", True, 10)


# ---------------------------------------------------------------- odd files


def is_answered(data: bytes) -> None:
    answer = read_campaign(data)
    if isinstance(answer, Refused):
        assert answer.complaints == tuple(sorted(answer.complaints))
        assert answer.complaints
        lines = len(re.split("\r\n|[\n\r\x85\u2028\u2029]", data.decode(errors="replace")))
        assert all(1 <= each.line <= lines and each.message for each in answer.complaints)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_answered(data: bytes) -> None:
    is_answered(data)


LINES = SMALL.splitlines()
FILES = st.sampled_from([LINES, [line for line in shipped_document("city-tour").decode().splitlines() if line]])
WORDS = st.sampled_from(
    ["", "~", "{}", "[]", "[{}]", "[[1]]", "-1", "1.5", "'0'", "2020-02-30", "0x10", "yes", "?", "{a: 1}", "- 1"]
)


@settings(deadline=None)
@given(FILES, st.integers(0, 99), st.integers(0, 60), st.integers(0, 60), WORDS)
def test_a_file_with_a_part_replaced_is_answered(file: list[str], line: int, start: int, end: int, word: str) -> None:
    lines, line = file.copy(), line % len(file)
    lines[line] = lines[line][:start] + word + lines[line][max(start, end) :]
    is_answered("\n".join(lines).encode())


@settings(deadline=None)
@given(FILES, st.integers(0, 99), WORDS)
def test_a_file_with_a_value_replaced_is_answered(file: list[str], line: int, word: str) -> None:
    lines, line = file.copy(), line % len(file)
    lines[line] = lines[line].partition(":")[0] + ": " + word
    is_answered("\n".join(lines).encode())


@settings(deadline=None)
@given(st.lists(st.sampled_from(LINES), max_size=30))
def test_a_shuffled_file_is_answered(lines: list[str]) -> None:
    is_answered("\n".join(lines).encode())
