"""The week after: vouchers are used at shops, some purchases are taken back, cheats cheat."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, timedelta
from random import Random
from typing import Any

import msgspec

from kernel.clock import FileClock, business_day
from kernel.signing import Signer
from redemption.reconciliation.flow_file import FlowRow
from stack.audit.clientlog import UNKNOWN, RedeemTold, RefundTold
from stack.demo.client import Client, Reply, each
from stack.demo.noon import Won
from stack.demo.people import City, Looper

AT_ONCE = 96
SHARE_USED = 0.58
SHARE_REFUNDED = 0.02
DAY_WEIGHTS = (18, 20, 22, 16, 10, 8, 6)
LOOPS = 4
HOT_SHOPS = 40
"""So many shops of a category draw a third of the customers."""


class Sale(msgspec.Struct, frozen=True):
    """One voucher used at one shop."""

    won: Won
    merchant_id: str
    bill_fen: int
    number: str
    refund: bool = False

    @property
    def paid_fen(self) -> int:
        """What the customer paid, and gets back in a refund."""
        return self.bill_fen - self.won.face_fen


class Booked(msgspec.Struct, frozen=True):
    """What a till was told: the shop's own books, from which platforms write their flow files."""

    partner_id: str
    day: date
    row: FlowRow


class Week(msgspec.Struct):
    """What the tills saw in the week."""

    books: list[Booked] = msgspec.field(default_factory=list)
    redeems: list[RedeemTold] = msgspec.field(default_factory=list)
    refunds: list[RefundTold] = msgspec.field(default_factory=list)
    refused: Counter[str] = msgspec.field(default_factory=Counter)
    latencies_ms: list[float] = msgspec.field(default_factory=list)
    lost: int = 0


class Shops:
    """Plays the days of the week against the checkout service."""

    def __init__(
        self,
        client: Client,
        clock: FileClock,
        city: City,
        signers: Mapping[str, Signer],
        seed: int,
        advance: Callable[[int], None],
    ) -> None:
        self._client = client
        self._clock = clock
        self._city = city
        self._signers = signers
        self._random = Random(seed)
        self._advance = advance
        self._numbers = 0
        self._by_category: dict[str, list[str]] = defaultdict(list)
        crooked = {ring.merchant_id for ring in city.rings} | {looper.merchant_id for looper in city.loopers}
        for shop in city.merchants:
            if shop.merchant_id not in crooked:
                self._by_category[shop.category].append(shop.merchant_id)
        self.week = Week()

    def plan(self, won: Sequence[Won]) -> list[list[Sale]]:
        """Who uses which voucher on which day, and where."""
        cheats = {person for ring in self._city.rings for person in ring.people}
        cheats |= {looper.person for looper in self._city.loopers}
        days: list[list[Sale]] = [[] for _ in DAY_WEIGHTS]
        for voucher in won:
            if voucher.person not in cheats and self._random.random() < SHARE_USED:
                day = self._random.choices(range(len(days)), DAY_WEIGHTS)[0]
                refund = self._random.random() < SHARE_REFUNDED
                days[day].append(self._sale(voucher, self._shop(voucher.category), refund))
        return days

    async def play_day(self, day: int, noon: datetime, sales: Sequence[Sale], won: Sequence[Won]) -> None:
        """One day: its sales and their refunds; on the second day the cheats come too."""
        opening = noon + timedelta(days=day, minutes=30 if day == 0 else -180)
        self._clock.move_to(opening)
        await each(sales, self._sell, AT_ONCE)
        if day == 1:
            await self._rings(won)
            await self._loops(won)

    async def _sell(self, sale: Sale) -> None:
        if await self._redeem(sale) and sale.refund:
            await self._refund(sale)
        self._advance(1)

    async def _rings(self, won: Sequence[Won]) -> None:
        """Each helper uses all they grabbed, hands two back, and uses those once more."""
        hands = _hands(won)
        helpers = [(ring.merchant_id, hands[person]) for ring in self._city.rings for person in ring.people]

        async def cash_out(helper: tuple[str, Sequence[Won]]) -> None:
            merchant_id, hand = helper
            first = [self._sale(voucher, merchant_id) for voucher in hand]
            for sale in first:
                await self._redeem(sale)
            for sale in first[:2]:
                await self._refund(sale)
                await self._redeem(self._sale(sale.won, merchant_id))

        await each(helpers, cash_out, AT_ONCE)

    async def _loops(self, won: Sequence[Won]) -> None:
        hands = _hands(won)

        async def loop(looper: Looper) -> None:
            for voucher in hands[looper.person][:1]:
                for _ in range(LOOPS):
                    sale = self._sale(voucher, looper.merchant_id)
                    if await self._redeem(sale):
                        await self._refund(sale)

        await each(self._city.loopers, loop, AT_ONCE)

    async def _redeem(self, sale: Sale) -> bool:
        body = {
            "use_request_no": f"use-{sale.number}",
            "voucher_code": sale.won.code,
            "order_no": f"order-{sale.number}",
            "bill_fen": sale.bill_fen,
        }
        reply = await self._call(sale.merchant_id, "/v1/redemptions", body)
        self.week.redeems.append(_redeem_told(sale, reply))
        if reply.status == 200:
            self.week.books.append(_booked("REDEEM", sale, reply.body))
        return reply.status == 200

    async def _refund(self, sale: Sale) -> None:
        body = {
            "refund_request_no": f"back-{sale.number}",
            "use_request_no": f"use-{sale.number}",
            "refund_fen": sale.paid_fen,
        }
        reply = await self._call(sale.merchant_id, "/v1/refunds", body)
        self.week.refunds.append(_refund_told(sale, reply))
        if reply.status == 200:
            self.week.books.append(_booked("REFUND", sale, reply.body))

    async def _call(self, merchant_id: str, path: str, body: Mapping[str, object]) -> Reply:
        reply = await self._client.post(self._signers[merchant_id], path, body)
        self.week.latencies_ms.append(reply.latency_ms)
        if reply.status == 0:
            self.week.lost += 1
        elif reply.status != 200:
            self.week.refused[reply.code] += 1
        return reply

    def _sale(self, voucher: Won, merchant_id: str, refund: bool = False) -> Sale:
        self._numbers += 1
        bill_fen = voucher.minimum_fen + self._random.randrange(1 + voucher.face_fen * 14)
        return Sale(voucher, merchant_id, bill_fen, f"{self._numbers:08}", refund)

    def _shop(self, category: str) -> str:
        shops = self._by_category[category]
        return self._random.choice(shops[:HOT_SHOPS] if self._random.random() < 1 / 3 else shops)


