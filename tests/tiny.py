"""A model and a batch of few numbers, hardly two axes of one size."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from smf_jax import tree
from smf_jax.config import (
    DataConfig,
    MemoryConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
    WorldConfig,
)
from smf_jax.data.batches import Batch
from smf_jax.model.transformer import Transformer

VOCAB, NUM_SLOTS, VALUE_DIM = 11, 25, 7
# Where a compiled program is looked at: XLA's older emitters, which tests/conftest.py
# takes since they compile quickly, do not fuse as much.
AS_FOR_USERS = (
    {"xla_cpu_use_fusion_emitters": True} if jax.__version_info__ < (0, 11) else {}
)
ONE = MeshConfig(data=1)  # of the eight devices: tests/train/test_mesh.py takes all


def memory_config(**changes) -> MemoryConfig:
    config = {"layers": (1,), "num_keys": 5, "num_heads": 2, "top_k": 3}
    return MemoryConfig(**config | {"key_dim": 8, "value_dim": VALUE_DIM} | changes)


def model_config(**changes) -> ModelConfig:
    config = {"vocab_size": VOCAB, "dim": 12, "num_layers": 2, "hidden_dim": 10}
    heads = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 6}
    return ModelConfig(**config | heads | {"memory": memory_config()} | changes)


def pretrain_config(run_dir, steps: int) -> PretrainConfig:
    """Returns a run that knows its nine people's world a little."""
    memory = MemoryConfig(
        layers=(1,), num_keys=8, top_k=2, num_heads=2, key_dim=8, value_dim=12
    )
    world = WorldConfig(known_people=6, new_people=3, first_names=8, last_names=9)
    return PretrainConfig(
        run_dir=str(run_dir),
        steps=steps,
        log_every=50,
        mesh=ONE,
        model=ModelConfig(
            dim=16,
            num_layers=2,
            num_heads=2,
            num_kv_heads=2,
            hidden_dim=24,
            memory=memory,
        ),
        data=DataConfig(seq_len=24, batch_size=5, world=world),
        optim=OptimConfig(learning_rate=0.01, warmup_steps=3, schedule="cosine"),
    )


def make_model(config: ModelConfig, seed: int = 0) -> Transformer:
    """Returns a model of which every parameter is random, also norms and biases."""
    graph, params = _parts(config, seed)
    # Its own arrays: a step takes them.
    return nnx.merge(graph, jax.tree.map(jnp.copy, params))


@functools.cache
def _parts(config: ModelConfig, seed: int):
    model = fill(lambda: Transformer(config, rngs=nnx.Rngs(0)), seed)
    return nnx.split(model)


def fill(make: Callable[[], nnx.Module], seed: int = 0) -> nnx.Module:
    """Returns what `make` makes, with random parameters; nothing is compiled."""
    graph, shapes = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        numbers = rng.normal(size=leaf.shape)
        if "scale" in tree.leaf_name(path):
            numbers = 1 + 0.3 * numbers
        elif "bias" not in tree.leaf_name(path):
            numbers = numbers * leaf.shape[-2] ** -0.5
        return jnp.asarray(numbers, leaf.dtype)

    return nnx.merge(graph, jax.tree.map_with_path(draw, nnx.as_pure(shapes)))


def call(model: nnx.Module, *args):
    """Calls a module, compiled once for all modules of its structure."""
    return _call(*nnx.split(model), *args)


@functools.partial(jax.jit, static_argnums=0)
def _call(graph, params, *args):
    return nnx.merge(graph, params)(*args)


def named(model: nnx.Module) -> dict[str, jax.Array]:
    """Returns the arrays of a model by name."""
    return tree.named(nnx.as_pure(nnx.state(model)))


def with_params(model: nnx.Module, params: dict[str, jax.Array]) -> nnx.Module:
    """Returns a model with those of its arrays replaced that `params` names."""
    graph, old = nnx.split(model)
    new = jax.tree.map_with_path(
        lambda path, leaf: params.get(tree.leaf_name(path), leaf), nnx.as_pure(old)
    )
    return nnx.merge(graph, new)


def make_batch(
    lengths=(8, 3, 6, 5), seq: int = 9, seed: int = 0, vocab: int = VOCAB
) -> Batch:
    """Returns one text of each length, a row each, the rest of the row padding."""
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
    """Returns numbers as whole numbers of the same bits: -0.0 is not 0.0."""
    array = np.asarray(array)
    return array.view(f"u{array.itemsize}")


def moved_rows(before, after) -> set[int]:
    """Returns the rows of which any bit differs."""
    changed = bits(before) != bits(after)
    return set(np.flatnonzero(changed.any(axis=1)).tolist())
