import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smf_jax.evaluate.intervals import forgotten_interval, ratio_interval, wilson


@pytest.mark.parametrize(
    ("share", "n", "want"),
    [  # of the formula, by hand
        (0.0, 30, (0.0, 0.1135)),
        (1.0, 30, (0.8865, 1.0)),
        (0.5, 100, (0.4038, 0.5962)),
        (0.0, 0, (0.0, 1.0)),
    ],
)
def test_a_share_has_the_interval_of_wilson(share, n, want):
    assert wilson(share, n) == pytest.approx(want, abs=1e-4)


@given(right=st.integers(0, 500), more=st.integers(0, 500))
def test_an_interval_holds_its_share_within_0_and_1(right, more):
    n = right + more
    share = right / n if n else 0.5
    low, high = wilson(share, n)

    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1


def test_nothing_forgotten_of_few_facts_says_little():
    low, high = forgotten_interval(0, 0, 30, 30)

    assert (low, high) == pytest.approx((0.0, 0.1135), abs=1e-4)
    assert forgotten_interval(0, 0, 3000, 3000)[1] < 0.002


@given(n=st.integers(1, 200), data=st.data())
def test_what_was_forgotten_lies_in_its_interval(n, data):
    right = data.draw(st.integers(1, n))
    lost, gained = (
        data.draw(st.integers(0, right)),
        data.draw(st.integers(0, n - right)),
    )
    low, high = forgotten_interval(lost, gained, right, n)

    assert low - 1e-9 <= (lost - gained) / right <= high + 1e-9


def test_an_interval_covers_the_truth_19_times_of_20():
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(2000):
        was = rng.random(120) < 0.8
        now = np.where(was, rng.random(120) > 0.1, rng.random(120) < 0.2)
        counts = (was & ~now).sum(), (~was & now).sum(), was.sum()
        low, high = forgotten_interval(*map(int, counts), 120)
        # Given how many were right before.
        truth = 0.1 - 0.2 * (120 - was.sum()) / was.sum()
        covered.append(low <= truth <= high)

    assert 0.93 < np.mean(covered) < 0.98


def test_the_interval_of_a_mean_loss_is_that_of_a_ratio():
    rng = np.random.default_rng(0)
    weights = rng.uniform(20, 60, 400)
    sums = weights * 3 + rng.normal(0, 10, 400)
    low, high = ratio_interval(sums, weights)

    assert low < sums.sum() / weights.sum() < high
    # Of equal weights: 1.96 standard errors of a mean, here 10 / 40 / sqrt(400).
    assert high - low == pytest.approx(2 * 1.96 * 10 / weights.mean() / 20, rel=0.1)
    assert ratio_interval(np.array([3.0]), np.array([1.0])) is None
