"""Everything that the clients were told, one JSON object a line, a file a process.

A request that was sent again is two lines of one number. `outcome` is GRANTED, a refusal's code, or
UNKNOWN when no answer came that says what happened.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

GRANTED, UNKNOWN = "GRANTED", "UNKNOWN"
LINES_HELD_MAX = 500
HELD_S_MAX = 0.5


class Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="claim", tag_field="kind"):
    """One claim and what came back."""

    outcome: str
    partner_id: str
    person_token: str
    stock_id: str
    out_request_no: str
    voucher_code: str | None = None
    at_ms: int
    """When the answer was there, in ms since 1970."""
    called_ms: float
    """Latency, counted from the call; what most tools report."""
    pressed_ms: float
    """Latency, counted from when the press was due: what the person waits. A stall of either side is in it,
    and the wait for a free connection."""


class ClientLog:
    """Appends to one file. Holds LINES_HELD_MAX lines at most; what it held is written within
    HELD_S_MAX of the next line, and by `flush`."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._encoder = msgspec.json.Encoder()
        self._held: list[bytes] = []
        self._written_s = time.monotonic()

    def add(self, line: Line) -> None:
        """Writes a line now or soon."""
        self._held.append(self._encoder.encode(line))
        if len(self._held) >= LINES_HELD_MAX or time.monotonic() - self._written_s >= HELD_S_MAX:
            self.flush()

    def flush(self) -> None:
        """Writes all that is held."""
        held, self._held = self._held, []
        if held:
            _write_all(self._file, b"\n".join(held) + b"\n")
        self._written_s = time.monotonic()

    def close(self) -> None:
        """Flushes and closes."""
        self.flush()
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a log, one at a time. Raises msgspec.DecodeError naming the line, or OSError."""
    decoder = msgspec.json.Decoder(Line)
    with path.open("rb") as file:
        for number, text in enumerate(file, start=1):
            try:
                yield decoder.decode(text)
            except msgspec.DecodeError as error:
                raise msgspec.DecodeError(f"{path}, line {number}: {error}") from error


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]
