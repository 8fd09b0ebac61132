"""What training changes: made anew, or as a checkpoint has it."""

from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jaxtyping import PyTree

from smf_jax import checkpoint, distributed
from smf_jax.config import require
from smf_jax.optim.methods import Method
from smf_jax.train.step import TrainState


def split_for_training(
    model: nnx.Module, method: Method
) -> tuple[nnx.GraphDef, TrainState, PyTree]:
    """Returns a model's structure, what trains with its optimizer state, and the rest.

    What trains is copied, since a step donates it and the model may be needed again.
    """
    graph, trainable, frozen = nnx.split(model, method.trainable, ...)
    trainable = jax.tree.map(jax.numpy.copy, nnx.as_pure(trainable))
    state = TrainState(
        trainable, jax.jit(method.tx.init)(trainable), jax.numpy.zeros((), "int32")
    )
    return graph, *distributed.place((state, nnx.as_pure(frozen)))


def abstract_split(
    model: nnx.Module, method: Method
) -> tuple[nnx.GraphDef, TrainState, PyTree]:
    """Returns what `split_for_training` does, for a model that has shapes alone."""
    graph, trainable, frozen = nnx.split(model, method.trainable, ...)
    trainable = nnx.as_pure(trainable)
    opt_state = jax.eval_shape(method.tx.init, trainable)
    skipped = jax.ShapeDtypeStruct((), "int32")
    return graph, TrainState(trainable, opt_state, skipped), nnx.as_pure(frozen)


def restore(
    run_dir: Path, step: int, state: TrainState, max_skips: int
) -> tuple[TrainState, dict[str, Any]]:
    """Returns the state of training after a step, and the progress saved with it.

    Of `state`, the shapes and types are looked at.

    Raises:
      ConfigError: It is another state, or more steps were skipped than may be.
    """
    abstract = jax.eval_shape(lambda tree: tree, as_saved(state))
    loaded, record = checkpoint.load(run_dir, step, abstract)
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
