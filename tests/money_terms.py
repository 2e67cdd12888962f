"""What there is in the worlds of the money model: offers, shops, people, and their limits. Amounts are fen."""

from datetime import timedelta
from typing import NamedTuple
from uuid import UUID

from kernel.ids import pack_voucher_id
from kernel.partitions import bucket_of, partition_of
from tests.city_plan import NOON

BUCKETS = 2
OPENS, CLOSES = NOON, NOON + timedelta(hours=8)
VALID_UNTIL = NOON + timedelta(days=12)
"""Twelve days that have the end of a month in them, for caps."""
OFFLINE_AGE_MAX, SKEW_MAX = timedelta(hours=72), timedelta(minutes=5)
"""How late what an offline till took may be uploaded, and how far ahead its clock may be."""
DEBT_MAX = {1: 2_000, 2: 0}
"""The shops, and how far below zero refunds may take them in a bucket."""


class Terms(NamedTuple):
    """What one stock's vouchers are good for; each stock is of the round and the campaign of one number."""

    campaign: int
    partner: int
    policy: str
    face_fen: int
    funded_fen: int
    minimum_fen: int


TERMS = {
    1: Terms(1, 1, "RESTORE", 2_000, 2_000, 6_000),
    2: Terms(2, 1, "RETURN_TO_BUDGET", 2_000, 1_600, 6_000),
    3: Terms(3, 1, "PAID_SHARE", 2_000, 1_999, 2_000),
    4: Terms(3, 2, "PAID_SHARE", 3_000, 3_000, 9_000),
}
"""By stock number. The third may pay a whole bill: then no cash goes back."""
CAMPAIGNS = (1, 2, 3)
QUANTITY = 40
CLAIMS_MAX = 9
"""What the rounds allow a person at one partner."""
CAP_MONTH_PER_PARTNER_FEN, CAP_CAMPAIGN_FEN = 4_000, 9_000
CAPPED = 3
"""The campaign with caps: so much a month at one partner, so much in all."""

PEOPLE_EACH = 3
_CITIZENS = [UUID(int=number) for number in range(1, 99)]
PEOPLE = [
    person
    for bucket in range(BUCKETS)
    for person in [each for each in _CITIZENS if bucket_of(partition_of(each.bytes), BUCKETS) == bucket][:PEOPLE_EACH]
]
"""As many in each bucket: first those of bucket 0."""


def voucher_id_of(stock: int, person: int, serial: int) -> int:
    """The number of a voucher; `person` is a place in PEOPLE."""
    return pack_voucher_id(TERMS[stock].campaign, partition_of(PEOPLE[person].bytes), serial)


def bucket_of_person(person: int) -> int:
    """Where somebody's vouchers are."""
    return person // PEOPLE_EACH
