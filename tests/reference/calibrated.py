"""A calibrated memory by loops, in float64."""

import numpy as np


def unit(vector):
    """Returns a vector of length 1."""
    return vector / np.linalg.norm(vector)


def memory(x, mean, projection, keys, gain, values, top_k, temperature):
    """Returns what the memory adds to each token of `x` [tokens, dim].

    `keys` are [heads, 2, num_keys, half], and `values` a dict from slots to rows; other
    slots read as zeros. All pairs of keys are scored.
    """
    heads, _, num_keys, half = keys.shape
    out = np.zeros_like(x)
    for number, token in enumerate(x):
        query = ((token - mean) @ projection).reshape(heads, 2, half)
        for head in range(heads):
            first, second = (keys[head, n] @ unit(query[head, n]) for n in (0, 1))
            scores = (first[:, None] + second[None]).ravel()
            best = sorted(range(num_keys**2), key=lambda slot: (-scores[slot], slot))
            best = best[:top_k]
            weights = np.exp((scores[best] - scores[best[0]]) / temperature)
            weights /= weights.sum()
            for slot, weight in zip(best, weights, strict=True):
                if slot in values:
                    out[number] += gain * weight / heads * values[slot]
    return out
