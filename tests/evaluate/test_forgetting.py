import pytest

from smf_jax.evaluate.forgetting import CurvePoint, forgotten, kept_at

# step, learned, learned in another wording, kept
CURVE = (
    CurvePoint(0, 0.0, 0.0, 1.0),
    CurvePoint(10, 0.4, 0.1, 0.9),
    CurvePoint(20, 0.8, 0.2, 0.5),
)


@pytest.mark.parametrize(
    ("before", "after", "want"),
    [(0.8, 0.6, 0.25), (0.5, 0.0, 1.0), (0.4, 0.4, 0.0), (0.5, 0.6, -0.2)],
)
def test_what_is_forgotten_is_a_share_of_what_was_known(before, after, want):
    assert forgotten(before, after) == pytest.approx(want)


def test_nothing_can_be_forgotten_where_nothing_was_known():
    assert forgotten(0.0, 0.0) == 0.0


@pytest.mark.parametrize(
    ("learned", "want"),
    [
        (0.0, 1.0),  # there from the start
        (0.2, 0.95),  # halfway to the second point
        (0.4, 0.9),  # at it
        (0.5, 0.8),  # a quarter of the way from there
        (0.8, 0.5),  # at the end
    ],
)
def test_what_was_kept_is_read_off_a_straight_line_between_points(learned, want):
    assert kept_at(CURVE, learned) == pytest.approx(want)


def test_a_curve_that_never_reaches_has_kept_nothing_to_compare():
    assert kept_at(CURVE, 0.81) is None


def test_the_first_time_counts_where_learning_falls_back():
    curve = (
        CurvePoint(0, 0.0, 0.0, 1.0),
        CurvePoint(10, 0.6, 0.0, 0.9),
        CurvePoint(20, 0.3, 0.0, 0.2),
        CurvePoint(30, 0.9, 0.0, 0.1),
    )

    assert kept_at(curve, 0.5) == pytest.approx(1.0 - 0.1 * 5 / 6)


def test_a_flat_part_of_a_curve_is_stepped_over():
    curve = (
        CurvePoint(0, 0.2, 0.0, 1.0),
        CurvePoint(10, 0.2, 0.0, 0.4),
        CurvePoint(20, 0.4, 0.0, 0.2),
    )

    assert kept_at(curve, 0.3) == pytest.approx(0.3)


def test_a_model_that_knew_it_before_has_kept_all_it_had_then():
    curve = (CurvePoint(0, 0.5, 0.0, 0.7), CurvePoint(10, 0.9, 0.0, 0.1))

    assert kept_at(curve, 0.5) == 0.7


def test_where_nothing_was_known_nothing_was_kept():
    curve = [CurvePoint(0, 0.0, 0.0, None), CurvePoint(9, 1.0, 0.5, None)]

    assert kept_at(curve, 0.5) is None