def _hands(won: Sequence[Won]) -> Mapping[str, list[Won]]:
    hands: dict[str, list[Won]] = defaultdict(list)
    for voucher in won:
        hands[voucher.person].append(voucher)
    return hands


def _booked(kind: str, sale: Sale, body: Mapping[str, Any]) -> Booked:
    is_use = kind == "REDEEM"
    at = datetime.fromisoformat(body["redeemed_at" if is_use else "refunded_at"])
    row = FlowRow(
        kind=kind,
        merchant_id=sale.merchant_id,
        use_request_no=f"use-{sale.number}",
        refund_request_no="" if is_use else f"back-{sale.number}",
        out_request_no=sale.won.out_request_no,
        stock_id=sale.won.stock_id,
        voucher_state="USED" if is_use else body["voucher_state"],
        bill_fen=sale.bill_fen if is_use else sale.paid_fen,
        subsidy_fen=body["subsidy_fen"],
        occurred_at=at,
    )
    return Booked(sale.won.partner_id, business_day(at), row)


def _redeem_told(sale: Sale, reply: Reply) -> RedeemTold:
    done = reply.status == 200
    return RedeemTold(
        outcome="REDEEMED" if done else reply.code or UNKNOWN,
        merchant_id=sale.merchant_id,
        use_request_no=f"use-{sale.number}",
        order_no=f"order-{sale.number}",
        voucher_code=sale.won.code,
        bill_fen=sale.bill_fen,
        subsidy_fen=reply.body["subsidy_fen"] if done else None,
    )


def _refund_told(sale: Sale, reply: Reply) -> RefundTold:
    done = reply.status == 200
    return RefundTold(
        outcome="REFUNDED" if done else reply.code or UNKNOWN,
        merchant_id=sale.merchant_id,
        refund_request_no=f"back-{sale.number}",
        use_request_no=f"use-{sale.number}",
        refund_fen=sale.paid_fen,
        subsidy_fen=reply.body["subsidy_fen"] if done else None,
    )
