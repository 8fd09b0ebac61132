"""Rotary positions and grouped-query attention by loops, in float64."""

import math

import numpy as np


def frequencies(head_dim, theta, scaling=None):
    """Returns radians per position; scaling as in Llama 3.1, case by case."""
    out = []
    for pair in range(head_dim // 2):
        frequency = theta ** (-2 * pair / head_dim)
        if scaling is not None:
            wavelength = 2 * math.pi / frequency
            original = scaling.original_max_position
            low, high = scaling.low_freq_factor, scaling.high_freq_factor
            if wavelength > original / low:
                frequency = frequency / scaling.factor
            elif wavelength > original / high:
                smooth = (original / wavelength - low) / (high - low)
                stretched = frequency / scaling.factor
                frequency = (1 - smooth) * stretched + smooth * frequency
        out.append(frequency)
    return np.array(out)


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
