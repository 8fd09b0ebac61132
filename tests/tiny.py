"""Models, batches and runs with few numbers, and axes of different sizes."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from smf_jax import tree
from smf_jax.config import (
    CalibratedConfig,
    ComputeConfig,
    DataConfig,
    FinetuneConfig,
    MemoryConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
    RetrofitConfig,
    WorldConfig,
)
from smf_jax.data.batches import Batch
from smf_jax.model.calibrated import unit
from smf_jax.model.transformer import Transformer

VOCAB, NUM_SLOTS, VALUE_DIM = 11, 25, 7
# For tests that inspect a compiled program: the older emitters of XLA, which
# tests/conftest.py selects because they compile quickly, fuse less.
AS_FOR_USERS = (
    {"xla_cpu_use_fusion_emitters": True} if jax.__version_info__ < (0, 11) else {}
)
ONE = MeshConfig(data=1)  # of the eight devices
EXACT = ComputeConfig(products="float32")  # on every CPU
SMF = OptimConfig(method="smf", optimizer="sgd", learning_rate=5.0, top_t=3)
LORA = OptimConfig(method="lora", learning_rate=0.003)


def memory_config(**changes) -> MemoryConfig:
    config = {"layers": (1,), "num_keys": 5, "num_heads": 2, "top_k": 3}
    return MemoryConfig(**config | {"key_dim": 8, "value_dim": VALUE_DIM} | changes)


def calibrated_config(num_rows: int | None, **changes) -> MemoryConfig:
    """Returns a calibrated memory for `model_config`."""
    settings = {"value_dim": 12, "placement": "add"}
    settings["calibrated"] = CalibratedConfig(num_rows=num_rows)
    return memory_config(**settings | changes)


def model_config(**changes) -> ModelConfig:
    config = {"vocab_size": VOCAB, "dim": 12, "num_layers": 2, "hidden_dim": 10}
    heads = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 6}
    return ModelConfig(**config | heads | {"memory": memory_config()} | changes)


def pretrain_config(run_dir, steps: int) -> PretrainConfig:
    """Returns a run that learns a little of a world of nine people."""
    memory = MemoryConfig(
        layers=(1,), num_keys=8, top_k=2, num_heads=2, key_dim=8, value_dim=12
    )
    sizes = {"dim": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2}
    world = WorldConfig(known_people=6, new_people=3, first_names=8, last_names=9)
    return PretrainConfig(
        run_dir=str(run_dir),
        steps=steps,
        log_every=50,
        mesh=ONE,
        compute=EXACT,
        model=ModelConfig(hidden_dim=24, memory=memory, **sizes),
        data=DataConfig(seq_len=24, batch_size=5, world=world),
        optim=OptimConfig(learning_rate=0.01, warmup_steps=3, schedule="cosine"),
    )


def retrofit_config(base, run_dir, **changes) -> RetrofitConfig:
    """Returns a run that gives the model of `base` the memory of `pretrain_config`."""
    config = pretrain_config(run_dir, 12)
    settings = {
        "mesh": ONE,
        "compute": EXACT,
        "base": str(base),
        "run_dir": str(run_dir),
        "steps": 12,
        "log_every": 2,
        "memory": dataclasses.replace(config.model.memory, placement="add"),
        "data": config.data,
        "optim": OptimConfig(method="memory", learning_rate=0.01),
    }
    return RetrofitConfig(**settings | changes)


def finetune_config(base, run_dir, optim=SMF, **changes) -> FinetuneConfig:
    """Returns a run that teaches a few steps."""
    settings = {"mesh": ONE, "compute": EXACT, "batch_size": 6, "log_every": 2}
    paths = {"base": str(base), "run_dir": str(run_dir)}
    return FinetuneConfig(**settings | paths | {"optim": optim} | changes)


def make_model(config: ModelConfig, seed: int = 0) -> Transformer:
    """Returns a model whose parameters are all random, norms and biases included."""
    graph, params = _parts(config, seed)
    # Copies, because a step donates them.
    return nnx.merge(graph, jax.tree.map(jnp.copy, params))


@functools.cache
def _parts(config: ModelConfig, seed: int):
    model = fill(lambda: Transformer(config, rngs=nnx.Rngs(0)), seed)
    return nnx.split(model)


def fill(make: Callable[[], nnx.Module], seed: int = 0) -> nnx.Module:
    """Returns the model of `make` with random parameters, without compiling."""
    graph, shapes = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        numbers = rng.normal(size=leaf.shape)
        if "scale" in tree.leaf_name(path):
            numbers = 1 + 0.3 * numbers
        elif leaf.ndim > 1 and "bias" not in tree.leaf_name(path):
            numbers = numbers * leaf.shape[-2] ** -0.5
        return jnp.asarray(numbers, leaf.dtype)

    model = nnx.merge(graph, jax.tree.map_with_path(draw, nnx.as_pure(shapes)))
    memory = getattr(model, "config", None) and getattr(model.config, "memory", None)
    if memory is not None and memory.num_rows is not None:
        _fill_rows(model, memory)
    return model


def _fill_rows(model: Transformer, memory: MemoryConfig) -> None:
    """Gives the rows of a calibrated memory every other slot, and others zeros."""
    layer = model.blocks[memory.layers[0]].memory
    layer.keys[...] = unit(layer.keys[...])
    slots = np.full(memory.table_rows, memory.num_slots, np.int32)
    slots[: memory.num_rows] = 2 * np.arange(memory.num_rows)
    layer.slots[...] = jnp.asarray(slots)
    model.values[0][...] = model.values[0][...].at[memory.num_rows :].set(0)


def call(model: nnx.Module, *args):
    """Calls a module; all modules of one structure share a compiled program."""
    return _call(*nnx.split(model), *args)


@functools.partial(jax.jit, static_argnums=0)
def _call(graph, params, *args):
    return nnx.merge(graph, params)(*args)


def named(model: nnx.Module) -> dict[str, jax.Array]:
    """Returns the arrays of a model by name."""
    return tree.named(nnx.as_pure(nnx.state(model)))


def with_params(model: nnx.Module, params: dict[str, jax.Array]) -> nnx.Module:
    """Returns a model with the arrays that `params` names replaced."""
    graph, old = nnx.split(model)
    new = jax.tree.map_with_path(
        lambda path, leaf: params.get(tree.leaf_name(path), leaf), nnx.as_pure(old)
    )
    return nnx.merge(graph, new)


def make_batch(
    lengths=(8, 3, 6, 5), seq: int = 9, seed: int = 0, vocab: int = VOCAB
) -> Batch:
    """Returns a batch with a row for each length, padded to `seq`."""
    rng = np.random.default_rng(seed)
    is_token = np.arange(seq) < np.array(lengths)[:, None]
    tokens = rng.integers(0, vocab, (len(lengths), seq + 1), np.int32)
    tokens[:, :-1][~is_token] = 0
    return Batch(
        tokens=tokens[:, :-1],
        targets=tokens[:, 1:],
        weights=(is_token & (np.arange(seq) > 0)).astype(np.float32),
        positions=np.where(is_token, np.arange(seq), 0).astype(np.int32),
        segments=is_token.astype(np.int32),
        records=np.broadcast_to(np.arange(len(lengths))[:, None], is_token.shape),
    )


def bits(array) -> np.ndarray:
    """Returns the bits of an array as integers, in which -0.0 differs from 0.0."""
    array = np.asarray(array)
    return array.view(f"u{array.itemsize}")


def moved_rows(before, after) -> set[int]:
    """Returns the indices of the rows that differ in any bit."""
    changed = bits(before) != bits(after)
    return set(np.flatnonzero(changed.any(axis=1)).tolist())
