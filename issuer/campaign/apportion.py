"""Whole things shared out in proportion."""

from collections.abc import Sequence


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """Splits `total` in proportion to positive weights, each part at least 1 (largest remainder).

    The parts add up to `total`. Whoever would get less than 1 gets 1, and the rest is shared among
    the others. Of equal remainders the earlier part gets the unit. ValueError when `total` is
    smaller than the number of parts, or a weight is not positive.
    """
    if total < len(weights) or min(weights, default=1) < 1:
        raise ValueError(f"{total} cannot be shared into {len(weights)} parts of at least 1")
    parts = _by_remainder(total, weights)
    while 0 in parts:
        is_large = [part > 1 for part in parts]
        rest = total - is_large.count(False)
        shares = iter(_by_remainder(rest, [weights[i] for i, large in enumerate(is_large) if large]))
        parts = [next(shares) if large else 1 for large in is_large]
    return parts


def _by_remainder(total: int, weights: Sequence[int]) -> list[int]:
    whole = sum(weights)
    parts = [total * weight // whole for weight in weights]
    order = sorted(range(len(parts)), key=lambda i: -(total * weights[i] % whole))
    for i in order[: total - sum(parts)]:
        parts[i] += 1
    return parts
