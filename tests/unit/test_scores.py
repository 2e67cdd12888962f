"""Points and what may follow: the ladder, the caps, and that no single family ever refuses anybody."""

import itertools

import msgspec
import pytest

from antifraud.finding import Family, Finding, Reason, SubjectKind
from antifraud.judge import Judge
from antifraud.rules import RuleSet
from antifraud.scores import Block, ScoreRules, Scores, Verdict, score_of, verdict_of
from antifraud.signals import ClaimSignal, Signal

DAY_MS = 86_400_000
ME = "ab" * 16


def finding(family: Family, points: int = 40, at_ms: int = 0, people: tuple[str, ...] = (ME,)) -> Finding:
    reason = Reason(code="SEEN", value=9, threshold=3, window_s=60, evidence=(), zh="见", en="seen")
    return Finding(
        subject_kind=SubjectKind.DEVICE,
        subject="00" * 8,
        detector="SEEN",
        family=family,
        points=points,
        reason=reason,
        people=people,
        since_ms=at_ms,
        at_ms=at_ms,
    )


@pytest.mark.parametrize(
    ("points", "verdict"),
    [
        ({}, Verdict.ALLOW),
        ({Family.IDENTITY: 39}, Verdict.ALLOW),
        ({Family.IDENTITY: 40}, Verdict.STEP_UP),
        ({Family.IDENTITY: 1000}, Verdict.STEP_UP),
        ({Family.NETWORK: 1000}, Verdict.ALLOW),
        ({Family.IDENTITY: 40, Family.TEMPO: 29}, Verdict.STEP_UP),
        ({Family.IDENTITY: 40, Family.TEMPO: 30}, Verdict.HOLD),
        ({Family.IDENTITY: 40, Family.TEMPO: 40}, Verdict.HOLD),
        ({Family.IDENTITY: 40, Family.TEMPO: 40, Family.GRAPH: 9}, Verdict.HOLD),
        ({Family.IDENTITY: 40, Family.TEMPO: 40, Family.GRAPH: 10}, Verdict.BLOCK),
        ({Family.IDENTITY: 40, Family.TEMPO: 40, Family.NETWORK: 20}, Verdict.BLOCK),
    ],
)
def test_the_ladder(points: dict[Family, int], verdict: Verdict) -> None:
    assert verdict_of(points) is verdict


def test_no_two_families_ever_block() -> None:
    for pair in itertools.combinations(Family, 2):
        assert verdict_of(dict.fromkeys(pair, 1_000)) is not Verdict.BLOCK


def test_two_families_besides_network_must_speak_whatever_the_threshold() -> None:
    lenient = ScoreRules(block_min=60)
    assert verdict_of({Family.NETWORK: 20, Family.IDENTITY: 40}, lenient) is not Verdict.BLOCK
    assert verdict_of({Family.TEMPO: 20, Family.IDENTITY: 40}, lenient) is Verdict.BLOCK


def test_a_score_never_exceeds_100() -> None:
    assert score_of(dict.fromkeys(Family, 40)) == 100


def blocks(scores: Scores, *findings: Finding) -> list[Block]:
    return [block for one in findings for block in scores.add(one)]


def test_a_person_is_blocked_once_with_all_reasons() -> None:
    scores = Scores()
    families = (Family.IDENTITY, Family.TEMPO, Family.GRAPH)
    placed = blocks(scores, *(finding(family, at_ms=7 + i) for i, family in enumerate(families * 3)))
    assert [(one.person, one.points, len(one.reasons)) for one in placed] == [(ME, 100, 3)]
    assert placed[0].since_ms == 7


def test_the_same_family_twice_counts_once() -> None:
    scores = Scores()
    assert not blocks(scores, *(finding(Family.IDENTITY) for _ in range(9)))
    assert scores.points_of(ME) == {Family.IDENTITY: 40}


def test_evidence_expires_after_30_days() -> None:
    late = finding(Family.GRAPH, at_ms=31 * DAY_MS)
    assert not blocks(Scores(), finding(Family.IDENTITY), finding(Family.TEMPO), late)


def test_the_number_of_people_remembered_is_bounded() -> None:
    scores = Scores(ScoreRules(people_max=10))
    for i in range(100):
        scores.add(finding(Family.IDENTITY, people=(f"{i:032x}",)))
    assert len(scores._people) == 10


def claim(number: int, on: str, at_ms: int) -> Signal:
    return ClaimSignal(at_ms, f"{number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128:032x}", on, 1, 1, "GRANTED")


def test_one_farm_phone_is_flagged_but_blocks_nobody() -> None:
    cases = Judge(RuleSet()).hear(claim(i + 1, "9f" * 8, i * 1_000) for i in range(30))
    assert {one.detector for one in cases.findings} == {"DEVICE_PEOPLE", "DEVICE_PACE"}
    assert not cases.blocks


def test_people_who_move_quickly_over_two_farm_phones_are_blocked() -> None:
    phones = enumerate(("9f" * 8, "e1" * 8), start=1)
    tries = [claim(i + 1, phone, n * 60_000 + i * 1_000) for n, phone in phones for i in range(15)]
    cases = Judge(RuleSet()).hear(tries)
    assert len(cases.blocks) == 15
    codes = {reason.code for reason in cases.blocks[0].reasons}
    assert codes == {"DEVICE_PEOPLE", "DEVICE_PACE", "DEVICE_RING"}


def test_every_reason_names_its_rules_and_another_threshold_is_another_name() -> None:
    rules = RuleSet()
    cases = Judge(rules).hear(claim(i + 1, "9f" * 8, i * 1_000) for i in range(30))
    assert {one.reason.rule_set for one in cases.findings} == {rules.name()}
    other = msgspec.structs.replace(rules, scores=ScoreRules(penalty_days=29))
    assert other.name() != rules.name()
    assert RuleSet().name() == rules.name()


def test_a_judge_looks_back_as_far_as_its_most_patient_detector() -> None:
    assert Judge(RuleSet()).reach_s == 7 * 86_400
