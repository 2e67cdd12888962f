"""How much the tests try: enough to notice a mistake each time, and with HANQUAN_TEST_FULL=1 as much as we ever did."""

import os

FULL = bool(os.environ.get("HANQUAN_TEST_FULL"))


def times(usual: int, full: int) -> int:
    """How often something random is tried."""
    return full if FULL else usual
