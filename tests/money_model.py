"""A small pure model of the money: what every balance must be after each step. No store, no SQL."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta

from kernel.clock import business_day
from tests.city_plan import FACE, NOON

BUCKETS = 2
FUNDED = {1: FACE, 2: FACE - 400}
"""What the fund pays for a voucher of each stock; both campaigns have one stock."""
QUANTITY = 12
VALID_UNTIL = NOON + timedelta(days=7)
DEBT_MAX = {1: FACE, 2: 0}
"""The two shops, and how far below zero refunds may take them in a bucket."""

Account = tuple[int, int, int, str]
"""bucket, campaign_no, merchant_no, kind."""


@dataclass
class Use:
    """One redemption in the model."""

    shop: int
    number: str
    booked_on: date
    refund_no: str | None = None
    credit: str | None = None
    refunded_on: date | None = None


@dataclass
class Voucher:
    """One voucher in the model."""

    voucher_id: int
    stock: int
    bucket: int
    uses: list[Use] = field(default_factory=list)

    @property
    def is_live(self) -> bool:
        """Whether it could be used."""
        return not self.uses or self.uses[-1].credit == "ISSUED"


class Model:
    """The money, in plain words."""

    def __init__(self, funds_fen: Mapping[int, int]) -> None:
        self.now = NOON + timedelta(minutes=1)
        self.vouchers: list[Voucher] = []
        self.fen: dict[Account, int] = defaultdict(int)
        self.closed: dict[int, date] = {}
        self.expired: set[tuple[int, int]] = set()
        for campaign, fund_fen in funds_fen.items():
            self.fen[0, campaign, 0, "CITY_FUND"] = fund_fen
            self.fen[0, campaign, 0, "BUDGET"] = fund_fen

    def move(self, campaign: int, amount_fen: int, debit: Account, credit: Account) -> None:
        """One movement between two accounts."""
        assert debit[1] == credit[1] == campaign
        self.fen[debit] -= amount_fen
        self.fen[credit] += amount_fen

    def day(self, bucket: int) -> date:
        """The day on which something is booked now."""
        today, closed = business_day(self.now), self.closed.get(bucket)
        return today if closed is None else max(today, closed + timedelta(days=1))

    def first_open(self, bucket: int) -> date:
        """The first day that is not closed."""
        closed = self.closed.get(bucket)
        return date.min if closed is None else closed + timedelta(days=1)

    def issued(self, voucher: Voucher) -> Account:
        return voucher.bucket, voucher.stock, 0, "ISSUED"

    def redeem(self, voucher: Voucher, shop: int, number: str) -> str:
        """The outcome of one redemption, booked when it is one."""
        if any((use.shop, use.number) == (shop, number) for use in voucher.uses):
            return "REPLAYED"
        if not voucher.is_live:
            return "RETURNED" if voucher.uses[-1].credit == "RETURNED" else "USED"
        if (voucher.bucket, voucher.stock) in self.expired:
            return "EXPIRED"
        voucher.uses.append(Use(shop, number, self.day(voucher.bucket)))
        payable = (voucher.bucket, voucher.stock, shop, "PAYABLE")
        self.move(voucher.stock, FUNDED[voucher.stock], self.issued(voucher), payable)
        return "REDEEMED"

    def refund(self, voucher: Voucher, shop: int, number: str, refund_no: str) -> str:
        """The outcome of one refund, booked when it is one."""
        use = next((use for use in voucher.uses if (use.shop, use.number) == (shop, number)), None)
        if use is None:
            return "NOT_FOUND"
        if use.refund_no is not None:
            return "REPLAYED" if use.refund_no == refund_no else "ALREADY_REFUNDED"
        funded_fen = FUNDED[voucher.stock]
        if use.booked_on < self.first_open(voucher.bucket) and self._room_fen(voucher.bucket, shop) < funded_fen:
            return "OVER_LIMIT"
        expired = (voucher.bucket, voucher.stock) in self.expired
        lives = voucher.stock == 1 and self.now < VALID_UNTIL and not expired
        use.refund_no, use.refunded_on, use.credit = (
            refund_no,
            self.day(voucher.bucket),
            "ISSUED" if lives else "RETURNED",
        )
        back = self.issued(voucher) if lives else (0, voucher.stock, 0, "RETURNED")
        self.move(voucher.stock, funded_fen, (voucher.bucket, voucher.stock, shop, "PAYABLE"), back)
        return "REFUNDED"

    def _room_fen(self, bucket: int, shop: int) -> int:
        """What a shop may still give back of settled sales: sales of open days do not count for it."""
        first_open = self.first_open(bucket)
        payable_fen = sum(self.fen[bucket, campaign, shop, "PAYABLE"] for campaign in FUNDED)
        for voucher in self.vouchers:
            for use in voucher.uses:
                if voucher.bucket == bucket and use.shop == shop and use.booked_on >= first_open:
                    payable_fen -= 0 if use.refund_no else FUNDED[voucher.stock]
        return DEBT_MAX[shop] + payable_fen

    def live_fen(self, bucket: int, stock: int) -> int:
        """Face of the live vouchers, as the fund pays it."""
        live = [v for v in self.vouchers if (v.bucket, v.stock) == (bucket, stock) and v.is_live]
        return 0 if (bucket, stock) in self.expired else len(live) * FUNDED[stock]
