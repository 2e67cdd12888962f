"""Worlds in which the money model and the real checkout are asked the same, step by step, and compared after each.

A world is a list of operations, plain values all of them, so that a list that went wrong can be played again, shortened
and read. Where they come from is another matter (money_draw.py).
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from itertools import islice, permutations, product
from typing import NamedTuple

import asyncpg

import sql
from kernel.clock import business_day
from stack.audit.report import Verdict
from stack.audit.run import audit
from tests.money_model import Account, Model, Voucher
from tests.money_requests import Answer, Confirm, Lock, Redeem, Refund, Request
from tests.money_terms import (
    BUCKETS,
    CAMPAIGNS,
    DEBT_MAX,
    OPENS,
    PEOPLE,
    TERMS,
    VALID_UNTIL,
    bucket_of_person,
    voucher_id_of,
)
from tests.money_till import City, attempts_of, worded

LOOK_EVERY = 16
"""Operations between two looks at every row."""
GUARDED = (
    "voucher",
    "redemption",
    "refund",
    "hold",
    "hold_end",
    "offline_use",
    "transfer",
    "day_close",
    "merchant_day",
)
FIRST_MAX, ORDERS_MAX = 3, 200
HOLD_IS_OVER = {"HOLD_RUN_OUT", "HOLD_CANCELLED", "HOLD_CONFIRMED"}
NOT_PLAYED = {"A6b", "A6d"}
"""Statements about batches of settlement: here the money of shops goes to the bank without one."""
BY_ONE_CLOCK = {"A2d", "A3h", "A3k"}
"""Statements that compare moments which two clocks told: they hold while no clock goes back."""

_drain = sql.load("drain")


class Claim(NamedTuple):
    """Vouchers of a stock for people of one bucket: (place in PEOPLE, serial) each."""

    stock: int
    claims: tuple[tuple[int, int], ...]


class Ask(NamedTuple):
    """Requests that arrive together. `cut_at`: the line is cut there (money_till.Line), and they are sent again."""

    requests: tuple[Request, ...]
    cut_at: int | None = None


class Pass(NamedTuple):
    """Time goes by, or a clock is put back."""

    seconds: int


class Close(NamedTuple):
    """A day is closed, so many days ago."""

    bucket: int
    days: int


class PayOut(NamedTuple):
    """What closed days owe a shop goes to the bank."""

    bucket: int
    campaign: int
    shop: int


class Expire(NamedTuple):
    """A stock runs out; before its time that is an error."""

    bucket: int
    stock: int


class Break(NamedTuple):
    """Somebody tries what no rule allows."""

    campaign: int
    shop: int


Operation = Claim | Ask | Pass | Close | PayOut | Expire | Break


@dataclass
class Played:
    """What was done, over all worlds."""

    worlds: int = 0
    audits: int = 0
    cuts: int = 0
    steps: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return sum(self.steps.values())


class World:
    """A model and a city, from the first voucher on."""

    def __init__(self, city: City, funds_fen: dict[int, int], played: Played) -> None:
        self.city, self.played = city, played
        self.model = Model(funds_fen)
        self.log: list[Operation] = []
        self.serial = 0
        self.went_back = False
        self.doubtful: set[tuple[str, int, str]] = set()
        """Numbers of refused requests that had met others, or a cut: they may be bound to those for good."""
        city.begin(funds_fen)
        self.digest, self.balances = city.state(), city.balances()
        played.worlds += 1

    def run(self, operation: Operation) -> None:
        """One operation on both. AssertionError when they differ."""
        self.log.append(operation)
        kind = type(operation).__name__
        if isinstance(operation, Ask):
            self.played.steps.update(type(request).__name__ for request in operation.requests)
        else:
            self.played.steps[kind] += 1
        steps: dict[type, Callable[..., None]] = {
            Claim: self._claim, Ask: self._ask, Pass: self._pass, Close: self._close, PayOut: self._pay_out,
            Expire: self._expire, Break: self._break,
        }  # fmt: skip
        steps[type(operation)](operation)
        if not isinstance(operation, Ask | Pass):
            self.compare()
        if len(self.log) % LOOK_EVERY == 0:
            self.look()

    # ------------------------------------------------------------ steps

    def _claim(self, claim: Claim) -> None:
        model = self.model
        fresh, bucket = [], bucket_of_person(claim.claims[0][0])
        if (bucket, claim.stock) in model.expired:
            return
        self.serial += 1
        at = OPENS + timedelta(seconds=self.serial)
        for person, serial in claim.claims:
            fresh.append(Voucher(voucher_id_of(claim.stock, person, serial), claim.stock, bucket, person, at))
        claims = [(v.voucher_id, PEOPLE[v.person], f"claim-{v.voucher_id}") for v in fresh]
        self.city.drain(claim.stock, fresh[0].bucket, claims, at, self.serial)
        model.add(fresh)

    def _ask(self, ask: Ask) -> None:
        city, now = self.city, self.model.now
        city.line.cut_at = ask.cut_at
        told = city.ask(ask.requests, now)
        city.line.cut_at = None
        unknown = [request for request, answer in zip(ask.requests, told, strict=True) if answer is None]
        if unknown:
            self.played.cuts += 1
            again = iter(city.ask(unknown, now))
            told = [next(again) if answer is None else answer for answer in told]
        answers = [answer for answer in told if answer is not None]
        assert len(answers) == len(ask.requests), "no answer though the line is whole"
        explained = Explained(self, ask, answers, was_cut=bool(unknown))
        explained.check()
        self.compare(unchanged=not explained.is_changed)
        self.played.answers.update(answer.outcome for answer in answers)

    def _pass(self, move: Pass) -> None:
        self.went_back |= move.seconds < 0
        self.model.now = max(OPENS, self.model.now + timedelta(seconds=move.seconds))

    def _close(self, close: Close) -> None:
        model = self.model
        day = business_day(model.now) - timedelta(days=close.days)
        is_new = day > model.closed.get(close.bucket, date.min)
        assert self.city.close_day(close.bucket, day, model.now) == is_new
        if is_new:
            model.closed[close.bucket] = day

    def _pay_out(self, pay: PayOut) -> None:
        rows = self.city.fetch(
            "SELECT credits_fen - debits_fen AS fen FROM account WHERE (bucket, campaign_no, merchant_no) ="
            " ($1::smallint, $2::smallint, $3::integer) AND kind = 'PAYABLE'",
            *pay,
        )
        if not rows or rows[0]["fen"] <= 0:
            return
        settling, paid = (0, pay.campaign, pay.shop, "SETTLING"), (0, pay.campaign, 0, "PAID")
        where, payable = (pay.bucket, pay.campaign, pay.shop), (pay.bucket, pay.campaign, pay.shop, "PAYABLE")
        for kind, debit, credit in (("SETTLE_HOLD", payable, settling), ("SETTLE_POST", settling, paid)):
            self.serial += 1
            name = f"{kind} {self.serial}"
            self.city.transfer(kind, where, debit[3], credit[3], rows[0]["fen"], name, self.model.now)
            self.model.move(rows[0]["fen"], debit, credit)

    def _expire(self, expire: Expire) -> None:
        model, (bucket, stock) = self.model, expire
        if model.now <= VALID_UNTIL:
            with self.refused(asyncpg.PostgresError):
                self.city.expire(bucket, stock, model.now)
            return
        unused = model.live(bucket, stock)
        assert self.city.expire(bucket, stock, model.now) == unused
        if unused:
            terms = TERMS[stock]
            issued, returned = (bucket, terms.campaign, 0, "ISSUED"), (0, terms.campaign, 0, "RETURNED")
            model.move(unused * terms.funded_fen, issued, returned)
            model.expired.add((bucket, stock))

    def _break(self, attempt: Break) -> None:
        """More than there is leaves no account, and what is written stays written."""
        city, (campaign, shop) = self.city, attempt
        budget_fen = self.model.fen[0, campaign, 0, "BUDGET"]
        with self.refused(asyncpg.CheckViolationError):
            city.execute(_drain["post_issue"], 0, campaign, budget_fen + 1, 1, b"", "too much", self.model.now)
        settling_fen = self.model.fen[0, campaign, shop, "SETTLING"] + 1
        with self.refused(asyncpg.CheckViolationError):
            where = (0, campaign, shop)
            city.transfer("SETTLE_POST", where, "SETTLING", "PAID", settling_fen, "too much", self.model.now)
        for table in GUARDED:
            if city.fetch(f"SELECT FROM {table} LIMIT 1"):
                with self.refused(asyncpg.PostgresError):
                    city.execute(f"DELETE FROM {table}")
                with self.refused(asyncpg.PostgresError):
                    city.execute(f"UPDATE {table} SET bucket = bucket")

    @contextmanager
    def refused(self, error: type[Exception]) -> Iterator[None]:
        """What is inside fails with this error, and leaves nothing."""
        try:
            yield
        except error:
            assert self.city.state() == self.digest, "what was refused left something behind"
        else:
            raise AssertionError("what must be refused was done")

    # ------------------------------------------------------------ what always holds

    def compare(self, *, unchanged: bool = False) -> None:
        """Every balance is the model's, the funds add up, and no shop owes more than it may."""
        model, before = self.model, self.digest
        self.digest = self.city.state()
        assert not unchanged or self.digest == before, "what was refused left something behind"
        if self.digest != before:  # balances are made of those rows, and of nothing else
            self.balances = self.city.balances()
        balances, ours = self.balances, model.balances()
        assert balances == ours, f"balances {_differing(balances, ours)}"
        if self.digest != before:
            self._hold_together()

    def _hold_together(self) -> None:
        model = self.model
        for campaign in CAMPAIGNS:
            assert sum(fen for account, fen in model.fen.items() if account[1] == campaign) == 0
        issued_fen: Counter[tuple[int, int]] = Counter()
        for voucher in model.vouchers.values():
            if voucher.is_live and (voucher.bucket, voucher.stock) not in model.expired:
                issued_fen[voucher.bucket, voucher.terms.campaign] += voucher.terms.funded_fen
        for bucket, campaign in product(range(BUCKETS), CAMPAIGNS):
            assert model.fen[bucket, campaign, 0, "ISSUED"] == issued_fen[bucket, campaign], "ISSUED is not the live"
        for bucket, (shop, debt_fen) in product(range(BUCKETS), DEBT_MAX.items()):
            payable_fen = sum(model.fen[bucket, campaign, shop, "PAYABLE"] for campaign in CAMPAIGNS)
            assert payable_fen >= -debt_fen, f"shop {shop} owes {-payable_fen} fen"

    def look(self) -> None:
        """Every voucher, hold, use and refund is the model's."""
        theirs, ours = self.city.attempts(), attempts_of(self.model)
        assert theirs == ours, f"rows {[pair for pair in zip(theirs, ours, strict=False) if pair[0] != pair[1]][:1]}"

    def audit(self) -> None:
        """The whole audit finds nothing wrong."""
        self.look()
        report = self.city.run(audit(self.city.office))
        self.played.audits += 1
        left_out = NOT_PLAYED | (BY_ONE_CLOCK if self.went_back else set())
        broken = [
            (each.id, each.sentence_en, each.shown)
            for each in report.statements
            if each.verdict is Verdict.BROKEN and each.id not in left_out
        ]
        assert not broken, f"audit: {broken}"


