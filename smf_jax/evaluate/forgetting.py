"""What a method learned and forgot, from the points of its learning curve."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple


class CurvePoint(NamedTuple):
    """Exact matches, between 0 and 1, after some steps of teaching."""

    step: int
    learned: float  # new facts, in the wording that is trained on
    learned_held_out_wording: float  # new facts, in a wording that is never trained on
    kept: float | None  # facts known before; None: the run has none


def forgotten(before: float, after: float) -> float:
    """Returns the share of a held-out score that was lost; negative if it has grown.

    Source: the percentages of Lin et al. 2025, arXiv:2510.15103, read as relative to
    each model's own start.
    """
    return (before - after) / before if before else 0.0


def kept_at(curve: Sequence[CurvePoint], learned: float) -> float | None:
    """Returns `kept` where a curve first reaches `learned`; None if it never does.

    It is interpolated between points: methods are compared at equal learning, not at
    equal steps.
    """
    if curve[0].learned >= learned:
        return curve[0].kept
    for last, point in itertools.pairwise(curve):
        if last.learned < learned <= point.learned and point.kept is not None:
            share = (learned - last.learned) / (point.learned - last.learned)
            return last.kept + share * (point.kept - last.kept)
    return None
