import pytest

from smf_jax.evaluate.forgetting import CurvePoint, forgotten, kept_at


def curve_of(*points):
    """Returns a curve from steps, what was learned and what was kept."""
    return [CurvePoint(step, learned, 0.0, kept) for step, learned, kept in points]


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
    ("curve", "learned", "want"),
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
def test_kept_is_interpolated_between_points(curve, learned, want):
    assert kept_at(curve, learned) == pytest.approx(want)


def test_a_level_that_is_never_reached_and_a_run_without_known_facts_have_none():
    assert kept_at(CURVE, 0.81) is None
    assert kept_at(curve_of((0, 0.0, None), (9, 1.0, None)), 0.5) is None