class Explained:
    """Answers to requests that were asked together, explained by some order of them, one at a time."""

    def __init__(self, world: World, ask: Ask, answers: Sequence[Answer], *, was_cut: bool) -> None:
        self.world, self.ask, self.was_cut = world, ask, was_cut
        self.left = list(zip(ask.requests, answers, strict=True))
        self.booked: set[tuple[str, int, str]] = set()
        self.is_changed = False
        kinds = {(type(request), getattr(request, "taken_at", None) is None) for request in ask.requests}
        self.is_rough = was_cut or len(kinds) > 1
        """Requests of several desks overlapped, or were sent twice: the loser of a race may leave its number bound."""

    def check(self) -> None:
        """AssertionError when no order explains them."""
        given = self.left
        done = [place for place, (_, answer) in enumerate(given) if answer.is_done]
        before = self.world.model.kept() if len(done) > 1 else None
        for first in islice(self._orders(done), ORDERS_MAX):
            if first and before is not None:
                self.world.model.put_back(before)
            self.left = [given[place] for place in first]
            self.left += [pair for place, pair in enumerate(given) if place not in first]
            self.booked, self.is_changed = set(), False
            if self._is_explained():
                return
        raise AssertionError("no order explains " + "; ".join(map(self._words, self.left)))

    def _orders(self, done: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """Which of those that were done came first: nobody is sure, but as a rule it does not matter."""
        yield ()
        for size in range(1, min(FIRST_MAX, len(done)) + 1 if len(done) > 1 else 0):
            yield from permutations(done, size)

    def _is_explained(self) -> bool:
        while self.left:
            place = self._next()
            if place is None:
                return False
            del self.left[place]
        return True

    def _next(self) -> int | None:
        """What may have come next. Refusals first: they change nothing, and what was told no may be told yes later."""
        order = sorted(range(len(self.left)), key=lambda place: self.left[place][1].is_done)
        fitting = ((fits, place) for fits in (self._fits, self._may_be) for place in order)
        return next((place for fits, place in fitting if fits(*self.left[place])), None)

    def _fits(self, request: Request, answer: Answer) -> bool:
        """Requests of one number and body that come together are one request, whichever is looked at."""
        alike = {each: None for each in (request, *self.ask.requests) if _body(each) == _body(request)}
        return any(self._is_answer(each, answer) for each in alike)

    def _is_answer(self, request: Request, answer: Answer) -> bool:
        expected, commit = self.world.model.judge(request)
        name = _name(request)
        is_told_twice = expected.is_done and answer.is_done and (self.was_cut or name in self.booked)
        if answer != worded(expected._replace(outcome=answer.outcome) if is_told_twice else expected):
            return False
        if commit is not None:
            commit()
            self.is_changed = True
            self.booked.add(name)
        elif not answer.is_done:
            self._leave_open(request)
        return True

    def _leave_open(self, request: Request) -> None:
        """Refused, and perhaps by a race that another request won: then its numbers may stay bound to it."""
        if self.is_rough or self._is_one_of_several(request):
            self.world.doubtful |= set(_names(request))

    def _is_one_of_several(self, request: Request) -> bool:
        """Refunds of one shop that come together share what it may owe."""
        alike = [each for each in self.ask.requests if isinstance(each, Refund) and each.shop == request.shop]
        return isinstance(request, Refund) and len(alike) > 1

    def _may_be(self, request: Request, answer: Answer) -> bool:
        """Refusals that the rules leave open: debts are judged over all refunds of a batch; whether the hold is over or
        the number is not for it may be told first; and a number may be bound to a request that lost a race."""
        if isinstance(request, Refund) and answer.outcome == "REFUND_DEBT":
            self._leave_open(request)
            return self._is_one_of_several(request)
        if isinstance(request, Confirm) and answer.outcome in HOLD_IS_OVER:
            return self.world.model.judge(request)[0].outcome == "IDEMPOTENCY_MISMATCH"
        names = _names(request)
        if answer.outcome == "IDEMPOTENCY_MISMATCH":
            return names[0] in self.world.doubtful
        return answer.outcome == "ONE_VOUCHER_PER_PAYMENT" and names[-1] in self.world.doubtful

    def _words(self, pair: tuple[Request, Answer]) -> str:
        request, answer = pair
        return f"{request}: {answer}, must be {worded(self.world.model.judge(request)[0])}"


def _name(request: Request) -> tuple[str, int, str]:
    """What a request is known by. A use is one, whether it was redeemed or confirmed."""
    kind = type(request).__name__
    return ("Redeem" if kind == "Confirm" else kind), request.shop, request.number


def _body(request: Request) -> Request:
    """What a number stands for: how long to hold, and when an offline till took it, are no part of it."""
    match request:
        case Redeem():
            return request._replace(taken_at=None)
        case Lock():
            return request._replace(ttl_s=0)
    return request


def _names(request: Request) -> list[tuple[str, int, str]]:
    """Every number of a request that may be bound; its own comes first, its payment's last."""
    order = getattr(request, "order", None)
    return [_name(request), *([("order", request.shop, order)] if order is not None else [])]


def _differing(theirs: dict[Account, int], ours: dict[Account, int]) -> str:
    keys = sorted({key for key in theirs | ours if theirs.get(key) != ours.get(key)}, key=str)
    return ", ".join(f"{key}: {theirs.get(key, 0)}, must be {ours.get(key, 0)}" for key in keys)


# ---------------------------------------------------------------- shorter logs


def shortened(
    log: Sequence[Operation], fails: Callable[[Sequence[Operation]], bool], tries_max: int = 400
) -> list[Operation]:
    """A short list of operations that still fails: pieces are left out, large ones first, then single requests."""
    left, tries, size = list(log), 0, max(1, len(log) // 2)
    while size and tries < tries_max:
        at = len(left)
        while at > 0 and tries < tries_max:
            fewer = left[: max(0, at - size)] + left[at:]
            tries += 1
            if len(fewer) < len(left) and fails(fewer):
                left = fewer
            at -= size
        size //= 2
    for place in range(len(left)):
        while tries < tries_max:
            smaller = _with_one_less(left[place])
            tries += len(smaller)
            found = next((each for each in smaller if fails([*left[:place], each, *left[place + 1 :]])), None)
            if found is None:
                break
            left[place] = found
    return left


def _with_one_less(operation: Operation) -> list[Operation]:
    if not isinstance(operation, Ask) or len(operation.requests) < 2:
        return []
    requests = operation.requests
    return [operation._replace(requests=requests[:n] + requests[n + 1 :]) for n in range(len(requests))]


def replayed(city: City, funds_fen: dict[int, int], log: Sequence[Operation]) -> Exception | None:
    """Plays a log in a world of its own; what went wrong."""
    world = World(city, funds_fen, Played())
    try:
        for operation in log:
            world.run(operation)
        world.look()
    except (AssertionError, asyncpg.PostgresError, ExceptionGroup) as error:
        return error
    return None
