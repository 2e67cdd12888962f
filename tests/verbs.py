"""Vouchers through every verb of a till, for tests that watch where the till's statements go."""

from kernel.clock import rfc3339
from kernel.errors import Code
from tests.city import City
from tests.city_plan import BILL, NOON, PAID


async def life(city: City, code: str, name: str) -> None:
    """A voucher through every verb of a till: priced, held, given up, held and used, asked for again, given back."""
    use, hold, order = f"use-{name}", f"hold-{name}", f"order-{name}"
    assert (await city.quote("NOODLES", [code])).status == 200
    assert (await city.hold("NOODLES", code, number=f"{hold}-0", order=order)).status == 200
    assert (await city.cancel("NOODLES", f"{hold}-0", number=f"cancel-{name}")).status == 200
    assert (await city.hold("NOODLES", code, number=hold, order=order)).status == 200
    for _ in range(2):
        assert (await city.confirm("NOODLES", hold, number=use)).status == 200
    assert (await city.redeem("NOODLES", code, number=use)).code == Code.IDEMPOTENCY_MISMATCH
    assert (await city.redeem("DUMPLINGS", code)).code == Code.USED_BY_ANOTHER_ORDER
    for path in (
        f"redemptions/{use}",
        f"redemptions?order_no={order}",
        f"redemptions?voucher_code={code}",
        f"holds/{hold}",
    ):
        assert (await city.get("NOODLES", f"/v1/{path}")).status == 200, path
    for _ in range(2):
        assert (await city.refund("NOODLES", use, number=f"back-{name}", refund_fen=PAID)).status == 200
    assert (await city.refund("NOODLES", use, refund_fen=PAID)).code == Code.RULE_LIMIT


async def plain(city: City, code: str, name: str) -> None:
    """A voucher that is used at once, or while the till was offline."""
    if name.endswith("0"):
        taken = {"use_request_no": name, "voucher_code": code, "order_no": name, "bill_fen": BILL}
        taken |= {"taken_at": rfc3339(city.clock.now())}
        assert (await city.upload("HOTPOT", [taken])).status == 200
        return
    for _ in range(2):
        assert (await city.redeem("HOTPOT", code, number=name, order=name)).status == 200


async def subscribe(city: City) -> None:
    """Partners are told of every use, so that what tells them is watched, too."""
    await city.database.pool.execute(
        "INSERT INTO callback_subscription SELECT partner_no, 'https://partner.example/hook',"
        " enum_range(NULL::callback_kind), true, false, '{1}', $1 FROM partner ON CONFLICT DO NOTHING",
        NOON,
    )
