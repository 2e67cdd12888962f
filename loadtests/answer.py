"""What a claim was told."""

from collections.abc import Mapping

import msgspec


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a claim was told. `status` 0: nothing came back."""

    status: int
    code: str = ""
    """A refusal's stable code."""
    voucher_code: str | None = None
    is_safe_to_repeat: bool = False
    retry_after_s: float | None = None


def read_answer(status: int, body: bytes, headers: Mapping[str, str]) -> Answer:
    """What an HTTP answer means to a client. What is not JSON comes from something in between."""
    try:
        said = msgspec.json.decode(body)
    except msgspec.DecodeError:
        said = None
    if status == 0 or not isinstance(said, dict):
        return Answer(status=status, is_safe_to_repeat=status == 0 or status >= 500)
    if status == 200:
        return Answer(status=status, voucher_code=said.get("voucher_code"))
    after = headers.get("Retry-After")
    return Answer(
        status=status,
        code=str(said.get("code", "")),
        is_safe_to_repeat=said.get("retry") == "SAFE",
        retry_after_s=float(after) if after and after.isdecimal() else None,
    )
