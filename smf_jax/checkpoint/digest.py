"""What names the content of arrays, wherever and however they are placed."""

import hashlib

import numpy as np
from jaxtyping import PyTree

from smf_jax.names import named


def digests(arrays: PyTree) -> dict[str, str]:
    """Returns the SHA-256 of each array's type, shape and bits, by its name.

    The bits are taken in C order on the host, so that neither mesh nor devices matter.
    """
    return {name: _digest(np.asarray(leaf)) for name, leaf in named(arrays).items()}


def _digest(array: np.ndarray) -> str:
    digest = hashlib.sha256(f"{array.dtype} {list(array.shape)} ".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def params_hash(params: PyTree) -> str:
    """Returns the SHA-256, in hex, of the names and contents of parameters."""
    return hash_of(digests(params))


def hash_of(named: dict[str, str]) -> str:
    """Returns the SHA-256, in hex, of names with their digests."""
    lines = [f"{name} {digest}\n" for name, digest in named.items()]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
