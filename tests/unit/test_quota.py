"""Tokens of a quota, and what a request weighs."""

import pytest

from kernel.admission import CHUNKED_PIECES, PIECES_MAX, Admission, weight
from kernel.quota import TokenBucket


class Seconds:
    """A clock that stands."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def served(bucket: TokenBucket, tokens: int = 1) -> bool:
    if bucket.wait_s():
        return False
    bucket.take(tokens)
    return True


def test_a_second_brings_so_many_and_no_more() -> None:
    seconds = Seconds()
    bucket = TokenBucket(100, seconds)
    assert sum(served(bucket) for _ in range(1_000)) == 100
    for _ in range(10):
        seconds.now_s += 0.25
        assert sum(served(bucket) for _ in range(1_000)) == 25
    seconds.now_s += 3_600
    assert sum(served(bucket) for _ in range(1_000)) == 100  # nothing is saved up beyond a second's worth


def test_a_batch_is_never_cut_and_its_debt_is_paid_first() -> None:
    seconds = Seconds()
    bucket = TokenBucket(100, seconds)
    assert served(bucket, 1_000)
    assert bucket.wait_s() == 10  # 900 are owed, and one is asked for
    seconds.now_s += 9
    assert not served(bucket)
    seconds.now_s += 0.1
    assert served(bucket)


@pytest.mark.parametrize("size", [1, 7, 1_000])
def test_over_time_the_rate_is_kept_whatever_the_size(size: int) -> None:
    seconds = Seconds()
    bucket, tokens = TokenBucket(50, seconds), 0
    for _ in range(100_000):
        seconds.now_s += 0.01
        tokens += size if served(bucket, size) else 0
    assert 50 * 1_000 <= tokens <= 50 * 1_001 + size


def test_a_share_below_one_a_second_is_a_rate_too() -> None:
    seconds = Seconds()
    bucket = TokenBucket(0.25, seconds)
    assert [served(bucket), served(bucket)] == [True, False]
    assert bucket.wait_s() == 4
    seconds.now_s += 4
    assert served(bucket)


def test_a_new_rate_forgives_no_debt() -> None:
    seconds = Seconds()
    bucket = TokenBucket(10, seconds)
    assert served(bucket, 110)
    bucket.change(100)
    assert bucket.per_s == 100
    assert bucket.wait_s() == 2
    bucket.change(10)
    assert bucket.wait_s() == 11


def test_what_is_under_way_is_bounded_in_pieces_of_body() -> None:
    admission = Admission(100)
    assert admission.enter(weight(512 * 1024, True))  # nobody else is here: any is taken
    assert not admission.enter()
    admission.leave(weight(512 * 1024, True))
    assert sum(admission.enter() for _ in range(200)) == 100
    admission.leave(10)
    assert not admission.enter(11)
    assert admission.enter(10)


def test_a_body_weighs_what_it_may_take_in_memory() -> None:
    assert [weight(None, False), weight(0, True), weight(4_095, True), weight(4_096, True)] == [1, 1, 1, 2]
    assert weight(None, True) == CHUNKED_PIECES
    assert weight(10**12, True) == PIECES_MAX
