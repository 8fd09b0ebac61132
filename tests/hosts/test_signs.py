"""The last sign of each process, and who is behind by it."""

import time

from smf_jax.multihost import heartbeat as signs
from smf_jax.multihost.heartbeat import Sign, furthest_behind


def sign(points, point, doing="", ago=0.0):
    return Sign(points, point, doing, time.monotonic() - ago)


def test_the_one_with_the_fewest_points_is_behind_whenever_its_sign_was():
    now = {0: sign(31, "step 31", ago=14), 1: sign(30, "step 30", "text 7", ago=2)}

    assert furthest_behind(now) == (
        "process 1 has not come to 'step 31', its last sign was 'step 30, text 7' "
        "2 s ago"
    )


def test_all_that_are_behind_are_named():
    now = {0: sign(3, "a"), 1: sign(4, "b"), 2: sign(3, "a")}

    assert [part.split()[1] for part in furthest_behind(now).split("; ")] == ["0", "2"]


def test_nobody_is_behind_where_all_are_at_one_point():
    now = {0: sign(3, "step 3", ago=9), 1: sign(3, "step 3", ago=9)}

    assert furthest_behind(now) == (
        "none is behind, the last sign of all was 'step 3' 9 s ago"
    )


def test_work_between_two_points_is_a_sign_and_no_point():
    signs.mark("step 1")
    before = signs.last()

    signs.working("question 0")
    signs.working("question 256")

    after = signs.last()
    assert (after.points, after.point) == (before.points, "step 1")
    assert after.doing == "question 256"
    assert after.since > before.since
