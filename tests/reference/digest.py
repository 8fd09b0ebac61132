"""The checksum of an array, word by word, in Python's whole numbers."""

import numpy as np

SEEDS = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A)
BELOW = 2**32


def mix(word):
    """Returns the word after MurmurHash3's finalizer."""
    word ^= word >> 16
    word = word * 0x85EBCA6B % BELOW
    word ^= word >> 13
    word = word * 0xC2B2AE35 % BELOW
    return word ^ word >> 16


def words_of(element):
    """Returns the bits of one element, 32 at a time, the low ones first."""
    bits = int.from_bytes(element.tobytes(), "little")
    return [bits % BELOW, bits // BELOW] if element.dtype.itemsize == 8 else [bits]


def digest(array):
    """Returns the type, shape and four sums of an array, as text."""
    array = np.asarray(array)
    sums = [0] * len(SEEDS)
    for index in np.ndindex(*array.shape):
        words = words_of(array[index])
        for half, word in enumerate(words):
            where = index if len(words) == 1 else (*index, half)
            for number, seed in enumerate(SEEDS):
                mixed = seed
                for i in where:
                    mixed = mix(mixed ^ i)
                sums[number] = (sums[number] + mix(word ^ mixed)) % BELOW
    text = "".join(f"{part:08x}" for part in sums)
    return f"{array.dtype}{list(array.shape)} {text}"
