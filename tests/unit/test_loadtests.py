"""The load test's own parts. Locust patches sockets for gevent, so its file is tried in a process of its own."""

import hmac
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from kernel.signing import Algorithm, ApiKey, Caller, Signed, parse_authorization, text_to_sign, verify
from loadtests.answer import Answer, read_answer
from loadtests.audit import Book, check_limit, check_stocks
from loadtests.citizen import TRIES_MAX, Citizen, Habit, Life, Story, make_citizen
from loadtests.client_log import ClientLog, Line, read_lines
from loadtests.latency import Histogram
from loadtests.plan import Partner, Plan, PlanError, Stock, read_plan
from loadtests.signing import Signer
from loadtests.wall import OPEN_BEFORE_S, RUSH_S, Wall
from stack.audit import AuditReport, ClaimTold, ClientLogReport, StatementReport, Verdict, read_log
from stack.load import verdict

ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 7, 2, 4, 0, tzinfo=UTC)
HMAC_SECRET = bytes(range(32))
WECHAT = Partner(partner_id="wechat", serial_no="A" * 20, algorithm="HMAC-SHA256", secret=HMAC_SECRET.hex(), share=3)
PLAN = Plan(
    run_id="run00001",
    base_url="http://127.0.0.1:1",
    noon_ms=int(NOW.timestamp() * 1000),
    seconds=8,
    citizens=2_000,
    seed=7,
    partners=[WECHAT],
    stocks=[
        Stock(stock_id="dining", partner_id="wechat", quantity=30),
        Stock(stock_id="malls", partner_id="wechat", quantity=10),
    ],
)


# ---------------------------------------------------------------- signatures


def caller_of(header: str, key: ApiKey, method: str, path: str, body: bytes, now: datetime = NOW) -> object:
    signed = parse_authorization(header)
    assert isinstance(signed, Signed), signed
    return verify(signed, key, text_to_sign(method, path, signed.timestamp, signed.nonce, body), now)


def api_key(partner: Partner, secret: object) -> ApiKey:
    return ApiKey(
        serial_no=partner.serial_no,
        caller=Caller(kind="partner", holder_id=partner.partner_id, holder_no=1),
        algorithm=Algorithm(partner.algorithm),
        secret=secret,  # type: ignore[arg-type]
        not_before=NOW - timedelta(days=1),
        not_after=NOW + timedelta(days=1),
    )


def rsa_partner() -> tuple[Partner, ApiKey]:
    private = generate_private_key(public_exponent=65537, key_size=2048)
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    partner = Partner(partner_id="alipay", serial_no="B" * 20, algorithm="RSA-2048-SHA256", secret=pem, share=1)
    return partner, api_key(partner, private.public_key())


@pytest.mark.parametrize("pair", [(WECHAT, api_key(WECHAT, HMAC_SECRET)), rsa_partner()], ids=["hmac", "rsa"])
def test_the_server_takes_our_signatures_and_no_altered_one(pair: tuple[Partner, ApiKey]) -> None:
    partner, key = pair
    body, timestamp_s = '{"person":"人"}'.encode(), int(NOW.timestamp())
    header = Signer(partner).header("POST", "/v1/claims?a=1", body, timestamp_s)
    assert caller_of(header, key, "POST", "/v1/claims?a=1", body) == key.caller
    assert caller_of(header, key, "POST", "/v1/claims?a=1", body + b" ") != key.caller
    assert caller_of(header, key, "POST", "/v1/claims?a=2", body) != key.caller
    assert caller_of(header, key, "GET", "/v1/claims?a=1", body) != key.caller
    assert caller_of(header, key, "POST", "/v1/claims?a=1", body, NOW + timedelta(minutes=6)) != key.caller


def test_two_signatures_of_one_request_differ() -> None:
    signer = Signer(WECHAT)
    assert signer.header("GET", "/", b"", 1) != signer.header("GET", "/", b"", 1)


# ---------------------------------------------------------------- the wall


def test_people_trickle_in_then_stand_like_a_wall_and_leave() -> None:
    wall = Wall(citizens=10_000, seconds=8)
    assert wall.people_at(-60) == wall.people_at(-OPEN_BEFORE_S - 0.01) == wall.early == 100
    assert wall.people_at(-OPEN_BEFORE_S) == wall.people_at(0) == wall.people_at(5.99) == 10_000
    tail = [wall.people_at(at / 10) for at in range(60, 81)]
    assert tail[0] < 10_000 and tail[-1] == 0
    assert all(later <= earlier for earlier, later in pairwise(tail))
    assert len(set(tail)) == 5


