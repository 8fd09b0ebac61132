"""What a step is made for, what it is given, and what it changes."""

from typing import NamedTuple

import optax
from flax import nnx
from jaxtyping import Array, Int, PyTree

from smf_jax.config import MemoryConfig
from smf_jax.optim.methods import Method
from smf_jax.sharding import Placement

Metrics = dict[str, Array]


class Setting(NamedTuple):
    """What of a step is known before it is compiled."""

    graph: nnx.GraphDef
    memory: MemoryConfig | None
    method: Method
    placement: Placement


class TrainState(NamedTuple):
    """What a step changes."""

    trainable: PyTree
    opt_state: optax.OptState
    skipped: Int[Array, ""]  # steps without an update, as their numbers were not finite


class Background(NamedTuple):
    """What the choice of slots compares a batch with."""

    document_frequency: Int[Array, "pools num_slots"]
    num_documents: Int[Array, ""]
