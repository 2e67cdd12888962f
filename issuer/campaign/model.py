"""What a campaign is. Immutable; money in fen, shares in hundredths of a percent, times aware in Asia/Shanghai."""

from datetime import datetime, time
from typing import NewType

import msgspec

from kernel.money import split_by_bp

RefundPolicy = NewType("RefundPolicy", str)
"""RESTORE: a voucher refunded in full lives again while it is valid. RETURN_TO_BUDGET: it does not, all its money goes
back. PAID_SHARE: it does not, its money goes back in proportion to the cash (redemption.offers.taken_back)."""


class Partner(msgspec.Struct, frozen=True, kw_only=True):
    """A platform that hands vouchers to its users.

    claims_per_s_max   claims a second that it may send; None: no limit
    """

    partner_id: str
    name_zh: str
    name_en: str
    claims_per_s_max: int | None = None


class Category(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of shop; a voucher is good in one."""

    category_id: str
    name_zh: str
    name_en: str


class Funding(msgspec.Struct, frozen=True, kw_only=True):
    """Who pays the face of a voucher; the shares add up to 10,000."""

    city_bp: int
    platform_bp: int
    merchant_bp: int

    def funded_fen(self, face_value_fen: int) -> int:
        """What the fund pays a shop for one voucher: the face less the shop's own share."""
        city, platform, _ = split_by_bp(face_value_fen, (self.city_bp, self.platform_bp, self.merchant_bp))
        return city + platform


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """Rules at the till. A bill must be at least `minimum_spend_times` the face.

    stacks_with   whose reductions may be on the same payment: SHOP, PLATFORM
    till_code     ANY, or ROTATING: only the code that the phone shows anew each minute
    """

    minimum_spend_times: int
    vouchers_per_payment: int
    refund_policy: RefundPolicy
    stacks_with: tuple[str, ...] = ("SHOP", "PLATFORM")
    till_code: str = "ANY"


class Scope(msgspec.Struct, frozen=True, kw_only=True):
    """Where vouchers are good: in shops of these districts, and if there are merchants, only in those."""

    scope_id: str
    districts: tuple[str, ...] = ()
    merchant_ids: tuple[str, ...] = ()


class RedeemCap(msgspec.Struct, frozen=True, kw_only=True):
    """So much face may one person use in a calendar month of the city (MONTH), or in the whole CAMPAIGN.

    is_per_partner   counted apart for each platform's vouchers
    """

    period: str
    is_per_partner: bool
    face_fen_max: int


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Stocks and packs of a round of which a person may claim only so many together, at whatever partner."""

    group_id: str
    per_person: int


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """From `after_s` seconds after the opening on, `share_bp` of each stock can be claimed."""

    after_s: int
    share_bp: int


class Stock(msgspec.Struct, frozen=True, kw_only=True):
    """Vouchers of one round, partner and category; all alike.

    is_granted   the city hands them to a list of people; nobody can claim them
    """

    stock_id: str
    partner_id: str
    category_id: str
    quantity: int
    face_value_fen: int
    transaction_minimum_fen: int
    funded_fen: int
    group_id: str | None = None
    is_granted: bool = False
    scope_id: str | None = None

    @property
    def total_face_fen(self) -> int:
        """Face of all vouchers."""
        return self.quantity * self.face_value_fen

    @property
    def exposure_fen(self) -> int:
        """What the fund pays when every voucher is used."""
        return self.quantity * self.funded_fen

    @property
    def least_spending_fen(self) -> int:
        """The bills that come at least with all vouchers used."""
        return self.quantity * self.transaction_minimum_fen


class PackItem(msgspec.Struct, frozen=True, kw_only=True):
    """So many vouchers of one stock."""

    stock_id: str
    quantity: int


class Pack(msgspec.Struct, frozen=True, kw_only=True):
    """Several vouchers of one partner that are claimed together, all or none; they come out of its stocks."""

    pack_id: str
    partner_id: str
    items: tuple[PackItem, ...]
    group_id: str | None = None
    is_granted: bool = False

    @property
    def vouchers(self) -> int:
        """Vouchers in one pack."""
        return sum(item.quantity for item in self.items)


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """One grab. Claims from `opens_at` until `closes_at`; vouchers are good from then through `valid_until`.

    stages       how the stocks are released; none: all at the opening
    valid_days   a voucher ends with so many days from its claim on, that day being the first; None: at valid_until
    """

    round_id: str
    opens_at: datetime
    closes_at: datetime
    valid_until: datetime
    budget_fen: int
    stocks: tuple[Stock, ...]
    packs: tuple[Pack, ...] = ()
    stages: tuple[Stage, ...] = ()
    valid_days: int | None = None

    @property
    def quantity(self) -> int:
        """Vouchers in all."""
        return sum(stock.quantity for stock in self.stocks)

    @property
    def total_face_fen(self) -> int:
        """Face of all vouchers."""
        return sum(stock.total_face_fen for stock in self.stocks)

    @property
    def exposure_fen(self) -> int:
        """What the fund pays when every voucher is used."""
        return sum(stock.exposure_fen for stock in self.stocks)

    @property
    def least_spending_fen(self) -> int:
        """The bills that come at least with all vouchers used."""
        return sum(stock.least_spending_fen for stock in self.stocks)

    def stock(self, stock_id: str) -> Stock:
        """The stock of that name. Raises KeyError."""
        for stock in self.stocks:
            if stock.stock_id == stock_id:
                return stock
        raise KeyError(f"round {self.round_id} has no stock {stock_id}")

    def face_of(self, pack: Pack) -> int:
        """Face of all vouchers of one pack, in fen."""
        return sum(item.quantity * self.stock(item.stock_id).face_value_fen for item in pack.items)


class Campaign(msgspec.Struct, frozen=True, kw_only=True):
    """A campaign as its file says it.

    rollover                 money of vouchers that were not used pays later rounds
    expected_redemption_bp   share of the vouchers that the city expects to be used; None: no such plan
    opening_time             the hour, in `zone`, at which every round opens

    What one person may have, a pack counting as one claim; None: no such limit:
    per_person_round_and_partner   claims in a round at one partner
    per_person_and_round           claims in a round at all partners together
    face_per_person_fen            face of all vouchers of the campaign
    groups                         claims in a round out of the stocks and packs of a group
    redeem_caps                    face of the vouchers that are used
    """

    campaign_id: str
    title_zh: str
    title_en: str
    zone: str
    fund_fen: int
    rollover: bool
    expected_redemption_bp: int | None
    opening_time: time
    partners: tuple[Partner, ...]
    categories: tuple[Category, ...]
    funding: Funding
    per_person_round_and_partner: int
    offer: Offer
    rounds: tuple[Round, ...]
    per_person_and_round: int | None = None
    face_per_person_fen: int | None = None
    groups: tuple[Group, ...] = ()
    scopes: tuple[Scope, ...] = ()
    redeem_caps: tuple[RedeemCap, ...] = ()

    @property
    def quantity(self) -> int:
        """Vouchers in all."""
        return sum(each.quantity for each in self.rounds)

    @property
    def total_face_fen(self) -> int:
        """Face of all vouchers."""
        return sum(each.total_face_fen for each in self.rounds)

    @property
    def exposure_fen(self) -> int:
        """What the fund would pay if every voucher of every round were used."""
        return sum(each.exposure_fen for each in self.rounds)

    @property
    def budgets_fen(self) -> int:
        """Budgets of all rounds; above the fund when unused money is counted on again."""
        return sum(each.budget_fen for each in self.rounds)

    @property
    def least_spending_fen(self) -> int:
        """The bills that come at least with all vouchers used."""
        return sum(each.least_spending_fen for each in self.rounds)

    def round(self, round_id: str) -> Round:
        """The round of that name. Raises KeyError."""
        for each in self.rounds:
            if each.round_id == round_id:
                return each
        raise KeyError(f"{self.campaign_id} has no round {round_id}")


def stock_id_of(campaign_id: str, round_id: str, partner_id: str, category_id: str) -> str:
    """The name of a stock. Never the same for two: of the four only a partner's id may hold an underscore.

    A pack's name is made the same way, with its id in place of the category's; the two must differ.
    """
    return "_".join((campaign_id, round_id, partner_id, category_id))
