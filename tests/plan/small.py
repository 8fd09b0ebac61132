"""Compiles small steps for the tests, as `smf_jax.plan.child` does real ones."""

import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from smf_jax.config import ConfigError
from smf_jax.plan.child import serve
from smf_jax.plan.step import Planned


def make(request, devices) -> Planned:
    """Returns `width` tokens through a square layer, split over its output."""
    match request["step"]:
        case "endless":
            time.sleep(600)
        case "mistake":
            raise ConfigError("mesh.model=3 does not divide 8")
        case "crash":
            raise SystemExit(7)
    ways = request["mesh"]["model"]
    shape = (len(devices) // ways, ways)
    kinds = (AxisType.Auto,) * 2
    mesh = Mesh(np.reshape(devices, shape), ("data", "model"), axis_types=kinds)

    def array(*shape, spec):
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    width = request["width"]
    weights = array(width, width, spec=P("model", None))
    x = array(8 * shape[0], width, spec=P("data", "model"))

    @jax.jit
    def step(weights, x):
        out = NamedSharding(mesh, P("data", None))
        return jax.lax.with_sharding_constraint(x @ weights, out)

    groups = {"weights": weights, "batch": x}
    return Planned(step, (weights, x), groups, dict(mesh.shape))


if __name__ == "__main__":
    serve(make)
