import pytest

from smf_jax.evaluate.forgetting import CurvePoint, forgotten, kept_at


def curve_of(*points):
    """Returns a curve from steps, what was learned and what was kept."""
    return [CurvePoint(step, learned, 0.0, kept) for step, learned, kept in points]


CURVE = curve_of((0, 0.0, 1.0), (10, 0.4, 0.9), (20, 0.8, 0.5))


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
    ("learned", "want"),
    [
        (0.0, 1.0),  # at the first point
        (0.2, 0.95),  # halfway to the second
        (0.4, 0.9),  # at it
        (0.5, 0.8),  # a quarter of the way to the third
        (0.8, 0.5),  # at the last
    ],
)
def test_kept_is_interpolated_between_points(learned, want):
    assert kept_at(CURVE, learned) == pytest.approx(want)


def test_a_level_that_is_never_reached_has_nothing_to_compare():
    assert kept_at(CURVE, 0.81) is None


def test_the_first_crossing_counts():
    curve = curve_of((0, 0.0, 1.0), (10, 0.6, 0.9), (20, 0.3, 0.2), (30, 0.9, 0.1))

    assert kept_at(curve, 0.5) == pytest.approx(1.0 - 0.1 * 5 / 6)


def test_a_flat_part_of_a_curve_is_skipped():
    curve = curve_of((0, 0.2, 1.0), (10, 0.2, 0.4), (20, 0.4, 0.2))

    assert kept_at(curve, 0.3) == pytest.approx(0.3)


def test_a_level_reached_before_teaching_has_what_was_kept_then():
    assert kept_at(curve_of((0, 0.5, 0.7), (10, 0.9, 0.1)), 0.5) == 0.7


def test_a_run_without_known_facts_has_kept_none():
    assert kept_at(curve_of((0, 0.0, None), (9, 1.0, None)), 0.5) is None
