"""Makes models: initialized, as shapes alone, from parameters, or with new memory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int, PyTree

from smf_jax.config import MemoryConfig, ModelConfig, require
from smf_jax.model.products import rounded_product
from smf_jax.model.transformer import Transformer
from smf_jax.sharding import ONE_DEVICE, MeshLayout
from smf_jax.tree import leaf_name, named


def abstract_model(config: ModelConfig, layout: MeshLayout = ONE_DEVICE) -> Transformer:
    """Returns a model with `jax.ShapeDtypeStruct`s for arrays."""
    return nnx.eval_shape(lambda: Transformer(config, layout, rngs=nnx.Rngs(0)))


def assemble(abstract: Transformer, params: dict[str, Array]) -> Transformer:
    """Returns an abstract model with parameters by name; unknown names are ignored."""
    graph, shapes = nnx.split(abstract)
    return nnx.merge(
        graph,
        jax.tree.map_with_path(
            lambda path, _: params[leaf_name(path)], nnx.as_pure(shapes)
        ),
    )


def inference_parts(model: Transformer) -> tuple[nnx.GraphDef, PyTree]:
    """Splits a model whose parameters stay as they are, for many calls.

    Kernels of products with rounded factors are rounded once. The result of
    `nnx.merge` gives the same numbers as the model.
    """
    graph, params = nnx.split(model)
    rounded = {
        "/".join(map(str, (*path, "kernel")))
        for path, module in nnx.iter_modules(model)
        if getattr(module, "dot_general", None) is rounded_product
    }
    return graph, jax.tree.map_with_path(
        lambda path, leaf: (
            leaf.astype(jnp.bfloat16) if leaf_name(path) in rounded else leaf
        ),
        nnx.as_pure(params),
    )


def add_memory(model: Transformer, memory: MemoryConfig, seed: int) -> Transformer:
    """Returns a model with newly initialized memory layers.

    With `memory.placement="add"` they change nothing until they are trained. All other
    parameters are the same arrays as in `model`.

    Raises:
      ConfigError: The model has memory layers already, or too few layers for these.
    """
    require(model.config.memory is None, "the model has memory layers already")
    config = dataclasses.replace(model.config, memory=memory)
    old = named(nnx.as_pure(nnx.state(model)))
    return assemble(
        abstract_model(config, model.layout),
        old | _init(config, seed, model.layout, known=old),
    )


def slots_with_rows(model: Transformer) -> Int[np.ndarray, " rows"]:
    """Returns the slots of a calibrated memory that have a row, rising."""
    memory = model.config.memory
    (layer,) = memory.layers
    return np.asarray(model.blocks[layer].memory.slots[...])[: memory.num_rows]


def with_rows(model: Transformer, slots: Int[np.ndarray, " rows"]) -> Transformer:
    """Returns a model whose calibrated memory has rows for these slots, too.

    Rows that it has already are kept, new ones are zeros: the model computes the same.
    All other parameters are the same arrays.
    """
    return _with_table_of(model, np.union1d(slots_with_rows(model), slots))


def without_rows(model: Transformer, slots: Int[np.ndarray, " rows"]) -> Transformer:
    """Returns a model whose calibrated memory has no rows for these slots.

    All other rows are kept, and all other parameters are the same arrays.
    """
    return _with_table_of(model, np.setdiff1d(slots_with_rows(model), slots))


def _with_table_of(model: Transformer, slots: Int[np.ndarray, " rows"]) -> Transformer:
    """Returns a model with rows for these slots alone, zeros where it had none."""
    memory = model.config.memory.with_rows(len(slots))
    (layer,) = memory.layers
    config, layout = dataclasses.replace(model.config, memory=memory), model.layout
    unused = np.full(memory.table_rows - len(slots), memory.num_slots, np.int32)
    kept = np.intersect1d(slots, slots_with_rows(model), return_indices=True)
    _, places, rows_before = kept

    @functools.partial(jax.jit, out_shardings=layout.sharding(layout.table_spec))
    def resize(values):
        rows = jnp.zeros((memory.table_rows, memory.value_dim), values.dtype)
        return rows.at[places].set(values[rows_before])

    params = named(nnx.as_pure(nnx.state(model)))
    ids = np.concatenate([slots, unused]).astype(np.int32)
    params[f"blocks/{layer}/memory/slots"] = layout.device_put(ids)
    params["values/0"] = resize(model.values[0][...])
    return assemble(abstract_model(config, layout), params)


def make_model(
    config: ModelConfig, seed: int, layout: MeshLayout = ONE_DEVICE
) -> Transformer:
    """Returns an initialized model; each device computes its own part."""
    return assemble(abstract_model(config, layout), _init(config, seed, layout))


def _init(config, seed, layout, known=()) -> dict[str, Array]:
    """Returns the initial parameters whose names are not known."""

    def make():
        model = Transformer(config, layout, rngs=nnx.Rngs(seed))
        params = named(nnx.as_pure(nnx.state(model)))
        return {name: leaf for name, leaf in params.items() if name not in known}

    # Compiled, so that only what is returned is computed, each part on its device.
    shardings = layout.param_shardings(jax.eval_shape(make))
    return jax.jit(make, out_shardings=shardings)()
