"""Where the operations of a world come from: drawn from a seeded generator, or from hypothesis, by the same rules.

As the fuzzers of other ledgers do: kinds of operations have weights, and each world leaves some of them out (swarm
testing), so that what is rare together happens somewhere; numbers come from a small pool now and then, requests come
twice, late, in another order and changed; lines are cut; clocks jump both ways.
"""

from collections.abc import Sequence
from datetime import timedelta
from random import Random
from typing import Any, Protocol, TypeVar

from hypothesis import strategies as st

from tests.money_model import Attempt, Voucher
from tests.money_play import Ask, Break, Claim, Close, Expire, Operation, Pass, PayOut, World
from tests.money_requests import Cancel, Confirm, Lock, Redeem, Refund, Request
from tests.money_terms import BUCKETS, CAMPAIGNS, CLAIMS_MAX, DEBT_MAX, OPENS, PEOPLE_EACH, QUANTITY, TERMS, VALID_UNTIL

Thing = TypeVar("Thing")
REMEMBERED = 150
TOGETHER_MAX, CROWD_MAX = 8, 16
YOUNG = 120
"""Operations of a world before its vouchers may be made to run out."""


class Source(Protocol):
    """Says which, of so many."""

    def below(self, end: int) -> int:
        """A number from 0 up to, not with, `end`."""
        ...


class Seeded:
    """A source that is the same for the same seed."""

    def __init__(self, seed: int | str) -> None:
        self._random = Random(seed)

    def below(self, end: int) -> int:
        return self._random.randrange(end)


class Drawn:
    """A source that hypothesis can shrink."""

    def __init__(self, data: Any) -> None:
        self._data = data

    def below(self, end: int) -> int:
        return int(self._data.draw(st.integers(0, end - 1)))


REQUESTS = {"redeem": 30, "lock": 18, "confirm": 14, "cancel": 8, "refund": 24, "offline": 6}
OTHERS = {"again": 14, "twist": 6, "mixed": 10, "claim": 12, "tick": 14, "hours": 3, "back": 2, "edge": 1, "settle": 3,
          "close": 2, "pay_out": 2, "expire": 1, "end": 1, "break": 1}  # fmt: skip
HABITS = ("cuts", "pool", "many")
"""Cut lines; numbers out of a small pool; several requests at once."""
WEIGHTS = REQUESTS | OTHERS
ALWAYS = ("redeem", "claim", "tick")


