"""Compiles a step ahead of time, in a subprocess with a time limit.

The subprocess runs this module. It reads a topology and the name of a function that
builds the step from stdin, and writes the fields of a `Result` to stdout, as JSON.
"""

import dataclasses
import importlib
import json
import math
import os
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
from smf_jax.plan.topology import Topology, find

# Keeps the subprocess off this host's accelerators.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # do not query the metadata server
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
}
# Autotuning needs a GPU. Without it XLA fails to compile some small matrix products as
# Triton kernels; cuBLAS selects its kernels at run time.
GPU_FLAGS = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"


@dataclasses.dataclass(frozen=True)
class Result:
    """The outcome of compiling a step for one topology; bytes are per device."""

    topology: str
    capacity: int  # bytes available to a program
    fits: bool | None = None  # None: no answer
    reason: str | None = None  # why there is no answer
    mesh: dict[str, int] | None = None
    needs: int | None = None  # peak bytes; a lower bound if the compiler ran out
    groups: dict[str, int] | None = None  # bytes of the step's arguments
    arguments: int | None = None  # bytes of all arguments, with padding
    temporaries: int | None = None  # activations, gradients, workspace
    flops: float | None = None  # each loop counted once; None: unknown (GPU)
    collectives: list[Collective] | None = None


def find_smallest(
    candidates: Sequence[Topology], compile_one: Callable[[Topology], Result]
) -> list[Result]:
    """Compiles for one topology after another, smallest first, until the step fits.

    Also stops at one that needs no fewer bytes per device than the previous one, since
    no larger one will fit then. Skips topologies that raise `ConfigError`.

    Raises:
      ConfigError: All of them do.
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


def compile_for(
    topology: Topology, make: str, arguments: Sequence[Any], timeout: int | float
) -> Result:
    """Compiles the step that `make(*arguments, devices)` returns for a topology.

    `make` is "MODULE:FUNCTION", and `arguments` are JSON.

    Raises:
      ConfigError: The step cannot be built for these devices.
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} {GPU_FLAGS}".strip()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "smf_jax.plan.compile"],
            input=json.dumps([topology.name, make, arguments]).encode(),
            env=os.environ | ENVIRONMENT | {"XLA_FLAGS": flags},
            capture_output=True,
            timeout=timeout,
            check=True,
        )
        answer = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        answer = {"reason": f"compiling took longer than --timeout {timeout:g} s"}
    except subprocess.CalledProcessError as error:
        last = (error.stderr.decode().strip().splitlines() or ["no message"])[-1]
        reason = f"the compiler process exited with code {error.returncode}: "
        answer = {"reason": reason + last[:300]}
    if "mistake" in answer:
        raise ConfigError(f"--topology {topology.name}: {answer['mistake']}")
    if "collectives" in answer:
        parts = (each | {"axes": tuple(each["axes"])} for each in answer["collectives"])
        answer["collectives"] = [Collective(**each) for each in parts]
    return Result(topology.name, topology.memory, **answer)


def compile_step(step: AbstractStep, topology: Topology) -> dict[str, Any]:
    """Compiles a step and returns the fields of its `Result`."""
    groups = dict.fromkeys(step.groups, 0)
    for name, tree in step.groups.items():
        for leaf in jax.tree.leaves(tree):
            shape = leaf.sharding.shard_shape(leaf.shape)
            groups[name] += math.prod(shape) * leaf.dtype.itemsize
    answer = {"mesh": step.mesh, "groups": groups}
    traced = step.step.trace(*step.arguments)
    # The default would be the platform of this host.
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
        "fits": needs <= topology.memory,  # the GPU compiler does not check this
        "needs": needs,
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "flops": cost.get("flops"),
        "collectives": collectives(compiled.as_text(), step.mesh),
    }


def needed_bytes(error: str) -> int | None:
    """Returns the bytes required according to an out-of-memory error, if it says."""
    match = re.search(r"(?:Used |\(size=)([\d.]+)([KMGT]?)", error)
    return match and int(float(match[1]) * 1024 ** " KMGT".index(match[2] or " "))


if __name__ == "__main__":
    name, make, arguments = json.load(sys.stdin)
    (topology,), (module, _, function) = find(name), make.partition(":")
    output = os.dup(1)
    os.dup2(2, 1)  # compilers print to standard output
    devices = topologies.get_topology_desc(**topology.options).devices
    try:
        step = getattr(importlib.import_module(module), function)(*arguments, devices)
        answer = compile_step(step, topology)
    except ConfigError as error:
        answer = {"mistake": str(error)}
    with os.fdopen(output, "w") as file:
        json.dump(answer, file, default=dataclasses.asdict)
