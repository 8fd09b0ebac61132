"""A run's model with a patch applied, or reverted, bit for bit."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from smf_jax.checkpoint import params_hash
from smf_jax.config import ConfigError, require
from smf_jax.model.build import slots_with_rows, with_rows, without_rows
from smf_jax.model.transformer import Transformer
from smf_jax.runs.load import Run, all_params
from smf_jax.slots import patch
from smf_jax.slots.patch import Patch


def patched(run: Run, path: Path) -> Transformer:
    """Returns the model of a run with a patch applied; that of the run is void.

    Raises:
      ConfigError: The patch is damaged, or belongs to another model.
    """
    change = patch.load(path)
    require(
        change.base_hash == run.model_hash,
        f"{path} belongs to model {change.base_hash}, but {run.run_dir} is "
        f"{run.model_hash}",
    )
    model = run.model
    if change.added is not None:
        model = with_rows(model, change.added)
    return _moved(model, change, patch.apply)


def reverted(run: Run, path: Path) -> tuple[Transformer, str]:
    """Returns the model of a run with a patch reverted; that of the run is void.

    Also returns the hash of its parameters, which is that of the base of the patch.

    Raises:
      ConfigError: The patch is damaged, or the model does not hold what it wrote.
    """
    change, memory = patch.load(path), run.memory
    require(
        (change.added is None) == (memory.num_rows is None),
        f"{path} is for another kind of table than that of {run.run_dir}, or an "
        "earlier version wrote it",
    )
    try:
        model = _moved(run.model, change, patch.revert)
    except ConfigError as error:
        raise ConfigError(f"{path} is not part of {run.run_dir}: {error}") from error
    if change.added is not None:
        model = without_rows(model, change.added)
    model_hash = params_hash(all_params(model))
    require(
        model_hash == change.base_hash,
        f"{run.run_dir} without {path} is model {model_hash}, not the base of the "
        f"patch, which is {change.base_hash}",
    )
    return model, model_hash


def _moved(
    model: Transformer,
    change: Patch,
    move: Callable[[Sequence[np.ndarray], Patch], list[np.ndarray]],
) -> Transformer:
    if model.config.memory.num_rows is not None:
        change = patch.at_rows(change, [slots_with_rows(model)] * len(change.tables))
    before = [np.asarray(table[...]) for table in model.values]
    for table, rows in zip(model.values, move(before, change), strict=True):
        table[...] = jnp.asarray(rows)
    return model
