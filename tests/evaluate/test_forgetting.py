import pytest

from smf_jax.data.prompts import Prompt
from smf_jax.evaluate.forgetting import CurvePoint, forgetting, forgotten, known_at
from smf_jax.evaluate.intervals import forgotten_interval


def curve_of(*points):
    """Returns a curve from steps, and scores of taught and known facts."""
    return [CurvePoint(step, taught, 0.0, known) for step, taught, known in points]


CURVE = curve_of((0, 0.0, 1.0), (10, 0.4, 0.9), (20, 0.8, 0.5))
CROSSED_TWICE = curve_of((0, 0.0, 1.0), (1, 0.6, 0.9), (2, 0.3, 0.2), (3, 0.9, 0.1))


@pytest.mark.parametrize(
    ("before", "after", "want"),
    [
        (0.8, 0.6, 0.25),
        (0.5, 0.0, 1.0),
        (0.4, 0.4, 0.0),
        (0.5, 0.6, -0.2),
        (0.0, 0.0, 0.0),
    ],
)
def test_forgotten_is_a_share_of_the_score_before(before, after, want):
    assert forgotten(before, after) == pytest.approx(want)


@pytest.mark.parametrize(
    ("curve", "taught", "want"),
    [
        (CURVE, 0.0, 1.0),  # at the first point
        (CURVE, 0.2, 0.95),  # halfway to the second
        (CURVE, 0.4, 0.9),  # at it
        (CURVE, 0.5, 0.8),  # a quarter of the way to the third
        (CURVE, 0.8, 0.5),  # at the last
        (CROSSED_TWICE, 0.45, 0.925),  # the first counts
        (curve_of((0, 0.2, 1.0), (10, 0.2, 0.4), (20, 0.4, 0.2)), 0.3, 0.3),  # flat
        (curve_of((0, 0.5, 0.7), (10, 0.9, 0.1)), 0.5, 0.7),  # before teaching
    ],
)
def test_known_is_interpolated_between_points(curve, taught, want):
    assert known_at(curve, taught) == pytest.approx(want)


def test_a_level_that_is_never_reached_and_a_run_without_known_facts_have_none():
    assert known_at(CURVE, 0.81) is None
    assert known_at(curve_of((0, 0.0, None), (9, 1.0, None)), 0.5) is None


KNOWN = [Prompt(fact, "q", ("right",)) for fact in "abcde"]
BEFORE = ["right", "Right.", "right", "right", "wrong"]


def test_facts_that_were_lost_and_gained_are_named():
    got = forgetting(KNOWN, BEFORE, ["right", "wrong", "", "right", "right"])

    assert (got.n, got.right_before, got.right_after) == (5, 4, 3)
    assert (got.lost, got.gained) == (["b", "c"], ["e"])
    assert got.forgotten == 0.25
    assert got.forgotten_95 == forgotten_interval(2, 1, 4, 5)


def test_nothing_can_be_forgotten_of_what_was_never_known():
    assert forgetting(KNOWN, ["wrong"] * 5, BEFORE) is None
