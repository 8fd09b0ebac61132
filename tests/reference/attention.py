"""Rotary positions and grouped-query attention by loops, in float64."""

import math

import numpy as np


def frequencies(head_dim, theta, scaling=None):
    """Returns radians per position, pair by pair."""
    out = []
    for pair in range(head_dim // 2):
        frequency = theta ** (-2 * pair / head_dim)
        if scaling is not None:
            share = kept(pair, 2 * math.pi / frequency, head_dim, theta, scaling)
            stretched = frequency / scaling.factor
            frequency = (1 - share) * stretched + share * frequency
        out.append(frequency)
    return np.array(out)


def kept(pair, wavelength, head_dim, theta, scaling):
    """Returns how much of a pair's frequency is not scaled, case by case."""
    original = scaling.original_max_position
    if scaling.type == "linear":
        return 0
    if scaling.type == "llama3":
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        if wavelength > original / low:
            return 0
        if wavelength < original / high:
            return 1
        return (original / wavelength - low) / (high - low)

    def pair_with(turns):  # in the original context
        return head_dim * math.log(original / turns / 2 / math.pi, theta) / 2

    fast, slow = pair_with(scaling.beta_fast), pair_with(scaling.beta_slow)
    if scaling.truncate:
        fast, slow = math.floor(fast), math.ceil(slow)
    fast, slow = max(fast, 0), min(slow, head_dim - 1)
    if pair <= fast:
        return 1
    return 0 if pair >= slow else (slow - pair) / (slow - fast)


def rotate(head, position, frequencies):
    """Rotates the pairs (i, i + head_dim / 2) of one head as complex numbers."""
    half = len(head) // 2
    turned = (head[:half] + 1j * head[half:]) * np.exp(1j * position * frequencies)
    return np.concatenate([turned.real, turned.imag])


def attend(query, key, value, mask):
    """Returns [batch, seq, heads, head_dim]; query heads share key heads in order.

    Shapes: query [batch, seq, heads, head_dim], key and value [batch, seq, kv_heads,
    head_dim], mask [batch, seq, seq].
    """
    out = np.zeros_like(query)
    group = query.shape[2] // key.shape[2]
    for row, index, head in np.ndindex(*query.shape[:3]):
        seen = np.flatnonzero(mask[row, index])
        scores = key[row, seen, head // group] @ query[row, index, head]
        weights = np.exp(scores / math.sqrt(query.shape[3]))
        weights /= weights.sum()
        out[row, index, head] = weights @ value[row, seen, head // group]
    return out
