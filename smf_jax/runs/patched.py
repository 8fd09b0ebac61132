"""A run's model with a patch applied, or reverted, bit for bit."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from smf_jax.config import require
from smf_jax.model.build import slots_with_rows, with_rows, without_rows
from smf_jax.model.transformer import Transformer
from smf_jax.runs.load import Run
from smf_jax.slots import patch
from smf_jax.slots.patch import Patch


def patched(run: Run, change: Patch) -> Transformer:
    """Returns the model of a run with a patch applied; that of the run is void.

    Raises:
      ConfigError: The patch belongs to another model.
    """
    require(
        change.base_hash == run.model_hash,
        f"the patch belongs to model {change.base_hash}, but {run.run_dir} is "
        f"{run.model_hash}",
    )
    model = run.model
    if change.added is not None:
        model = with_rows(model, change.added)
    return _moved(model, change, patch.apply)


def reverted(run: Run, change: Patch) -> Transformer:
    """Returns the model of a run with a patch reverted; that of the run is void.

    Raises:
      ConfigError: The tables do not hold what the patch wrote.
    """
    require(
        run.model.config.memory is not None,
        f"{run.run_dir} has no memory layers, so no patch can have been applied to it",
    )
    model = _moved(run.model, change, patch.revert)
    return model if change.added is None else without_rows(model, change.added)


def _moved(
    model: Transformer,
    change: Patch,
    move: Callable[[Sequence[np.ndarray], Patch], list[np.ndarray]],
) -> Transformer:
    if model.config.memory.num_rows is not None:
        change = patch.at_rows(change, [slots_with_rows(model)])
    before = [np.asarray(table[...]) for table in model.values]
    for table, rows in zip(model.values, move(before, change), strict=True):
        table[...] = jnp.asarray(rows)
    return model
