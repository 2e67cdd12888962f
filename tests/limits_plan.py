"""Campaigns with every kind of limit, for the tests of limits, packs and grants."""

from datetime import timedelta

from issuer.campaign.model import Campaign
from tests.city import PACE, City
from tests.city_plan import NOON, a_campaign, a_pack, a_round, a_stock

PLENTY = 1_000
SCARCE = 5


def touring(name: str = "tour", *, scarce: int = SCARCE) -> Campaign:
    """Two at a partner, three at both, one of the group big; packs out of wechat's stocks."""
    packs = [
        a_pack(f"{name}_family", {f"{name}_dining": 2, f"{name}_mall": 1}),
        a_pack(f"{name}_grand", {f"{name}_dining": 1, f"{name}_big": 1}, group="big"),
        a_pack(f"{name}_rare", {f"{name}_dining": 1, f"{name}_scarce": 2}),
        a_pack(f"{name}_welcome", {f"{name}_granted": 1, f"{name}_dining": 2}, granted=True),
    ]
    return a_campaign(
        name,
        a_round(
            "noon",
            NOON,
            a_stock(f"{name}_dining", quantity=PLENTY),
            a_stock(f"{name}_mall", category_id="mall", quantity=PLENTY, face_fen=5_000),
            a_stock(f"{name}_big", category_id="hotel", quantity=PLENTY, group="big", face_fen=10_000),
            a_stock(f"{name}_scarce", category_id="museum", quantity=scarce),
            a_stock(f"{name}_granted", category_id="care", quantity=PLENTY, granted=True),
            a_stock(f"{name}_a_dining", "alipay", quantity=PLENTY),
            a_stock(f"{name}_a_big", "alipay", category_id="hotel", quantity=PLENTY, group="big", face_fen=10_000),
            packs=packs,
        ),
        limit=2,
        limit_at_all=3,
        groups={"big": 1},
    )


def capped(name: str = "cap") -> Campaign:
    """50 yuan of face a person in the campaign, over two rounds that are open at once and two partners."""
    return a_campaign(
        name,
        a_round(
            "one",
            NOON,
            a_stock(f"{name}_20", quantity=PLENTY, face_fen=2_000),
            a_stock(f"{name}_10", category_id="mall", quantity=PLENTY, face_fen=1_000),
            a_stock(f"{name}_1001", category_id="hotel", quantity=PLENTY, face_fen=1_001),
            a_stock(f"{name}_a_20", "alipay", quantity=PLENTY, face_fen=2_000),
            packs=[
                a_pack(f"{name}_whole", {f"{name}_20": 2, f"{name}_10": 1}),
                a_pack(f"{name}_over", {f"{name}_20": 2, f"{name}_1001": 1}),
                a_pack(f"{name}_two", {f"{name}_20": 1, f"{name}_10": 1}),
            ],
        ),
        a_round("two", NOON - timedelta(hours=1), a_stock(f"{name}_two_20", quantity=PLENTY, face_fen=2_000)),
        limit=9,
        face_limit_fen=5_000,
    )


async def everybody_rests(city: City) -> None:
    """Whom the gate took for a clicking thumb may try again, five times at once."""
    keys = [key async for key in city.valkey.client.scan_iter(match=f"{PACE}*", count=1_000)]
    if keys:
        await city.valkey.client.delete(*keys)