def test_most_press_within_a_second_and_a_half_and_a_few_before_noon() -> None:
    wall, random = Wall(citizens=10_000, seconds=8), Random(1)
    presses = [wall.press_s(number, random) for number in range(10_000)]
    assert sum(press < 0 for press in presses) == wall.early
    assert 0.78 < sum(0 <= press <= RUSH_S for press in presses) / len(presses) < 0.82
    halves = Counter(press < RUSH_S / 2 for press in presses if 0 <= press <= RUSH_S)
    assert halves[True] > 2 * halves[False]
    assert max(presses) <= 8


TICKS = """
from types import SimpleNamespace
from pathlib import Path
from loadtests import noon_rush
from loadtests.plan import read_plan

rush = noon_rush.Rush(read_plan(Path("{plan}")), Path("."))
rush.of = 3
shape = noon_rush.Noon()
shape.runner = SimpleNamespace(environment=SimpleNamespace(rush=rush), user_count=5)
for now_s in (-10, -1, 0, 5, 7, 8):
    rush.now_s = lambda: now_s
    print(shape.tick())
shape.runner.user_count = 0
print(shape.tick())
"""


def test_locust_asks_the_wall_how_many_to_have(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(msgspec.json.encode(PLAN))
    script = TICKS.format(plan=tmp_path / "plan.json")
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    # Rounded up to three processes; the run ends once the last one has gone.
    expected = [(21, 2000.0), (2001, 2000.0), (2001, 2000.0), (2001, 2000.0), (801, 2000.0), (0, 2000.0), None]
    assert done.stdout.splitlines() == [str(tick) for tick in expected], done.stderr


TURNS = """
import gevent
from loadtests.turns import Turns

turns, order = Turns(1), []

def go(name):
    with turns:
        order.append(name)
        gevent.sleep(0.01)

people = [gevent.spawn(go, name) for name in "abcde"]
gevent.sleep(0)
people[2].kill()
people[0].join()
late = gevent.spawn(go, "late")  # comes by just as a turn is handed on
people[1].kill()  # has been called, and never came
gevent.joinall([*people, late])
print(*order)
gevent.spawn(go, "last").join()
print(*order)
"""


def test_connections_go_round_in_order_and_none_is_lost_with_the_one_who_waited() -> None:
    done = subprocess.run([sys.executable, "-c", TURNS], cwd=ROOT, capture_output=True, text=True, check=False)
    first, second = done.stdout.splitlines()
    assert first in ("a d e late", "a b d e late"), done.stderr
    assert second == f"{first} last"


# ---------------------------------------------------------------- what people do


class World:
    """Answers claims from a script; time passes only in sleeps."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, str]] = []
        self.dues_s: list[float] = []
        self.now_s = -10.0

    def ask(self, stock_id: str, number: str, due_s: float) -> Answer:
        self.asked.append((stock_id, number.rpartition("-")[2]))
        self.dues_s.append(due_s)
        assert self.now_s == pytest.approx(due_s)
        return self.answers.pop(0)

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def together(self, calls: Sequence[Callable[[], Answer]]) -> list[Answer]:
        return [call() for call in calls]

    def play(self, habit: Habit = Habit.ONCE) -> Answer:
        life = Life(self.ask, lambda: self.now_s, self.sleep, self.together)
        return Story(citizen(habit), PLAN.run_id, life).play()


def citizen(habit: Habit) -> Citizen:
    made = make_citizen(PLAN, 1_000)
    return msgspec.structs.replace(made, habit=habit, stock_ids=("dining", "malls"), press_s=0.25)


WON = Answer(status=200, voucher_code="CODE")
LOST = read_answer(0, b"", {})
SOLD_OUT = Answer(status=409, code="SOLD_OUT")
ALREADY = Answer(status=409, code="USER_ALREADY_CLAIMED")


def problem(code: str, status: int, retry: str, **headers: str) -> Answer:
    body = json.dumps({"code": code, "retry": retry}).encode()
    return read_answer(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


def test_a_press_is_due_at_its_moment_and_a_win_ends_the_story() -> None:
    world = World([WON])
    assert world.play() is WON
    assert world.asked == [("dining", "1")]
    assert world.dues_s == [0.25]


def test_what_is_safe_is_sent_again_under_the_same_number_after_the_time_asked_for() -> None:
    world = World([problem("NOT_STARTED", 409, "SAFE", Retry_After="3"), LOST, problem("X", 503, "SAFE"), WON])
    assert world.play() is WON
    assert world.asked == [("dining", "1")] * 4
    assert world.dues_s[1] == 3.25
    assert all(later > earlier for earlier, later in pairwise(world.dues_s))


def test_trying_again_has_an_end() -> None:
    world = World([LOST] * 99)
    assert world.play() is LOST
    assert len(world.asked) == TRIES_MAX


def test_a_sold_out_category_leads_to_the_next_under_a_new_number_and_other_refusals_to_the_end() -> None:
    world = World([SOLD_OUT, SOLD_OUT])
    assert world.play() is SOLD_OUT
    assert world.asked == [("dining", "1"), ("malls", "2")]
    world = World([ALREADY])
    assert world.play() is ALREADY


def test_two_taps_are_two_numbers_and_one_asks_again_with_the_same() -> None:
    world = World([ALREADY, WON])
    assert world.play(Habit.TWICE) is WON
    assert world.asked == [("dining", "1"), ("dining", "2")]
    world = World([WON, WON])
    assert world.play(Habit.AGAIN) is WON
    assert world.asked == [("dining", "1"), ("dining", "1")]


def test_an_answer_that_is_no_json_may_be_repeated_only_if_a_server_failed() -> None:
    assert read_answer(502, b"<html>", {}).is_safe_to_repeat
    assert not read_answer(404, b"<html>", {}).is_safe_to_repeat
    assert problem("SOLD_OUT", 409, "NEVER") == SOLD_OUT


def test_one_seed_makes_one_crowd_and_shares_are_kept() -> None:
    crowd = [make_citizen(PLAN, number) for number in range(500)]
    assert [one.press_s for one in crowd] == [make_citizen(PLAN, number).press_s for number in range(500)]
    assert len({one.person_token for one in crowd}) == 500
    assert len({one.device_token for one in crowd}) < 500
    first_wishes = Counter(one.stock_ids[0] for one in crowd)
    assert first_wishes["dining"] > 2 * first_wishes["malls"]
    assert {one.habit for one in crowd} == set(Habit)
    other = make_citizen(msgspec.structs.replace(PLAN, run_id="run00002"), 0)
    assert other.person_token != crowd[0].person_token


# ---------------------------------------------------------------- figures and logs


def test_quantiles_are_within_a_percent_and_histograms_add_up() -> None:
    random, whole, parts = Random(3), Histogram(), [Histogram(), Histogram()]
    values = sorted(random.lognormvariate(2, 1.5) for _ in range(5_000))
    for place, value in enumerate(values):
        whole.add(value)
        parts[place % 2].add(value)
    for share in (0.5, 0.9, 0.99, 1.0):
        exact = values[int(share * len(values)) - 1]
        assert exact * 0.999 <= whole.quantile_ms(share) <= exact * 1.011
    parts[0].merge(json.loads(json.dumps(parts[1].to_send())))
    assert parts[0].summary_ms() == whole.summary_ms()
    assert Histogram().summary_ms() == {"p50": 0.0, "p99": 0.0, "max": 0.0}


def line(number: str, outcome: str = "GRANTED", code: str | None = None, **other: str) -> Line:
    return Line(
        outcome=outcome,
        partner_id="wechat",
        person_token=other.get("person", hmac.digest(b"", number.encode(), "md5").hex()),
        stock_id=other.get("stock", "dining"),
        out_request_no=number,
        voucher_code=code,
        at_ms=1_000,
        called_ms=1.5,
        pressed_ms=2.5,
    )


def test_the_client_log_is_what_the_ledgers_audit_reads(tmp_path: Path) -> None:
    lines = [line("n-1", code="C1"), line("n-2", "SOLD_OUT"), line("n-3", "UNKNOWN")]
    with ClientLog(tmp_path / "told.jsonl") as log:
        for one in lines:
            log.add(one)
    assert list(read_lines(tmp_path / "told.jsonl")) == lines
    told = list(read_log(tmp_path / "told.jsonl"))
    assert [type(one) for one in told] == [ClaimTold] * 3
    assert [one.is_unknown for one in told] == [False, False, True]
    assert (tmp_path / "told.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_quiet_minute_is_told_as_it_was() -> None:
    book = Book(PLAN)
    book.read([line("n-1", "UNKNOWN"), line("n-1", code="C1"), line("n-1", code="C1"), line("n-2", "SOLD_OUT")])
    assert not book.one_code.violations and not book.one_owner.violations
    figures = book.summed_up()
    assert (figures.presses, figures.calls, figures.wins, figures.lost_answers) == (2, 4, 1, 1)
    assert (figures.repeated_answers, figures.refusals) == (1, {"SOLD_OUT": 1})
    assert figures.called_ms["max"] == 1.5 and figures.pressed_ms["max"] == 2.5


def test_clients_see_two_codes_for_a_number_and_one_code_for_two() -> None:
    book = Book(PLAN)
    book.read([line("n-1", code="C1"), line("n-1", code="C2"), line("n-2", code="C1")])
    assert book.one_code.shown == ["wechat/n-1: C1 and C2"]
    assert book.one_owner.shown == ["C1: wechat/n-1 and wechat/n-2"]


def test_clients_see_too_many_and_too_few_and_whoever_has_more() -> None:
    book = Book(PLAN)
    book.read(line(f"n-{i}", code=f"C{i}") for i in range(31))
    book.read([line("m-1", code="M1", stock="malls"), line("m-2", "SOLD_OUT", stock="malls")])
    over, under = check_stocks(book)
    assert (over.violations, over.shown) == (1, ["dining: 31 of 30"])
    assert (under.violations, under.shown) == (9, ["malls: 1 of 10"])
    assert not check_limit(book).violations
    book.read([line("x-1", code="X1", person="ab"), line("x-2", code="X2", person="ab")])
    assert check_limit(book).shown == ["wechat, person ab: X1, X2"]


def statement(name: str, violations: int) -> StatementReport:
    return StatementReport(
        id=name,
        sentence_en="",
        sentence_zh="",
        verdict=Verdict.BROKEN if violations else Verdict.HOLDS,
        examined=1,
        violations=violations,
        shown=(f"{name} is broken",) * bool(violations),
        remark_en=None,
        remark_zh=None,
        elapsed_ms=0,
    )


def weighed(broken: str = "", told: int = 0, seen: str = "") -> verdict.Verdict:
    """Both audits as one, with one violation each of a statement of the ledger and of a clients' check."""
    names = ("A1a", "A1b", "A1g", "A2a", "A2b")
    books = AuditReport(taken_at=NOW, statements=tuple(statement(name, name == broken) for name in names), elapsed_s=0)
    checks = [
        {"id": name, "sentence": "", "examined": 1, "violations": int(name == seen), "shown": ["?"] * (name == seen)}
        for name in ("one-code", "one-owner", "resolved", "kept", "oversold", "undersold", "limit")
    ]
    figures = msgspec.to_builtins(Book(PLAN).summed_up())
    clients = msgspec.convert({"holds": not seen, "figures": figures, "checks": checks}, verdict.Clients)
    log = ClientLogReport(violations=told, shown=["not there"] * bool(told))
    return verdict.weigh(clients, books, log)


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ({"broken": "A1b"}, "oversold"),
        ({"seen": "oversold", "broken": "A1b"}, "oversold"),
        ({"broken": "A1g", "told": 1}, "undersold"),
        ({"seen": "undersold"}, "undersold"),
        ({"told": 1}, "missing"),
        ({"seen": "kept"}, "missing"),
        ({"seen": "resolved"}, "missing"),
        ({"broken": "A2a"}, "doubled"),
        ({"broken": "A2b"}, "doubled"),
        ({"seen": "one-code"}, "doubled"),
        ({"seen": "one-owner"}, "doubled"),
        ({"seen": "limit"}, "doubled"),
        ({"broken": "A1a"}, None),
    ],
)
def test_every_wrong_fails_the_run_and_has_its_name(wrong: dict[str, Any], found: str | None) -> None:
    whole = weighed(**wrong)
    counts = {name: getattr(whole, name) for name in ("oversold", "undersold", "missing", "doubled")}
    assert counts == {name: int(name == found) for name in counts}
    assert whole.wrong and not whole.holds


def test_a_sound_run_holds() -> None:
    assert weighed().holds


@pytest.mark.parametrize(
    ("change", "complaint"),
    [({"citizens": 0}, "citizens"), ({"stocks": []}, "stocks"), ({"colour": "red"}, "colour"), ({"seed": "x"}, "seed")],
)
def test_a_plan_that_cannot_be_played_is_refused(tmp_path: Path, change: dict[str, object], complaint: str) -> None:
    file = tmp_path / "plan.json"
    file.write_bytes(msgspec.json.encode(msgspec.to_builtins(PLAN) | change))
    with pytest.raises(PlanError, match=complaint):
        read_plan(file)


def test_a_plan_needs_stocks_for_every_partner(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    lonely = msgspec.structs.replace(WECHAT, partner_id="meituan")
    file.write_bytes(msgspec.json.encode(msgspec.structs.replace(PLAN, partners=[WECHAT, lonely])))
    with pytest.raises(PlanError, match="meituan"):
        read_plan(file)
    with pytest.raises(PlanError, match="cannot read"):
        read_plan(tmp_path / "none.json")
