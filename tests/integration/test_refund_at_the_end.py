"""A refund that is looked at in a voucher's last moment and booked after it: the voucher is not given back."""

from datetime import datetime, timedelta

from kernel.clock import ManualClock
from tests import stores
from tests.integration.test_money_model import Stage, on_stage
from tests.money_play import Claim
from tests.money_requests import Redeem, Refund
from tests.money_terms import TERMS, VALID_UNTIL, voucher_id_of

RESTORE, SHOP, PERSON, BILL_FEN = 1, 1, 0, 8_000


class Ticking(ManualClock):
    """Every look at it takes two seconds."""

    def now(self) -> datetime:
        self.advance(2)
        return super().now()


def refunded(stage: Stage) -> tuple[str, str, bool]:
    """Where the money went, what the till was told, and whether it was booked after the end."""
    stage.world().run(Claim(RESTORE, ((PERSON, 1),)))
    city = stage.city
    sold = Redeem(SHOP, "use-000001", voucher_id_of(RESTORE, PERSON, 1), "order-000001", BILL_FEN)
    city.ask([sold], VALID_UNTIL - timedelta(hours=1))
    city.refunds._clock = Ticking(VALID_UNTIL - timedelta(seconds=3))
    cash_fen = BILL_FEN - TERMS[RESTORE].face_fen
    [told] = city.ask([Refund(SHOP, "back-000001", "use-000001", cash_fen)], VALID_UNTIL)
    [row] = city.fetch("SELECT credit::text, refunded_at FROM refund")
    return row["credit"], str(told), row["refunded_at"] >= VALID_UNTIL


async def test_what_ended_between_look_and_booking_is_not_given_back(database: stores.Database) -> None:
    found: list[tuple[str, str, bool]] = []
    await on_stage(database, lambda stage: found.append(refunded(stage)))
    [(credit, told, is_late)] = found
    assert (credit, is_late) == ("RETURNED", True)
    assert "EFFECTIVE" not in told and "RETURNED" in told
