"""What training changes: made anew, or as a checkpoint has it, in its place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, PyTree

from smf_jax import checkpoint
from smf_jax.config import require
from smf_jax.optim.methods import Method
from smf_jax.sharding import with_places
from smf_jax.train.setting import TrainState
from smf_jax.train.step import state_shardings


def split_for_training(
    model: nnx.Module, method: Method
) -> tuple[nnx.GraphDef, TrainState, PyTree]:
    """Returns a model's structure, what trains with its optimizer state, and the rest.

    A step donates what trains, so the model is of no use after one.
    """
    graph, state, frozen = abstract_split(model, method)
    placement = model.placement
    shardings = state_shardings(placement, method, state)
    trainable, frozen = map(nnx.as_pure, nnx.split(model, method.trainable, ...)[1:])
    trainable = placement.put(trainable, shardings.trainable)
    init = jax.jit(method.tx.init, out_shardings=shardings.opt_state)
    skipped = placement.put(np.zeros((), np.int32))
    frozen = placement.put(frozen, placement.of_params(frozen))
    return graph, TrainState(trainable, init(trainable), skipped), frozen


def split_to_restore(
    model: nnx.Module, method: Method
) -> tuple[nnx.GraphDef, TrainState, PyTree]:
    """Returns what `split_for_training` does, what trains as shapes for `restore`.

    What the model holds of it is freed first, so that it is never there twice.
    """
    graph, state, _ = abstract_split(model, method)
    trainable, frozen = map(nnx.as_pure, nnx.split(model, method.trainable, ...)[1:])
    for leaf in jax.tree.leaves(trainable):
        leaf.delete()
    placement = model.placement
    return graph, state, placement.put(frozen, placement.of_params(frozen))


def abstract_split(
    model: nnx.Module, method: Method
) -> tuple[nnx.GraphDef, TrainState, PyTree]:
    """Returns what `split_for_training` does as shapes, each with its place."""
    graph, *parts = nnx.split(model, method.trainable, ...)
    trainable, frozen = jax.eval_shape(lambda: tuple(map(nnx.as_pure, parts)))
    opt_state = jax.eval_shape(method.tx.init, trainable)
    skipped = jax.ShapeDtypeStruct((), "int32")
    state = TrainState(trainable, opt_state, skipped)
    placement = model.placement
    return (
        graph,
        with_places(state, state_shardings(placement, method, state)),
        with_places(frozen, placement.of_params(frozen)),
    )


def restore(
    run_dir: Path, step: int, state: TrainState, max_skips: int
) -> tuple[TrainState, dict[str, Any]]:
    """Returns the state of training after a step, and the progress saved with it.

    Of `state`, the shapes, types and places are looked at. That the checkpoint's files
    are whole was seen when it was chosen.

    Raises:
      ConfigError: It is another state, or more steps were skipped than may be.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    state = with_places(jax.eval_shape(lambda: state), shardings)
    loaded, record = checkpoint.load(run_dir, step, as_saved(state), is_checked=True)
    rest = loaded["optimizer"]
    state = TrainState(loaded["params"], rest["state"], rest["skipped"])
    skipped = int(state.skipped)
    require(
        skipped <= max_skips,
        f"{run_dir} has skipped {skipped} batches by step {step}: go on with "
        f"--on-nan skip={skipped} or more",
    )
    return state, record.progress


def as_saved(state: TrainState) -> dict[str, PyTree]:
    """Returns the arrays of a checkpoint, in its parts."""
    optimizer = {"state": state.opt_state, "skipped": state.skipped}
    return {"params": state.trainable, "optimizer": optimizer}


def kept_on_hosts(array: Array) -> Callable[[], Array]:
    """Copies an array's parts to their hosts; what is returned puts them back.

    Of what several devices hold alike a host keeps one copy.
    """
    shape, sharding = array.shape, array.sharding
    parts, places = {}, []
    for part in array.addressable_shards:
        index = str(part.index)
        places.append((part.device, index))
        if index not in parts:
            parts[index] = np.array(part.data)

    def back() -> Array:
        placed = [jax.device_put(parts[index], device) for device, index in places]
        return jax.make_array_from_single_device_arrays(shape, sharding, placed)

    return back
