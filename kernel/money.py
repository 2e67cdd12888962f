"""Money is integer fen; 100 fen are one yuan. No floats, no Decimal in the books."""

import re
from collections.abc import Sequence

AMOUNT_FEN_MAX = 10**12
"""Largest single amount of a bill or a voucher: ten billion yuan. Sums of a city stay far below 2**63."""

FUND_FEN_MAX = 10**14
"""Largest fund of a campaign, and so largest budget of a round: a trillion yuan. An account holds ten times that."""

BP_WHOLE = 10_000
"""Shares are in hundredths of a percent and add up to this."""

_YUAN = re.compile(r"([0-9]{1,13})(?:\.([0-9]{1,2}))?")


def format_yuan(fen: int) -> str:
    """Fen as people read money: `123456` -> `"1,234.56"`, a minus sign in front of a debt."""
    sign = "-" if fen < 0 else ""
    yuan, rest = divmod(abs(fen), 100)
    return f"{sign}{yuan:,}.{rest:02d}"


def parse_yuan(text: str, fen_max: int = AMOUNT_FEN_MAX) -> int:
    """`"20"`, `"20.5"`, `"20.50"` -> fen. ValueError for more than `fen_max`, and for anything else, signs and commas
    included."""
    match = _YUAN.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not an amount in yuan such as 20 or 20.50")
    fen = int(match[1]) * 100 + int((match[2] or "0").ljust(2, "0"))
    if fen > fen_max:
        raise ValueError(f"{text!r} is above the largest amount, {format_yuan(fen_max)} yuan")
    return fen


def split_by_bp(amount_fen: int, shares_bp: Sequence[int]) -> list[int]:
    """Splits an amount by shares so that the parts add up to the fen (largest remainder).

    Of equal remainders the earlier share gets the fen. ValueError unless the shares are
    non-negative and add up to 10,000.
    """
    if sum(shares_bp) != BP_WHOLE or min(shares_bp) < 0:
        raise ValueError(f"shares must be non-negative and add up to {BP_WHOLE}, not {list(shares_bp)}")
    parts = [amount_fen * share // BP_WHOLE for share in shares_bp]
    by_remainder = sorted(range(len(parts)), key=lambda i: -(amount_fen * shares_bp[i] % BP_WHOLE))
    for i in by_remainder[: amount_fen - sum(parts)]:
        parts[i] += 1
    return parts
