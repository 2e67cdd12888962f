"""How many requests may be under way in one worker; the next one is told so at once.

A queue that only grows helps nobody: whoever waits in it asks again elsewhere, and is served twice too late.
So a worker takes what it can answer soon, and turns the rest away before it looks at signature or body.
"""

from prometheus_client import Counter, Gauge

from kernel.errors import Code, Refusal

PIECE_BYTES = 4_096
"""A request weighs one, and one more for each full piece of its body: so memory is bounded too."""
CHUNKED_PIECES = 128
"""What a body weighs whose length nobody told."""
PIECES_MAX = 256
"""No request weighs more; what is larger is not read."""
UNDER_WAY_MAX = 4_096

BUSY = Refusal(
    code=Code.SYSTEM_BUSY,
    detail="more requests are under way than this worker takes; nothing was done, send it again",
    retry_after_s=1,
)

_under_way = Gauge("hanquan_http_under_way", "Requests under way in this worker, in pieces of 4 KiB of body")
_turned_away = Counter("hanquan_http_turned_away", "Requests answered 503 because too many were under way")


class Admission:
    """Counts what is under way. Who enters must leave with the same weight."""

    def __init__(self, under_way_max: int = UNDER_WAY_MAX) -> None:
        self.under_way_max = under_way_max
        self._under_way = 0
        _under_way.set_function(lambda: self._under_way)

    def enter(self, pieces: int = 1) -> bool:
        """Whether the request may go on. A worker with nothing to do takes any."""
        if self._under_way and self._under_way + pieces > self.under_way_max:
            _turned_away.inc()
            return False
        self._under_way += pieces
        return True

    def leave(self, pieces: int = 1) -> None:
        """The request was answered, or its client is gone."""
        self._under_way -= pieces


def weight(content_length: int | None, has_body: bool) -> int:
    """What a request weighs, from its head alone."""
    if content_length is None:
        return CHUNKED_PIECES if has_body else 1
    return min(1 + content_length // PIECE_BYTES, PIECES_MAX)
