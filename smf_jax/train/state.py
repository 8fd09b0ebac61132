"""What a training step is compiled for, what it updates, and how that is restored."""

from typing import NamedTuple

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Int, PyTree

from smf_jax import checkpoint
from smf_jax.config import MemoryConfig, require
from smf_jax.optim.methods import Method, map_state
from smf_jax.runs import OpenRun
from smf_jax.sharding import MeshLayout, with_shardings
from smf_jax.slots.document_frequency import Background

Metrics = dict[str, Array]


class StepSpec(NamedTuple):
    """What is static in a compiled step."""

    graph: nnx.GraphDef  # of the model, split by `method.trainable`
    memory: MemoryConfig | None
    method: Method
    layout: MeshLayout


class TrainState(NamedTuple):
    """What a step updates."""

    trainable: PyTree
    opt_state: optax.OptState
    skipped: Int[Array, ""]  # steps without an update: a number was not finite


def init_or_restore(
    run: OpenRun, model: nnx.Module, method: Method, max_skips: int
) -> tuple[nnx.GraphDef, TrainState, PyTree]:
    """Returns the state of a new run, or that of the checkpoint it resumes from.

    On resume the model's trainable arrays are freed first; shapes work, too. The run
    must have skipped at most `max_skips` steps.
    """
    if run.start is None:
        return init_state(model, method)
    graph, state, _ = abstract_state(model, method)
    trainable, frozen = _split(model, method)
    for leaf in jax.tree.leaves(trainable):
        if isinstance(leaf, jax.Array):
            leaf.delete()
    layout = model.layout
    frozen = layout.device_put(frozen, layout.param_shardings(frozen))
    # The run checked the checkpoint's files when it was opened.
    arrays, _ = checkpoint.load(
        run.run_dir, run.start, as_saved(state), is_checked=True
    )
    optimizer = arrays["optimizer"]
    state = TrainState(arrays["params"], optimizer["state"], optimizer["skipped"])
    skipped = int(state.skipped)
    require(
        skipped <= max_skips,
        f"{run.run_dir} has skipped {skipped} batches by step {run.start}: resume with "
        f"--on-nan skip={skipped} or more",
    )
    return graph, state, frozen


def init_state(
    model: nnx.Module, method: Method
) -> tuple[nnx.GraphDef, TrainState, PyTree]:
    """Returns a model's graph, its initial `TrainState`, and its frozen parameters.

    A step donates the state, so the model is unusable after one.
    """
    graph, abstract, _ = abstract_state(model, method)
    layout = model.layout
    shardings = state_shardings(layout, method, abstract)
    trainable, frozen = _split(model, method)
    trainable = layout.device_put(trainable, shardings.trainable)
    init = jax.jit(method.tx.init, out_shardings=shardings.opt_state)
    skipped = layout.device_put(np.zeros((), np.int32))
    frozen = layout.device_put(frozen, layout.param_shardings(frozen))
    return graph, TrainState(trainable, init(trainable), skipped), frozen


def abstract_state(
    model: nnx.Module, method: Method
) -> tuple[nnx.GraphDef, TrainState, PyTree]:
    """Returns what `init_state` does as `jax.ShapeDtypeStruct`s with shardings."""
    graph, *_ = nnx.split(model, method.trainable, ...)
    trainable, frozen = jax.eval_shape(lambda: _split(model, method))
    opt_state = jax.eval_shape(method.tx.init, trainable)
    skipped = jax.ShapeDtypeStruct((), "int32")
    state = TrainState(trainable, opt_state, skipped)
    layout = model.layout
    return (
        graph,
        with_shardings(state, state_shardings(layout, method, state)),
        with_shardings(frozen, layout.param_shardings(frozen)),
    )


def _split(model: nnx.Module, method: Method) -> tuple[PyTree, PyTree]:
    _, *parts = nnx.split(model, method.trainable, ...)
    trainable, frozen = map(nnx.as_pure, parts)
    return trainable, frozen


def state_shardings(
    layout: MeshLayout, method: Method, state: TrainState
) -> TrainState:
    """Returns the sharding of each array of a state, given arrays or shapes.

    Optimizer state of a parameter is sharded as the parameter is.
    """
    trainable = layout.param_shardings(state.trainable)
    opt_state = map_state(
        method.tx,
        lambda _, sharding: sharding,
        state.opt_state,
        trainable,
        otherwise=lambda _: layout.replicated,
    )
    return TrainState(trainable, opt_state, layout.replicated)


def background_shardings(layout: MeshLayout, with_facts: bool = False) -> Background:
    """Returns the sharding of each array of a background, with or without facts."""
    slots = layout.sharding(PartitionSpec(None, layout.row_axes or None))
    shardings = Background(slots, layout.replicated)
    if with_facts:
        return Background(*shardings[:2], *shardings[:2])
    return shardings


def as_saved(state: TrainState) -> dict[str, PyTree]:
    """Returns the arrays of a checkpoint, in its parts."""
    optimizer = {"state": state.opt_state, "skipped": state.skipped}
    return {"params": state.trainable, "optimizer": optimizer}
