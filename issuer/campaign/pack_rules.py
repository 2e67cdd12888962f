"""Rules about packs: they are made of stocks that are there, and can be claimed."""

from collections.abc import Iterator

from issuer.campaign.complaints import Code, Complaint
from issuer.campaign.extras import ITEMS_MAX, ItemLine, PackLine
from issuer.campaign.model import Round, Stock
from issuer.campaign.parse import Parsed
from issuer.campaign.table import Written
from kernel.money import format_yuan


def packs_have_names_of_their_own(parsed: Parsed) -> Iterator[Complaint]:
    """A partner has one pack of a name, and it is no category's: pack and stock would be called the same."""
    first: dict[tuple[str, str], int] = {}
    categories = [each.value.category_id for each in parsed.categories]
    for pack in parsed.packs:
        spot, name = pack.table.spot_of("id"), (pack.value.partner_id, pack.value.pack_id)
        if pack.value.pack_id in categories:
            words = f"{pack.value.pack_id} is a category, and its stock would have the pack's name; take another id"
            yield Complaint.at(spot, Code.DUPLICATE_ID, words)
        if name in first:
            words = f"{name[0]} has another pack {name[1]}, on line {first[name]}; give this one an id of its own"
            yield Complaint.at(spot, Code.DUPLICATE_ID, words)
        first.setdefault(name, spot.line)


def packs_name_what_exists(parsed: Parsed) -> Iterator[Complaint]:
    """Partners of packs are declared; every category of a pack is, and stands in it once."""
    partners = [each.value.partner_id for each in parsed.partners]
    categories = [each.value.category_id for each in parsed.categories]
    for pack in parsed.packs:
        if pack.value.partner_id not in partners:
            words = f"there is no partner {pack.value.partner_id} in this file; it has {', '.join(partners)}"
            yield Complaint.at(pack.table.spot_of("partner"), Code.UNKNOWN_PARTNER, words)
        seen: set[str] = set()
        for item in pack.value.items:
            category_id, spot = item.value.category_id, item.table.spot_of("category")
            if category_id not in categories:
                words = f"there is no category {category_id} in this file; it has {', '.join(categories)}"
                yield Complaint.at(spot, Code.UNKNOWN_CATEGORY, words)
            if category_id in seen:
                words = f"{category_id} stands in this pack already; add the quantities up in one item"
                yield Complaint.at(spot, Code.DUPLICATE_STOCK, words)
            seen.add(category_id)


def packs_have_their_stocks(parsed: Parsed) -> Iterator[Complaint]:
    """The partner has a stock for each item in every round that has the pack, and it is large enough.

    One complaint an item, about the first round.
    """
    for pack, item in _known_items(parsed):
        for each in _rounds_with_packs(parsed):
            stock, category_id = _stock(each, pack.value, item.value), item.value.category_id
            who = f"{pack.value.partner_id} has"
            if stock is None:
                words = f"{who} no {category_id} in round {each.round_id} to make this pack of; add a stock, or write"
                words += " packs: no in the round"
                yield Complaint.at(item.table.spot_of("category"), Code.PACK_WITHOUT_STOCK, words)
                break
            if stock.quantity < item.value.quantity:
                words = f"{who} {stock.quantity} {category_id} in round {each.round_id}, and one pack takes"
                words += f" {item.value.quantity}; lower it, or hand out more"
                yield Complaint.at(item.table.spot_of("quantity"), Code.PACK_TOO_LARGE, words)
                break


def packs_are_small(parsed: Parsed) -> Iterator[Complaint]:
    """A pack is an answer that fits a phone, and worth no more than a person may have."""
    cap_fen = parsed.campaign.face_per_person_fen
    for pack in parsed.packs:
        vouchers = sum(item.value.quantity for item in pack.value.items)
        if vouchers > ITEMS_MAX:
            words = f"{pack.value.pack_id} has {vouchers} vouchers; at most {ITEMS_MAX} are possible"
            yield Complaint.at(pack.table.spot_of("items"), Code.PACK_TOO_LARGE, words)
        face_fen = max((_face_fen(each, pack.value) for each in _rounds_with_packs(parsed)), default=0)
        if cap_fen is not None and face_fen > cap_fen:
            words = f"nobody could claim a pack of {format_yuan(face_fen)}, because face_per_person allows"
            words += f" {format_yuan(cap_fen)} in the whole campaign; take something out, or raise the limit"
            yield Complaint.at(pack.table.spot_of("items"), Code.LIMIT_TOO_LOW, words)


def packs_can_be_claimed(parsed: Parsed) -> Iterator[Complaint]:
    """A pack that people claim holds nothing that the city only grants."""
    for pack, item in _known_items(parsed):
        stocks = (_stock(each, pack.value, item.value) for each in _rounds_with_packs(parsed))
        if not pack.value.is_granted and any(stock is not None and stock.is_granted for stock in stocks):
            words = f"{item.value.category_id} of {pack.value.partner_id} is granted: yes, so nobody can claim it in a"
            words += " pack; write granted: yes on the pack too, or on neither"
            yield Complaint.at(item.table.spot_of("category"), Code.PACK_OF_GRANTED, words)


def _known_items(parsed: Parsed) -> Iterator[tuple[Written[PackLine], Written[ItemLine]]]:
    """Items whose partner and category are declared: of the others that is the complaint."""
    partners = {each.value.partner_id for each in parsed.partners}
    categories = {each.value.category_id for each in parsed.categories}
    for pack in parsed.packs:
        for item in pack.value.items if pack.value.partner_id in partners else ():
            if item.value.category_id in categories:
                yield pack, item


def _rounds_with_packs(parsed: Parsed) -> list[Round]:
    """A round has all packs or none."""
    return [each.value for each in parsed.rounds if each.value.packs]


def _stock(each: Round, pack: PackLine, item: ItemLine) -> Stock | None:
    pair = pack.partner_id, item.category_id
    return next((stock for stock in each.stocks if (stock.partner_id, stock.category_id) == pair), None)


def _face_fen(each: Round, pack: PackLine) -> int:
    stocks = ((_stock(each, pack, item.value), item.value.quantity) for item in pack.items)
    return sum(quantity * stock.face_value_fen for stock, quantity in stocks if stock is not None)


RULES = (
    packs_have_names_of_their_own,
    packs_name_what_exists,
    packs_have_their_stocks,
    packs_are_small,
    packs_can_be_claimed,
)
