"""Rows of keys out of the books, for a keyring."""

from collections.abc import Mapping, Sequence
from typing import Any

from kernel.postgres import ACQUIRE_TIMEOUT_S, Pool
from kernel.refreshing import in_turns


class KeyRows:
    """What the query `api_keys` answers; `digest_query` answers another number when that did change."""

    def __init__(self, pool: Pool, query: str, digest_query: str) -> None:
        self._pool = pool
        self._query = query
        self._digest_query = digest_query

    async def digest(self) -> object:
        """Equal for equal rows."""
        async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as conn:
            return await conn.fetchval(self._digest_query)

    async def rows(self) -> Sequence[Mapping[str, Any]]:
        """All of them."""
        async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as conn:
            return [dict(row) async for row in in_turns(await conn.fetch(self._query))]
