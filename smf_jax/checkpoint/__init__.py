"""Checkpoints of a run: parameters, optimizer state and progress, saved atomically.

    RUN/checkpoints/STEP/arrays/        by orbax
    RUN/checkpoints/STEP/manifest.json  progress; checksums of all files and arrays

Any other name (`40.saving`, `20.deleting`, `40.damaged`) is not a checkpoint.
"""

from smf_jax.checkpoint.digest import digests, hash_of, params_hash
from smf_jax.checkpoint.load import discard_debris, latest_step, load, set_aside, steps
from smf_jax.checkpoint.manifest import (
    Manifest,
    output_problems,
    problems,
    read,
    run_file_problems,
)
from smf_jax.checkpoint.save import SaveError, Saver, saver

__all__ = [
    "Manifest",
    "SaveError",
    "Saver",
    "digests",
    "discard_debris",
    "hash_of",
    "latest_step",
    "load",
    "output_problems",
    "params_hash",
    "problems",
    "read",
    "run_file_problems",
    "saver",
    "set_aside",
    "steps",
]
