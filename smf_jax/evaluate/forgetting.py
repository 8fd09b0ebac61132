"""What a method learned and what that cost, from the points of its curve."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple


class CurvePoint(NamedTuple):
    """Scores between 0 and 1 after some steps of teaching."""

    step: int
    learned: float  # new facts, asked as taught
    learned_held_out_wording: float  # new facts, in a wording never trained on
    kept: float | None  # facts known before; None: there are none to ask


def forgotten(before: float, after: float) -> float:
    """Returns the share of a held-out score that was lost; below 0, it has grown.

    Source: the percentages of Lin et al. 2025, arXiv:2510.15103, read as relative to
    each model's own start.
    """
    return (before - after) / before if before else 0.0


def kept_at(curve: Sequence[CurvePoint], learned: float) -> float | None:
    """Returns what was kept when a curve first reached `learned`, or None.

    Between two points the curve is taken as straight: methods are compared at the
    same learning, not at the same step.
    """
    if curve[0].learned >= learned:
        return curve[0].kept
    for last, point in itertools.pairwise(curve):
        if last.learned < learned <= point.learned and point.kept is not None:
            share = (learned - last.learned) / (point.learned - last.learned)
            return last.kept + share * (point.kept - last.kept)
    return None
