"""What limits and packs mean, in plain Python: the model that the claim script is held against.

`LimitsModel.claim` says what one claim must be answered, step by step; `assert_within_limits` judges a whole
rush by its winners alone, in whatever order it went.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from issuer.campaign.model import Campaign
from kernel.errors import Code

Answer = tuple[Code | None, str | None]
"""Code and rule of the refusal; both None when it was granted or replayed."""
GRANTED: Answer = (None, None)


@dataclass(frozen=True)
class Offer:
    """What can be claimed under one id."""

    offer_id: str
    partner_id: str
    campaign: Campaign
    round_id: str
    group_id: str | None
    is_granted: bool
    parts: Mapping[str, int]
    face_fen: int


def offers_of(campaigns: Iterable[Campaign]) -> dict[str, Offer]:
    """Stocks and packs by their ids."""
    found: dict[str, Offer] = {}
    for campaign in campaigns:
        for each in campaign.rounds:
            for stock in each.stocks:
                found[stock.stock_id] = Offer(
                    *(stock.stock_id, stock.partner_id, campaign, each.round_id, stock.group_id, stock.is_granted),
                    parts={stock.stock_id: 1},
                    face_fen=stock.face_value_fen,
                )
            for pack in each.packs:
                found[pack.pack_id] = Offer(
                    *(pack.pack_id, pack.partner_id, campaign, each.round_id, pack.group_id, pack.is_granted),
                    parts={item.stock_id: item.quantity for item in pack.items},
                    face_fen=each.face_of(pack),
                )
    return found


def refusal(offer: Offer, had: Sequence[Offer]) -> Answer | None:
    """Which limit stands against one more claim of a person who `had` these; None: no limit does."""
    campaign = offer.campaign
    mine = [won for won in had if won.campaign is campaign]
    in_round = [won for won in mine if won.round_id == offer.round_id]
    if sum(won.partner_id == offer.partner_id for won in in_round) >= campaign.per_person_round_and_partner:
        return Code.USER_ALREADY_CLAIMED, None
    if campaign.per_person_and_round is not None and len(in_round) >= campaign.per_person_and_round:
        return Code.RULE_LIMIT, "PERSON_LIMIT"
    most = {group.group_id: group.per_person for group in campaign.groups}
    if offer.group_id and sum(won.group_id == offer.group_id for won in in_round) >= most[offer.group_id]:
        return Code.RULE_LIMIT, "GROUP_LIMIT"
    cap_fen = campaign.face_per_person_fen
    if cap_fen is not None and sum(won.face_fen for won in mine) + offer.face_fen > cap_fen:
        return Code.RULE_LIMIT, "FACE_LIMIT"
    return None


@dataclass
class LimitsModel:
    """Who has what, what is left, which numbers were used. Every claim comes through here in the store's order."""

    campaigns: Sequence[Campaign]
    offers: dict[str, Offer] = field(init=False)
    left: Counter[str] = field(default_factory=Counter)
    had: dict[str, list[Offer]] = field(default_factory=lambda: defaultdict(list))
    numbers: dict[tuple[str, str, str, str], tuple[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.offers = offers_of(self.campaigns)
        for campaign in self.campaigns:
            for each in campaign.rounds:
                self.left.update({stock.stock_id: stock.quantity for stock in each.stocks})

    def claim(self, partner_id: str, offer_id: str, person: str, number: str) -> Answer:
        """What the claim must be answered."""
        offer = self.offers.get(offer_id)
        if offer is None or offer.partner_id != partner_id:
            return Code.RESOURCE_NOT_EXISTS, None
        if offer.is_granted:
            return Code.RULE_LIMIT, "GRANT_ONLY"
        used = (offer.campaign.campaign_id, offer.round_id, partner_id, number)
        earlier = self.numbers.get(used)
        if earlier is not None and earlier[1] == person:
            return GRANTED if earlier[0] == offer_id else (Code.IDEMPOTENCY_MISMATCH, None)
        over = refusal(offer, self.had[person])
        if over is not None:
            return over
        if any(self.left[stock_id] < quantity for stock_id, quantity in offer.parts.items()):
            return Code.SOLD_OUT, None
        if earlier is not None:  # another person's number: told where the claim would be granted
            return Code.IDEMPOTENCY_MISMATCH, None
        self.left.subtract(offer.parts)
        self.had[person].append(offer)
        self.numbers[used] = offer_id, person
        return GRANTED


def assert_within_limits(campaigns: Sequence[Campaign], won: Iterable[tuple[str, str]]) -> None:
    """Nobody among the winners (person, offer id) is over a limit, and no stock gave more than it had."""
    offers = offers_of(campaigns)
    taken: Counter[str] = Counter()
    had: dict[str, list[Offer]] = defaultdict(list)
    for person, offer_id in won:
        had[person].append(offers[offer_id])
        taken.update(offers[offer_id].parts)
    for campaign in campaigns:
        for each in campaign.rounds:
            for stock in each.stocks:
                assert taken[stock.stock_id] <= stock.quantity, f"over-issued: {stock.stock_id}"
        for theirs in had.values():
            _assert_person(campaign, [offer for offer in theirs if offer.campaign is campaign])


def _assert_person(campaign: Campaign, theirs: Sequence[Offer]) -> None:
    at_partner = Counter((won.round_id, won.partner_id) for won in theirs)
    assert max(at_partner.values(), default=0) <= campaign.per_person_round_and_partner, "too many at a partner"
    if campaign.per_person_and_round is not None:
        in_round = Counter(won.round_id for won in theirs)
        assert max(in_round.values(), default=0) <= campaign.per_person_and_round, "too many in a round"
    for group in campaign.groups:
        of_group = Counter(won.round_id for won in theirs if won.group_id == group.group_id)
        assert max(of_group.values(), default=0) <= group.per_person, "too many of a group"
    if campaign.face_per_person_fen is not None:
        assert sum(won.face_fen for won in theirs) <= campaign.face_per_person_fen, "too much money"
