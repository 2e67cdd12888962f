"""Random claims of a few people for all kinds of offers, held against the model step by step.

Hypothesis makes the stories; the store decides them in one call or many, as they come. People are new in every
story; stocks go on from story to story, in the store as in the model, so that they run out on the way.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import count, groupby
from operator import itemgetter

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kernel.errors import Code
from tests import stores
from tests.city import City, open_city
from tests.city_plan import person
from tests.limits_model import LimitsModel, assert_within_limits
from tests.limits_plan import capped, everybody_rests, touring

CAMPAIGNS = [touring(scarce=7), capped()]
OFFERS = sorted(LimitsModel(CAMPAIGNS).offers)
PEOPLE = 3
TRIES = 5
"""What the gate lets a rested person try at once; a batch has no more for anybody."""
EXAMPLES = 50

REFUSALS = {Code.USER_ALREADY_CLAIMED, Code.SOLD_OUT, Code.IDEMPOTENCY_MISMATCH, Code.RESOURCE_NOT_EXISTS}

_stories = count()

Step = tuple[int, str, str, int]
"""Person, offer, partner, number."""
EVERY_LIMIT: list[list[Step]] = [
    [(0, "tour_dining", "its own", 0), (0, "tour_a_dining", "its own", 1), (0, "tour_a_dining", "its own", 2)],
    [(0, "tour_mall", "its own", 3), (1, "tour_big", "its own", 4), (1, "tour_a_big", "its own", 5)],
    [(1, "tour_big", "alipay", 6), (1, "tour_dining", "its own", 4), (1, "tour_granted", "its own", 7)],
    [(2, "cap_whole", "its own", 8), (2, "cap_10", "its own", 9), (2, "cap_whole", "its own", 8)],
]
RUN_DRY: list[list[Step]] = [[(who, "tour_rare", "its own", 2 * who + n) for who in range(3) for n in range(2)]]

STEPS = st.lists(
    st.lists(
        st.tuples(
            st.integers(0, PEOPLE - 1),
            st.sampled_from(OFFERS),
            st.sampled_from(["its own"] * 9 + ["wechat", "alipay"]),
            st.integers(0, 12),
        ),
        min_size=1,
        max_size=12,
    ),
    min_size=1,
    max_size=8,
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    async with open_city(cluster, tmp_path_factory.mktemp("model"), campaigns=CAMPAIGNS) as made:
        yield made


class Story:
    """People of one story."""

    def __init__(self, model: LimitsModel) -> None:
        self.no = next(_stories)
        self.model = model

    def claims(self, steps: Sequence[Step]) -> list[tuple[str, dict[str, str]]]:
        """Partner and claim of each step that the gate would let through."""
        found, tries = [], [0] * PEOPLE
        for who, offer_id, partner_id, number in steps:
            if tries[who] < TRIES:
                tries[who] += 1
                partner = self.model.offers[offer_id].partner_id if partner_id == "its own" else partner_id
                body = {"out_request_no": f"story-{self.no:04}-{number}", "stock_id": offer_id}
                found.append((partner, body | {"person_token": person(1_000 + self.no * PEOPLE + who)}))
        return found


@pytest.mark.asyncio(loop_scope="module")
async def test_the_store_does_what_the_model_says(city: City) -> None:
    model, steps, seen = LimitsModel(CAMPAIGNS), 0, set()
    won: list[tuple[str, str]] = []
    loop = asyncio.get_running_loop()

    async def play(story: Story, batches: Sequence[Sequence[Step]]) -> None:
        nonlocal steps
        for batch in batches:
            await everybody_rests(city)
            for partner_id, group in groupby(story.claims(batch), key=itemgetter(0)):
                claims = [body for _, body in group]
                steps += len(claims)
                reply = await city.call(city.issuer, partner_id, "POST", "/v1/claims:batch", {"claims": claims})
                for body, item in zip(claims, reply.json["results"], strict=True):
                    problem = item.get("problem") or {}
                    told = problem.get("code"), problem.get("rule")
                    wanted = model.claim(partner_id, body["stock_id"], body["person_token"], body["out_request_no"])
                    assert told == wanted, (body, told, wanted)
                    seen.add(wanted)
                    if not problem and not item.get("replayed"):
                        won.append((body["person_token"], body["stock_id"]))

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(STEPS)
    @example(EVERY_LIMIT)
    @example(RUN_DRY)
    @example(EVERY_LIMIT)
    def stories(batches: list[list[Step]]) -> None:
        asyncio.run_coroutine_threadsafe(play(Story(model), batches), loop).result(timeout=100)

    await asyncio.to_thread(stories)
    assert_within_limits(CAMPAIGNS, won)
    assert steps > 300, steps
    wanted = {"PERSON_LIMIT", "GROUP_LIMIT", "FACE_LIMIT", "GRANT_ONLY"}
    assert {rule for _, rule in seen} >= wanted, seen
    assert {code for code, _ in seen} >= {None, *REFUSALS}, seen
