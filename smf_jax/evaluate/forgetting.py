"""What a method taught and what was forgotten over it."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from smf_jax.data.prompts import Prompt
from smf_jax.evaluate.intervals import Interval, forgotten_interval
from smf_jax.evaluate.scores import is_right


class CurvePoint(NamedTuple):
    """Exact matches, between 0 and 1, after some steps of teaching."""

    step: int
    taught: float | None  # new facts, in the words that teach them
    held_out: float | None  # new facts, in words that are never trained on
    known: float | None  # facts known before; None: the run has none


class Forgetting(NamedTuple):
    """How the answers to known facts changed."""

    n: int  # known facts
    right_before: int
    right_after: int
    lost: list[str]  # facts that were answered right before, and are not now
    gained: list[str]  # the reverse
    forgotten: float  # share of what was right before; negative if more is right now
    forgotten_95: Interval


def forgetting(
    known: Sequence[Prompt], before: Sequence[str], after: Sequence[str]
) -> Forgetting | None:
    """Returns how the answers changed; None if none was right before."""
    lost, gained, right = [], [], 0
    for prompt, old, new in zip(known, before, after, strict=True):
        was, now = is_right(old, prompt), is_right(new, prompt)
        right += was
        if was and not now:
            lost.append(prompt.fact)
        if now and not was:
            gained.append(prompt.fact)
    if right == 0:
        return None
    left, n = right - len(lost) + len(gained), len(known)
    interval = forgotten_interval(len(lost), len(gained), right, n)
    share = forgotten(float(right), float(left))
    return Forgetting(n, right, left, lost, gained, share, interval)


def forgotten(before: float, after: float) -> float:
    """Returns the share of a score that was lost; negative if it has grown.

    Source: the percentages of Lin et al. 2025, arXiv:2510.15103, read as relative to
    each model's own start.
    """
    return (before - after) / before if before else 0.0


def known_at(curve: Sequence[CurvePoint], taught: float) -> float | None:
    """Returns `known` where a curve first reaches `taught`; None if it never does.

    It is interpolated between points: methods are compared at equal learning, not at
    equal steps.
    """
    if curve[0].taught >= taught:
        return curve[0].known
    for last, point in itertools.pairwise(curve):
        if last.taught < taught <= point.taught and point.known is not None:
            share = (taught - last.taught) / (point.taught - last.taught)
            return last.known + share * (point.known - last.known)
    return None
