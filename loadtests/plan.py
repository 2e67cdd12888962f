"""The file that says whom to ask, with which keys, and when. It holds secrets: keep it at mode 600."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec

Positive = Annotated[int, msgspec.Meta(ge=1)]


class Partner(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A platform with its key."""

    partner_id: str
    serial_no: str
    algorithm: Literal["HMAC-SHA256", "RSA-2048-SHA256"]
    secret: str
    """HMAC: hex. RSA: the private key as PEM."""
    share: Positive
    """Weight of this platform among the citizens. An RSA signature costs the load generator about
    fifty times an HMAC; give such a platform a share that the machine can bear."""


class Stock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Vouchers of one kind on one platform. Nobody but this run may claim them, or the audit misjudges."""

    stock_id: str
    partner_id: str
    quantity: Positive


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run against one server."""

    run_id: Annotated[str, msgspec.Meta(pattern="^[a-z0-9]{4,12}$")]
    """In every request number and person token, so that no two runs meet."""
    base_url: str
    noon_ms: int
    """When the round opens, by the server's clock, in ms since 1970."""
    seconds: Positive
    """How long the run goes on from noon; what is under way then may still end."""
    citizens: Positive
    seed: int = 0
    per_person_limit: Positive = 1
    """Vouchers that one person may have of one partner."""
    connections: Positive = 128
    """Open connections per process; people share them, as a platform's servers do."""
    clock_ahead_ms: int = 0
    """How far the server's clock is ahead of this machine's."""
    partners: Annotated[list[Partner], msgspec.Meta(min_length=1)]
    stocks: Annotated[list[Stock], msgspec.Meta(min_length=1)]

    def stocks_of(self, partner_id: str) -> list[Stock]:
        """The stocks of one partner."""
        return [stock for stock in self.stocks if stock.partner_id == partner_id]


class PlanError(Exception):
    """The plan cannot be read; the message says why."""


def read_plan(path: Path) -> Plan:
    """Raises PlanError."""
    try:
        plan = msgspec.json.decode(path.read_bytes(), type=Plan)
    except (OSError, msgspec.DecodeError) as error:
        raise PlanError(f"cannot read the plan {path}: {error}") from error
    for partner in plan.partners:
        if not plan.stocks_of(partner.partner_id):
            raise PlanError(f"the plan {path} has no stock of partner {partner.partner_id}")
    return plan
