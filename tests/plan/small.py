"""Small steps that the compiler subprocess builds in tests."""

import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from smf_jax.config import ConfigError
from smf_jax.plan.abstract_step import AbstractStep


def square_layer(width: int, devices) -> AbstractStep:
    """Returns a linear layer on 8 tokens per device, split over two devices."""
    types = (AxisType.Auto,) * 2
    mesh = Mesh(np.reshape(devices, (-1, 2)), ("data", "model"), axis_types=types)

    def array(*shape, spec):
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    weights = array(width, width, spec=P("model", None))
    x = array(4 * len(devices), width, spec=P("data", "model"))

    @jax.jit
    def step(weights, x):
        out = NamedSharding(mesh, P("data", None))
        return jax.lax.with_sharding_constraint(x @ weights, out)

    groups = {"weights": weights, "batch": x}
    return AbstractStep(step, (weights, x), groups, dict(mesh.shape))


def misbehave(how: str, devices) -> AbstractStep:
    """Hangs, exits, or raises the error of a wrong mesh."""
    if how == "hang":
        time.sleep(600)
    if how == "crash":
        raise SystemExit(7)
    raise ConfigError("mesh.model=3 does not divide 8")
