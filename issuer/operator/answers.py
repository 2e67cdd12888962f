"""Stocks as operators are told of them, by the service and by the command line alike."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from issuer.operator.life import StockDetail
from issuer.operator.store import StockRow
from kernel.clock import rfc3339


class StockAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A stock as it stands. `issued`: vouchers in the books."""

    stock_id: str
    campaign_id: str
    round_id: str
    partner_id: str
    category: str
    state: str
    quantity: int
    issued: int
    face_value_fen: int
    funded_fen: int
    opens_at: str
    closes_at: str
    valid_until: str


class StockDetailAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A stock with its history. `left`: what can still be claimed; null while the claim store does not hold it."""

    stock: StockAnswer
    left: int | None
    moves: list[Mapping[str, Any]]
    edits: list[Mapping[str, Any]]


def stock_answer(row: StockRow) -> StockAnswer:
    """A stock in a list."""
    told = msgspec.structs.asdict(row)
    return StockAnswer(**{name: _told(told[name]) for name in StockAnswer.__struct_fields__})


def detail_answer(detail: StockDetail) -> StockDetailAnswer:
    """A stock by itself."""
    return StockDetailAnswer(
        stock=stock_answer(detail.stock),
        left=detail.left,
        moves=[{name: _told(value) for name, value in move.items()} for move in detail.moves],
        edits=[{name: _told(value) for name, value in edit.items()} for edit in detail.edits],
    )


def _told(value: Any) -> Any:
    return rfc3339(value) if isinstance(value, datetime) else value
