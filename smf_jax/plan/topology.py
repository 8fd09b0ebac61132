"""TPU slices and GPU hosts, by the names that their vendors use."""

import difflib
import importlib.resources
import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

from smf_jax.config import ConfigError, require
from smf_jax.extras import install_command


class Topology(NamedTuple):
    """A TPU slice, or the GPUs of one or more hosts."""

    name: str
    family: str
    devices: int  # JAX devices
    memory: int  # bytes per device available to a program
    options: dict[str, Any]  # for jax.experimental.topologies.get_topology_desc


SHAPES_2D = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SHAPES_3D = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
# Units per chip in slice names (1: chips, 2: TensorCores), JAX devices per chip, GiB
# per device available to a program (as libtpu 0.0.41 reports), and slice shapes.
# Source: Google's Cloud TPU page for each family.
TPUS = {
    "v4": (2, 1, 30.75, SHAPES_3D),
    "v5e": (1, 1, 15.75, SHAPES_2D),
    "v5p": (2, 1, 95.74, SHAPES_3D),
    "v6e": (1, 1, 31.25, SHAPES_2D),
    "tpu7x": (2, 2, 94.75, ("1x1x1", *SHAPES_3D)),
}
# A host has 2 x 2 chips, except for single chips and the hosts of v5e-8 and v6e-8.
HOSTS = {"1x1": (1, 1, 1), "1x1x1": (1, 1, 1), "2x4": (2, 4, 1)}
GPUS = {family: (1, 2, 4, 8, 16, 32, 64) for family in ("h100", "a100")}


def find(name: str) -> list[Topology]:
    """Returns the topology with this name, or all sizes of a family, smallest first.

    Raises:
      ConfigError: The name is unknown.
    """
    families = {key: [_tpu(key, shape) for shape in TPUS[key][-1]] for key in TPUS}
    families |= {key: [_gpus(key, count) for count in GPUS[key]] for key in GPUS}
    topologies = [topology for family in families.values() for topology in family]
    names = {each.options["topology_name"]: [each] for each in topologies}
    names |= {each.name: [each] for each in topologies} | families
    if name not in names:
        nearest = ", ".join(difflib.get_close_matches(name, names, n=3, cutoff=0))
        raise ConfigError(
            f"--topology {name} is unknown; the nearest names are {nearest}, and the "
            f"families are {', '.join(families)}"
        )
    return names[name]


def require_compiler(topology: Topology) -> None:
    """Raises `ConfigError` unless the compiler for a topology is installed."""
    module = "jax_cuda13_plugin" if topology.family in GPUS else "libtpu"
    require(
        importlib.util.find_spec(module) is not None,
        f"compiling for {topology.name} needs {module}: {install_command('plan')}",
    )


def _tpu(family: str, shape: str) -> Topology:
    units, per_chip, gib, _ = TPUS[family]
    chips = math.prod(map(int, shape.split("x")))
    options = {
        "platform": "tpu",
        "topology_name": f"{family}:{shape}",
        "chips_per_host_bounds": HOSTS.get(shape, (2, 2, 1)),
        # Megacore: the two TensorCores of a v4 chip act as one device.
        "chip_config_name": "megacore" if family == "v4" else "default",
    }
    name, memory = f"{family}-{units * chips}", int(gib * 2**30)
    return Topology(name, family, chips * per_chip, memory, options)


def _gpus(family: str, count: int) -> Topology:
    hosts, per_host = max(count // 8, 1), min(count, 8)
    name = f"{family}x{per_host}" + (f"x{hosts}" if hosts > 1 else "")
    file = importlib.resources.files("smf_jax.plan") / "targets" / f"{family}.txtpb"
    target = file.read_text()
    total = int(re.search(r"device_memory_size: (\d+)", target)[1])
    fraction = float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75"))
    options = {
        "platform": "cuda",
        "topology_name": name,
        "target_config": target,
        "topology": f"1x{hosts}x{per_host}",  # slices x hosts x devices
    }
    return Topology(name, family, count, int(fraction * total), options)
