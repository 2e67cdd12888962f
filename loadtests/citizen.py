"""One person at noon: who they are, what they want, and what they do with each answer. Knows no HTTP."""

from collections.abc import Callable, Sequence
from enum import Enum
from hashlib import sha256
from random import Random

import msgspec

from loadtests.answer import Answer
from loadtests.plan import Partner, Plan
from loadtests.wall import Wall

TWICE_SHARE, AGAIN_SHARE = 0.02, 0.02
FAMILY = 3
"""In one of five homes so many people share a phone."""
THINK_S_MAX = 1.5
"""Before they press for the next category."""
TRIES_MAX = 8
WAIT_S_MAX = 30.0
FIRST_BACKOFF_S = 0.2


class Habit(Enum):
    """What people do beyond pressing once."""

    ONCE = 0
    TWICE = 1
    """Two taps: two claims under two numbers at the same moment. One voucher at most may come of it."""
    AGAIN = 2
    """The answer got lost on the way to the phone: the same number again must bring the same answer."""


class Citizen(msgspec.Struct, frozen=True, kw_only=True):
    """A person as the plan's seed makes them: the same in every process."""

    number: int
    partner: Partner
    person_token: str
    device_token: str
    stock_ids: Sequence[str]
    """What they want, best first."""
    habit: Habit
    press_s: float
    """Seconds after noon."""
    random: Random


Ask = Callable[[str, str, float], Answer]
"""Claims a stock under a request number; the third is when the press was due, in seconds after noon."""


class Life(msgspec.Struct, frozen=True):
    """What a person's story needs of the world. Times are seconds after noon."""

    ask: Ask
    now_s: Callable[[], float]
    sleep: Callable[[float], object]
    together: Callable[[Sequence[Callable[[], Answer]]], list[Answer]]
    """Runs calls at the same moment."""


def make_citizen(plan: Plan, number: int) -> Citizen:
    """Citizen `number` of a plan, counted from 0."""
    random = Random(f"{plan.run_id}/{plan.seed}/{number}")
    partner = random.choices(plan.partners, [partner.share for partner in plan.partners])[0]
    stocks = plan.stocks_of(partner.partner_id)
    wanted = random.choices(stocks, [stock.quantity for stock in stocks])[0].stock_id
    others = [stock.stock_id for stock in stocks if stock.stock_id != wanted]
    random.shuffle(others)
    habit = random.random()
    home = number // FAMILY
    return Citizen(
        number=number,
        partner=partner,
        person_token=_token(plan, f"person {number}"),
        device_token=_token(plan, f"home {home}" if home % 5 == 0 else f"phone {number}"),
        stock_ids=(wanted, *others),
        habit=Habit.TWICE if habit < TWICE_SHARE else Habit.AGAIN if habit < TWICE_SHARE + AGAIN_SHARE else Habit.ONCE,
        press_s=Wall(citizens=plan.citizens, seconds=plan.seconds).press_s(number, random),
        random=random,
    )


class Story:
    """What a person does at noon, to the end."""

    def __init__(self, citizen: Citizen, run_id: str, life: Life) -> None:
        self._citizen = citizen
        self._run_id = run_id
        self._life = life
        self._presses = 0

    def play(self) -> Answer:
        """Waits for the moment, presses, tries the next category where one is sold out. The last answer."""
        due_s = self._citizen.press_s
        self._life.sleep(max(due_s - self._life.now_s(), 0))
        answer = Answer(status=0)
        for stock_id in self._citizen.stock_ids:
            answer = self._want(stock_id, due_s)
            if answer.code != "SOLD_OUT":
                break
            self._life.sleep(THINK_S_MAX * self._citizen.random.random())
            due_s = self._life.now_s()
        return answer

    def _want(self, stock_id: str, due_s: float) -> Answer:
        number = self._number()
        match self._citizen.habit:
            case Habit.ONCE:
                return self._press(stock_id, number, due_s)
            case Habit.AGAIN:
                self._press(stock_id, number, due_s)
                return self._press(stock_id, number, self._life.now_s())
            case Habit.TWICE:
                other = self._number()
                taps = [lambda one=one: self._press(stock_id, one, due_s) for one in (number, other)]
                answers = self._life.together(taps)
                return next((answer for answer in answers if answer.voucher_code), answers[0])

    def _press(self, stock_id: str, number: str, due_s: float) -> Answer:
        """Asks under one number until the answer is final, so many times at most."""
        answer = self._life.ask(stock_id, number, due_s)
        for attempt in range(1, TRIES_MAX):
            if not answer.is_safe_to_repeat:
                break
            wait_s = self._wait_s(answer, attempt)
            due_s = self._life.now_s() + wait_s
            self._life.sleep(wait_s)
            answer = self._life.ask(stock_id, number, due_s)
        return answer

    def _wait_s(self, answer: Answer, attempt: int) -> float:
        if answer.retry_after_s is not None:
            return min(answer.retry_after_s, WAIT_S_MAX)
        return min(FIRST_BACKOFF_S * (1 << attempt), WAIT_S_MAX) * self._citizen.random.random()

    def _number(self) -> str:
        self._presses += 1
        return f"{self._run_id}-{self._citizen.number:07}-{self._presses}"


def _token(plan: Plan, what: str) -> str:
    """Stands in for the token that a partner makes with the city's person key; unique to the run."""
    return sha256(f"{plan.run_id} {what}".encode()).hexdigest()[:32]
