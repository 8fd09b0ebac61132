"""95 % intervals of shares, of what was forgotten, and of losses."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

Z = 1.959964  # two-sided 95 % quantile of the normal distribution
Interval = Sequence[float]  # its two ends


def show_interval(ends: Interval | None, form: str = ".3f") -> str:
    """Returns an interval as text, and nothing for none.

    >>> show_interval((0.25, 0.5), ".1%")
    '[25.0%, 50.0%]'
    """
    return "" if ends is None else f"[{', '.join(f'{end:{form}}' for end in ends)}]"


def wilson(share: float, n: int) -> Interval:
    """Returns the 95 % interval of a share of `n` independent cases.

    It is also valid, if wide, for the mean of scores between 0 and 1: none varies more
    than right and wrong with the same mean.

    >>> [round(end, 3) for end in wilson(0.0, 30)]
    [0.0, 0.114]

    Source: Wilson 1927, J. Am. Stat. Assoc. 22.
    """
    if n == 0:
        return 0.0, 1.0
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    spread = math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    return max(0.0, centre - Z * spread), min(1.0, centre + Z * spread)


def forgotten_interval(lost: int, gained: int, right: int, n: int) -> Interval:
    """Returns the 95 % interval of `(lost - gained) / right`, the share forgotten.

    `lost` of the `right` cases that were right before are wrong now, and `gained` of
    the others are right now; `n` are all cases. The two shares are of different cases,
    so their intervals combine by squares.

    Source: Newcombe 1998, Statistics in Medicine 17, method 10.
    """
    wrong = n - right
    lost_share, low_lost, high_lost = _ends(lost, right)
    scale = wrong / right
    share, low, high = (scale * end for end in _ends(gained, wrong))
    middle = lost_share - share
    below = math.hypot(lost_share - low_lost, high - share)
    above = math.hypot(high_lost - lost_share, share - low)
    # Rounded, so that no error of the last bit turns 0 into -0.
    return round(middle - below, 12) + 0.0, round(middle + above, 12) + 0.0


def _ends(cases: int, n: int) -> tuple[float, float, float]:
    share = cases / n if n else 0.0
    return share, *(wilson(share, n) if n else (0.0, 0.0))


def ratio_interval(
    sums: Float[np.ndarray, " rows"], weights: Float[np.ndarray, " rows"]
) -> Interval | None:
    """Returns the 95 % interval of `sum(sums) / sum(weights)` over independent rows.

    A single row says nothing of others, and has none.

    Source: the linearised variance of a ratio, Cochran 1977, Sampling Techniques, 6.3.
    """
    mean, n = sums.sum() / weights.sum(), len(sums)
    if n < 2:
        return None
    deviations = sums - mean * weights
    error = math.sqrt(n / (n - 1) * (deviations**2).sum()) / weights.sum()
    return float(mean - Z * error), float(mean + Z * error)
