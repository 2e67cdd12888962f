"""The city that the demonstration plays: citizens, merchants, and a few who cheat. Seeded: one seed, one city.

Nothing here is known to anti-fraud; the demonstration compares afterwards what was flagged with what was planted.
"""

from collections.abc import Callable, Sequence
from random import Random

import msgspec

from stack.enrol import NewMerchant

DISTRICTS = (
    "Jiang'an", "Jianghan", "Qiaokou", "Hanyang", "Wuchang", "Qingshan", "Hongshan",
    "Dongxihu", "Hannan", "Caidian", "Jiangxia", "Huangpi", "Xinzhou",
)  # fmt: skip
CATEGORY_WEIGHTS = {"dining": 35, "malls": 10, "supermarkets": 40, "culture": 15}
FARMS, FARM_ACCOUNTS = 5, 20
RINGS, RING_PEOPLE = 3, 12
LOOPERS, LOOPS = 4, 4
SHARE_IN_FAMILIES = 0.3
PLATFORM_WEIGHTS = (36, 34, 30)


class Citizen(msgspec.Struct, frozen=True):
    """One person at noon: on which platform, from which device, wanting which categories in turn."""

    person: str
    device: str
    partner_id: str
    categories: Sequence[str]
    early: bool = False


class Ring(msgspec.Struct, frozen=True):
    """A shop whose owner's few helpers redeem all they can grab there at once."""

    merchant_id: str
    people: Sequence[str]


class Looper(msgspec.Struct, frozen=True):
    """A person and a shop that redeem and refund one voucher again and again."""

    merchant_id: str
    person: str


class City(msgspec.Struct, frozen=True):
    """All who take part."""

    citizens: Sequence[Citizen]
    merchants: Sequence[NewMerchant]
    farms: Sequence[str]
    """Device tokens of the planted device farms."""
    farmers: Sequence[str]
    """The farms' accounts."""
    rings: Sequence[Ring]
    loopers: Sequence[Looper]

    @property
    def planted(self) -> int:
        """How many cheats there are: farms, rings, loopers."""
        return len(self.farms) + len(self.rings) + len(self.loopers)


Token = Callable[[str], str]


def make_city(
    seed: int, citizens: int, merchants: int, partners: Sequence[str], categories: Sequence[str], token: Token
) -> City:
    """A city of so many citizens and merchants. `token` turns an identity into its keyed token."""
    random = Random(seed)
    shops = [_merchant(random, i, categories) for i in range(merchants)]
    first = [shop for shop in shops if shop.category == categories[0]]
    farms = [token(f"farm-phone-{i}") for i in range(FARMS)]
    rings = [
        Ring(first[i].merchant_id, [token(f"ring-{i}-person-{j}") for j in range(RING_PEOPLE)]) for i in range(RINGS)
    ]
    loopers = [Looper(first[RINGS + i].merchant_id, token(f"looper-{i}")) for i in range(LOOPERS)]
    crowd = _crowd(random, citizens, partners, categories, token)
    farmers = _farmers(random, farms, partners, categories, token)
    for cheat in [*farmers, *_insiders(rings, loopers, partners, categories, token)]:
        crowd.insert(random.randrange(1 + len(crowd) // 20), cheat)  # bots are quick
    return City(crowd, shops, farms, [farmer.person for farmer in farmers], rings, loopers)


def _merchant(random: Random, i: int, categories: Sequence[str]) -> NewMerchant:
    return NewMerchant(
        merchant_id=f"M{i:06}",
        name=f"Shop {i}",
        category=categories[i % len(categories)],
        district=random.choice(DISTRICTS),
        payee_name=f"Shop {i} Ltd",
        payee_account=f"62{random.randrange(10**14):014}",
        payee_bank=random.choice(("Bank of Hankou", "Bank of Wuchang", "Bank of Hanyang")),
    )


def _crowd(
    random: Random, citizens: int, partners: Sequence[str], categories: Sequence[str], token: Token
) -> list[Citizen]:
    weights = [CATEGORY_WEIGHTS.get(category, 10) for category in categories]
    platform = random.choices(partners, PLATFORM_WEIGHTS[: len(partners)], k=citizens)
    wanted = random.choices(categories, weights, k=citizens)
    crowd: list[Citizen] = []
    while len(crowd) < citizens:
        size = random.randint(2, 4) if random.random() < SHARE_IN_FAMILIES / 3 else 1
        device = token(f"phone-{len(crowd)}")
        for i in range(len(crowd), min(len(crowd) + size, citizens)):
            others = [category for category in categories if category != wanted[i]]
            random.shuffle(others)
            early = random.random() < 0.01
            crowd.append(Citizen(token(f"citizen-{i}"), device, platform[i], (wanted[i], *others), early))
    random.shuffle(crowd)
    return crowd


def _farmers(
    random: Random, farms: Sequence[str], partners: Sequence[str], categories: Sequence[str], token: Token
) -> list[Citizen]:
    return [
        Citizen(token(f"farm-{i}-account-{j}"), device, random.choice(partners), (categories[0],))
        for i, device in enumerate(farms)
        for j in range(FARM_ACCOUNTS)
    ]


def _insiders(
    rings: Sequence[Ring], loopers: Sequence[Looper], partners: Sequence[str], categories: Sequence[str], token: Token
) -> list[Citizen]:
    ring_people = [person for ring in rings for person in ring.people]
    own = [(person, token(f"own-phone-{person}")) for person in ring_people]
    everywhere = [Citizen(person, phone, partner, (categories[0],)) for person, phone in own for partner in partners]
    once = [
        Citizen(looper.person, token(f"own-phone-{looper.person}"), partners[0], (categories[0],)) for looper in loopers
    ]
    return everywhere + once
