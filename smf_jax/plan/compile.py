"""Compiles a step for devices that are not here, in a process with a time limit.

The process runs this file. Its standard input is a topology and the function that makes
the step, its standard output the fields of a `Result` or a `ConfigError`; all pickled.
"""

import dataclasses
import math
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental import topologies

from smf_jax.config import ConfigError
from smf_jax.plan.abstract_step import AbstractStep
from smf_jax.plan.collectives import Collective, collectives
from smf_jax.plan.topology import Topology

MakeStep = Callable[[Sequence[jax.Device]], AbstractStep]
# No accelerator of this host is used, or looked for.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # no metadata server
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
}
# There is no GPU to autotune on. XLA rejects some products as Triton kernels that are
# not autotuned; those of cuBLAS are chosen at run time.
GPU_FLAGS = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"


@dataclasses.dataclass(frozen=True)
class Result:
    """What compiling a step for one topology told; bytes are per device."""

    topology: str
    capacity: int  # bytes that a program may use
    fits: bool | None = None  # None: no answer
    reason: str | None = None  # why there is no answer
    mesh: dict[str, int] | None = None
    needs: int | None = None  # peak bytes; at least these where it does not fit
    groups: dict[str, int] | None = None  # bytes of the step's arguments
    arguments: int | None = None  # bytes of all of them, with padding
    temporaries: int | None = None  # activations, gradients, work space
    flops: float | None = None  # each loop counted once; None: unknown (GPU)
    collectives: list[Collective] | None = None


def find_smallest(
    candidates: Sequence[Topology], compile_one: Callable[[Topology], Result]
) -> list[Result]:
    """Returns the results for topologies, smallest first, up to the first that fits.

    Ends as well where one needs no fewer bytes per device than the one before it, since
    then no larger one will fit. Skips those on which the step cannot be made, unless it
    can be made on none.
    """
    results, previous = [], math.inf
    for topology in candidates:
        try:
            results.append(compile_one(topology))
        except ConfigError:
            if topology is candidates[-1] and not results:
                raise
            continue
        needs = results[-1].needs or math.inf
        if results[-1].fits or previous <= needs < math.inf:
            break
        previous = needs
    return results


def compile_for(topology: Topology, make: MakeStep, timeout: int | float) -> Result:
    """Compiles the step that `make`, which is pickled, returns for a topology."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {GPU_FLAGS}".strip()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "smf_jax.plan.compile"],
            input=pickle.dumps((topology, make)),
            env=os.environ | ENVIRONMENT | {"XLA_FLAGS": flags},
            capture_output=True,
            timeout=timeout,
            check=True,
        )
        answer = pickle.loads(done.stdout)
    except subprocess.TimeoutExpired:
        answer = {"reason": f"compiling took longer than --timeout {timeout:g} s"}
    except subprocess.CalledProcessError as error:
        last = (error.stderr.decode().strip().splitlines() or ["no message"])[-1]
        reason = f"the compiler process exited with code {error.returncode}: "
        answer = {"reason": reason + last[:300]}
    if isinstance(answer, ConfigError):
        raise ConfigError(f"--topology {topology.name}: {answer}")
    return Result(topology.name, topology.memory, **answer)


def compile_step(step: AbstractStep, topology: Topology) -> dict[str, Any]:
    """Returns what a `Result` has of a compiled step."""
    groups = dict.fromkeys(step.groups, 0)
    for name, tree in step.groups.items():
        for leaf in jax.tree.leaves(tree):
            shape = leaf.sharding.shard_shape(leaf.shape)
            groups[name] += math.prod(shape) * leaf.dtype.itemsize
    answer = {"mesh": step.mesh, "groups": groups}
    traced = step.step.trace(*step.arguments)
    # Without a platform it would be lowered for the devices of this host.
    lowered = traced.lower(lowering_platforms=(topology.options["platform"],))
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        return answer | {"fits": False, "needs": needed_bytes(str(error))}
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    needs = memory.peak_memory_in_bytes
    return answer | {
        "fits": needs <= topology.memory,  # which the compiler for GPU does not check
        "needs": needs,
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "flops": cost.get("flops"),
        "collectives": collectives(compiled.as_text(), step.mesh),
    }


def needed_bytes(error: str) -> int | None:
    """Returns the bytes that an out-of-memory error of a compiler names, if any."""
    match = re.search(r"(?:Used |\(size=)([\d.]+)([KMGT]?)", error)
    return match and int(float(match[1]) * 1024 ** " KMGT".index(match[2] or " "))


if __name__ == "__main__":
    topology, make = pickle.load(sys.stdin.buffer)
    output = os.dup(1)
    os.dup2(2, 1)  # compilers print to standard output
    devices = topologies.get_topology_desc(**topology.options).devices
    try:
        answer = compile_step(make(devices), topology)
    except ConfigError as error:
        answer = error
    with os.fdopen(output, "wb") as file:
        pickle.dump(answer, file)