class Draw:
    """Draws the next operations of a world. `without`: kinds and habits that this world leaves out."""

    def __init__(self, world: World, source: Source, without: Sequence[str] = ()) -> None:
        self.world, self.source = world, source
        self.without = frozenset(without)
        self.kinds = [kind for kind in WEIGHTS if kind not in self.without]
        self.turns = [kind for kind in self.kinds for _ in range(WEIGHTS[kind])]
        self.serial = 0
        self.sent: list[Request] = []

    # ------------------------------------------------------------ dice

    def one(self, things: Sequence[Thing]) -> Thing:
        return things[self.source.below(len(things))]

    def chance(self, percent: int) -> bool:
        """Never is the simplest: 0 is no."""
        return self.source.below(100) >= 100 - percent

    def fresh(self, kind: str) -> str:
        """A number; now and then one that may stand for something else already."""
        if "pool" not in self.without and self.chance(12):
            return f"{kind}-pool-{self.source.below(6)}"
        self.serial += 1
        return f"{kind}-{self.serial:06}"

    # ------------------------------------------------------------ operations

    def next(self) -> list[Operation]:
        """What comes next: one operation, or a few that belong together."""
        kind = self.one(self.turns)
        if kind in REQUESTS:
            return self._asked([getattr(self, f"_{kind}")() for _ in range(self._how_many())])
        return list(getattr(self, f"_{kind}")())

    def begin(self) -> list[Operation]:
        """Somebody has vouchers."""
        return [operation for _ in range(8) for operation in self._claim()]

    def _how_many(self) -> int:
        if "many" in self.without:
            return 1
        return 1 + self.source.below(CROWD_MAX if self.chance(20) else TOGETHER_MAX)

    def _asked(self, requests: Sequence[Request | None]) -> list[Operation]:
        made = tuple(request for request in requests if request is not None)
        if not made:
            return self._tick()
        self.sent = [*self.sent, *made][-REMEMBERED:]
        cut_at = self.source.below(16) if "cuts" not in self.without and self.chance(3) else None
        return [Ask(made, cut_at)]

    def _again(self) -> list[Operation]:
        """Requests of before, in any order, perhaps twice at once."""
        return self._asked([self.one(self.sent) for _ in range(self._how_many())] if self.sent else [])

    def _twist(self) -> list[Operation]:
        """A request of before with one thing changed, perhaps beside the very one."""
        if not self.sent:
            return self._tick()
        old = self.one(self.sent)
        place = 1 + self.source.below(len(old) - 1) if self.chance(90) else 0
        other = self.one([each for each in self.sent if type(each) is type(old)])
        values: list[Any] = list(old)
        values[place] = other[place]
        twisted = type(old)(*values)
        return self._asked([twisted, old] if self.chance(30) else [twisted])

    def _mixed(self) -> list[Operation]:
        """Requests of all kinds at once; as a rule about one voucher."""
        kinds = [kind for kind in REQUESTS if kind not in self.without]
        vouchers = list(self.world.model.vouchers.values())
        about = self.one(vouchers) if vouchers and self.chance(70) else None
        return self._asked([getattr(self, f"_{self.one(kinds)}")(about) for _ in range(2 + self.source.below(4))])

    def _claim(self) -> list[Operation]:
        model, stock, bucket = self.world.model, self.one(list(TERMS)), self.source.below(BUCKETS)
        has = [voucher for voucher in model.vouchers.values() if voucher.stock == stock]
        claims: list[tuple[int, int]] = []
        for _ in range(1 + self.source.below(4)):
            person = bucket * PEOPLE_EACH + self.source.below(PEOPLE_EACH)
            taken = sum(voucher.person == person for voucher in has) + sum(each[0] == person for each in claims)
            if taken < CLAIMS_MAX and len(has) + len(claims) < QUANTITY:
                self.serial += 1
                claims.append((person, self.serial))
        return [Claim(stock, tuple(claims))] if claims and (bucket, stock) not in model.expired else self._tick()

    # ------------------------------------------------------------ time and money

    def _tick(self) -> list[Operation]:
        return [Pass(self.one([1, 9, 10, 60, 59, 300, 600, 1_800, 3_600]))]

    def _hours(self) -> list[Operation]:
        return [Pass(3_600 * self.one([2, 5, 12, 24, 50]))]

    def _back(self) -> list[Operation]:
        return [Pass(-self.one([1, 45, 600, 4_000]))]

    def _edge(self) -> list[Operation]:
        """To the end of a month, or of validity: just before, on it, or just after."""
        model = self.world.model
        month_end = OPENS + timedelta(days=7, hours=12)
        edges = [month_end] if len(self.world.log) < YOUNG else [month_end, VALID_UNTIL]
        moments = [edge + timedelta(seconds=s) for edge in edges for s in (-30, -1, 0, 1) if edge > model.now]
        return [Pass(int((self.one(moments) - model.now).total_seconds()))] if moments else self._tick()

    def _settle(self) -> list[Operation]:
        """A day ends, and everybody is paid."""
        closes: list[Operation] = [Close(bucket, 0) for bucket in range(BUCKETS)]
        pays = [
            PayOut(bucket, campaign, shop) for bucket in range(BUCKETS) for campaign in CAMPAIGNS for shop in DEBT_MAX
        ]
        return [*closes, *pays, Pass(3_600 * 20)]

    def _close(self) -> list[Operation]:
        return [Close(self.source.below(BUCKETS), self.source.below(3))]

    def _pay_out(self) -> list[Operation]:
        return [PayOut(self.source.below(BUCKETS), self.one(CAMPAIGNS), self.one(list(DEBT_MAX)))]

    def _expire(self) -> list[Operation]:
        return [Expire(self.source.below(BUCKETS), self.one(list(TERMS)))]

    def _end(self) -> list[Operation]:
        """Validity is over, and a stock's money goes back. Not at once: a world is to live a while."""
        if len(self.world.log) < YOUNG:
            return self._tick()
        stock, left_s = self.one(list(TERMS)), int((VALID_UNTIL - self.world.model.now).total_seconds()) + 1
        return [Pass(max(1, left_s)), *(Expire(bucket, stock) for bucket in range(BUCKETS))]

    def _break(self) -> list[Operation]:
        return [Break(self.one(CAMPAIGNS), self.one(list(DEBT_MAX)))]

    # ------------------------------------------------------------ requests

    def _redeem(self, about: Voucher | None = None) -> Request | None:
        voucher = about or self._voucher()
        if voucher is None:
            return None
        shop, order = self._shop_and_order(voucher)
        return Redeem(shop, self.fresh("use"), self._id_of(voucher), order, self._bill_fen(voucher))

    def _offline(self, about: Voucher | None = None) -> Request | None:
        request = self._redeem(about)
        now = self.world.model.now
        ago = timedelta(seconds=self.one([0, 1, 300, 3_600, 40_000, 86_400, 259_200, 259_201]))
        return (
            request._replace(taken_at=max(OPENS - timedelta(minutes=10), now - ago))
            if isinstance(request, Redeem)
            else None
        )

    def _lock(self, about: Voucher | None = None) -> Request | None:
        voucher = about or self._voucher()
        if voucher is None:
            return None
        (shop, order), bill_fen = self._shop_and_order(voucher), self._bill_fen(voucher)
        return Lock(shop, self.fresh("hold"), self._id_of(voucher), order, bill_fen, self.one([10, 60, 600, 3_600]))

    def _confirm(self, about: Voucher | None = None) -> Request | None:
        hold = self._hold(about)
        if hold is None or hold.hold_number is None:
            return None
        number = self.fresh("use")
        if hold.use_number is not None and self.chance(50):
            number = hold.use_number
        return Confirm(self._shop_of(hold), number, hold.hold_number)

    def _cancel(self, about: Voucher | None = None) -> Request | None:
        hold = self._hold(about)
        if hold is None or hold.hold_number is None:
            return None
        return Cancel(self._shop_of(hold), self.fresh("cancel"), hold.hold_number)

    def _refund(self, about: Voucher | None = None) -> Request | None:
        uses = about.uses if about is not None else list(self.world.model.uses())[-40:]
        if not uses:
            return None
        open_uses = [use for use in uses if not use.parts or use.cash_back_fen < use.paid_fen]
        use = self.one(open_uses if open_uses and self.chance(80) else uses)
        left_fen = use.paid_fen - use.cash_back_fen
        amounts = [left_fen, left_fen // 2, left_fen // 3, 1, 2, left_fen + 1, left_fen - 1, 0]
        cash_fen = max(0, self.one(amounts) if self.chance(80) else self.source.below(use.paid_fen + 1))
        assert use.use_number is not None
        return Refund(self._shop_of(use), self.fresh("back"), use.use_number, cash_fen)

    def _voucher(self) -> Voucher | None:
        model = self.world.model
        vouchers = list(model.vouchers.values())
        free = [v for v in vouchers if v.is_live and not (v.attempts and v.attempts[-1].is_held(model.now))]
        return self.one(free if free and self.chance(85) else vouchers) if vouchers else None

    def _id_of(self, voucher: Voucher) -> int:
        """Its number; sometimes one of a voucher that is not in the books."""
        return voucher.voucher_id + 5_000 if self.chance(2) else voucher.voucher_id

    def _shop_and_order(self, voucher: Voucher) -> tuple[int, str]:
        """The till, and a payment; now and then one that the voucher had before, or another one."""
        if voucher.attempts and self.chance(25):
            return voucher.attempts[-1].shop, voucher.attempts[-1].order
        taken = list(self.world.model.voucher_of_order)[-20:]
        if taken and "pool" not in self.without and self.chance(8):
            return self.one(taken)
        return self.one(list(DEBT_MAX)), self.fresh("order")

    def _shop_of(self, attempt: Attempt) -> int:
        return self.one(list(DEBT_MAX)) if self.chance(4) else attempt.shop

    def _bill_fen(self, voucher: Voucher) -> int:
        least = voucher.terms.minimum_fen
        return self.one([least, least + 1, 6_001 + least, 7_501, 9_999, 12_345, least - 1, 10**9])

    def _hold(self, about: Voucher | None) -> Attempt | None:
        model = self.world.model
        holds = (
            [a for a in about.attempts if a.hold_number] if about is not None else list(model.hold_of.values())[-40:]
        )
        live = [hold for hold in holds if hold.is_held(model.now)]
        return self.one(live if live and self.chance(75) else holds) if holds else None


def left_out(source: Source) -> list[str]:
    """What a world does without: each thing one time in four, as swarm testing does."""
    return [each for each in (*WEIGHTS, *HABITS) if each not in ALWAYS and source.below(4) == 3]
