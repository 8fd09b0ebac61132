"""The last report of each process, and who is behind by it."""

import time

from smf_jax.multihost import watchdog
from smf_jax.multihost.watchdog import Progress, behind


def progress(points, point, activity="", ago=0.0):
    return Progress(points, point, activity, time.monotonic() - ago)


def test_the_process_with_the_fewest_points_is_behind_even_if_it_reported_last():
    now = {
        0: progress(31, "step 31", ago=14),
        1: progress(30, "step 30", "text 7", ago=2),
    }

    assert behind(now) == (
        "process 1 has not reached 'step 31', its last report was 'step 30, text 7' "
        "2 s ago"
    )


def test_every_process_that_is_behind_is_named():
    now = {0: progress(3, "a"), 1: progress(4, "b"), 2: progress(3, "a")}

    assert [part.split()[1] for part in behind(now).split("; ")] == ["0", "2"]


def test_no_process_is_named_if_all_are_at_the_same_point():
    now = {0: progress(3, "step 3", ago=9), 1: progress(3, "step 3", ago=9)}

    assert behind(now) == (
        "no process is behind, their last report was 'step 3' 9 s ago"
    )


def test_activity_between_two_points_is_progress_but_not_a_point():
    watchdog.reached("step 1")
    before = watchdog._progress

    watchdog.busy("question 0")
    watchdog.busy("question 256")

    after = watchdog._progress
    assert (after.points, after.point) == (before.points, "step 1")
    assert after.activity == "question 256"
    assert after.since > before.since
