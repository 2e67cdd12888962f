"""Asks the server what became of claims: GET /v1/claims/{out_request_no}."""

import asyncio
import time
from collections.abc import Sequence

import aiohttp
import msgspec

from loadtests.plan import Plan
from loadtests.signing import Signer

ASKED_MAX = 20_000
AT_ONCE = 32
TRIES_MAX = 5
TIMEOUT_S = 10.0
BACKOFF_S = 0.3

Question = tuple[str, str, str]
"""Partner, request number, person token."""


class State(msgspec.Struct, frozen=True):
    """What the server says of a claim now."""

    code: str | None = None
    is_absent: bool = False
    """It brought no voucher."""
    trouble: str = "no voucher"


async def ask_states(plan: Plan, questions: Sequence[Question]) -> list[State]:
    """Answers in order; what could not be found out in TRIES_MAX tries says why."""
    signers = {partner.partner_id: Signer(partner) for partner in plan.partners}
    turn = asyncio.Semaphore(AT_ONCE)
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(plan.base_url, timeout=timeout) as http:

        async def ask(question: Question) -> State:
            async with turn:
                return await _ask(http, plan, signers[question[0]], question)

        return await asyncio.gather(*(ask(question) for question in questions))


async def _ask(http: aiohttp.ClientSession, plan: Plan, signer: Signer, question: Question) -> State:
    path = f"/v1/claims/{question[1]}?person_token={question[2]}"
    state = State()
    for attempt in range(TRIES_MAX):
        await asyncio.sleep(BACKOFF_S * attempt)
        timestamp_s = (time.time_ns() // 1_000_000 + plan.clock_ahead_ms) // 1000
        headers = {"Authorization": signer.header("GET", path, b"", timestamp_s)}
        try:
            async with http.get(path, headers=headers) as response:
                state = _read(response.status, await response.read())
        except (aiohttp.ClientError, TimeoutError) as error:
            state = State(trouble=f"no answer ({type(error).__name__})")
        if state.code is not None or state.is_absent:
            return state
    return state


def _read(status: int, body: bytes) -> State:
    try:
        said = msgspec.json.decode(body, type=dict[str, object])
    except msgspec.DecodeError:
        return State(trouble=f"status {status}, not JSON")
    if status == 200 and isinstance(said.get("voucher_code"), str):
        return State(code=str(said["voucher_code"]))
    code = str(said.get("code"))
    return State(is_absent=status == 404 and code == "RESOURCE_NOT_EXISTS", trouble=f"status {status}, {code}")
