"""Writes, as one of two processes, the digests of tables sharded over both."""

import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from smf_jax import checkpoint, multihost

SPECS = [P("data", "model"), P("model", "data"), P("data"), P("model"), P()]
TABLE = np.arange(48, dtype=np.float32).reshape(8, 6)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    multihost.initialize({})
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    sharded = [
        jax.make_array_from_callback(
            TABLE.shape, NamedSharding(mesh, spec), lambda part: TABLE[part]
        )
        for spec in SPECS
    ]
    # The last one is on a device of this process.
    found = checkpoint.digests([*sharded, jax.numpy.asarray(TABLE)])
    # Not printed: gloo prints, too, from threads, into the middle of lines.
    Path(sys.argv[1]).write_text("\n".join(found.values()))
