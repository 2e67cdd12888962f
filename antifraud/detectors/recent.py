"""Memory with a bound: what was touched last stays."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

SECOND_CHANCES = 8


class Recent(Generic[K, V]):
    """At most `size_max` values by key; the one that was longest untouched goes first.

    `is_precious` may name values to be kept longer: up to eight of them in a row get a second chance
    when room is made, so that a rush of ordinary keys does not wash out a suspicious one.
    """

    def __init__(self, size_max: int, is_precious: Callable[[V], bool] = lambda value: False) -> None:
        self._size_max = size_max
        self._is_precious = is_precious
        self._values: OrderedDict[K, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: K) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[K]:
        return iter(self._values)

    def get(self, key: K) -> V | None:
        """The value, now the last touched; None when there is none."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        """Remembers a value, and forgets another when there is no room."""
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self._size_max:
            self._forget_one()

    def pop(self, key: K) -> None:
        """Forgets a value, if it is there."""
        self._values.pop(key, None)

    def _forget_one(self) -> None:
        for _ in range(SECOND_CHANCES):
            key, value = self._values.popitem(last=False)
            if not self._is_precious(value):
                return
            self._values[key] = value
        self._values.popitem(last=False)
