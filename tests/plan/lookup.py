"""Compiles the lookup of the paper's memory alone, for `test_lookup.py`."""

import json
import re
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from smf_jax.config import ComputeConfig
from smf_jax.kernels.row_sums import weighted_rows
from smf_jax.plan.child import describe
from smf_jax.plan.measure import measure
from smf_jax.plan.topology import find
from smf_jax.sharding import AXES, MeshLayout

NUM_SLOTS, TOKENS = 1024**2, (8, 512)
KERNEL = r'custom_call_target="(tpu_custom_call|__gpu\$xla\.gpu\.triton)"'


def compiled(name: str, value_dim: int, dtype: str, outputs: int, reads: int = 128):
    """Returns the sums of all tokens, and gradients of the weights and the table.

    Args:
      name: Of a single device, as `find` takes it.
      value_dim: Of the table.
      dtype: Of the table.
      outputs: How many of the three are asked for.
      reads: Of a token.
    """
    topology = find(name)
    devices = np.reshape(describe(topology).devices, (1, 1, 1))
    mesh = Mesh(devices, AXES, axis_types=(AxisType.Auto,) * 3)
    layout = MeshLayout(mesh, compute=ComputeConfig(lookup="pallas"))

    def array(*shape, dtype=dtype):
        place = NamedSharding(mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    @jax.jit
    def step(values, weights, slots, cotangent):
        def read(values, weights):
            return weighted_rows(values, slots, weights, layout)

        sums, gradients = jax.vjp(read, values, weights)
        of_values, of_weights = gradients(cotangent)
        return (sums, of_weights, of_values)[:outputs]

    traced = step.trace(
        array(NUM_SLOTS, value_dim),
        array(*TOKENS, reads, dtype="float32"),
        array(*TOKENS, reads, dtype="int32"),
        array(*TOKENS, value_dim),
    )
    return traced.lower(lowering_platforms=(topology.platform,)).compile()


if __name__ == "__main__":
    found = []
    for case in json.load(sys.stdin):
        program = compiled(**case)
        needs = measure(program, dict.fromkeys(AXES, 1))._asdict()
        kernels = re.findall(KERNEL, program.as_text())
        found.append(needs | {"kernels": len(kernels)})
    Path(sys.argv[1]).write_text(json.dumps(found))
