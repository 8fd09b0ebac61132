"""Compiles in a process of its own, within a time limit."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from smf_jax.plan.outcome import Outcome
from smf_jax.plan.topology import Topology, require_compiler

CHILD = "smf_jax.plan.child"
# No device here is touched, and no compiler looks for any.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # no search for a server that describes this host
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # any: the topology says what is meant
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",  # beside a program that uses a TPU here
}
# There is no GPU to try kernels on. Untried, XLA finds no Triton kernel for products of
# few numbers, and refuses the program; those of cuBLAS are chosen when it runs.
NO_TRIALS = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"


def compile_apart(
    topology: Topology, request: dict[str, Any], limit: int | float, child: str = CHILD
) -> Outcome:
    """Compiles a step for devices that are not here.

    Args:
      topology: The devices.
      request: What the child makes the step of, as JSON can hold it, with its `mesh`.
      limit: Seconds after which it is given up.
      child: The module that answers.

    Raises:
      ConfigError: The compiler is not installed.
    """
    require_compiler(topology)
    asked = Outcome(topology.name, request["mesh"], None, has=topology.memory)
    flags = f"{os.environ.get('XLA_FLAGS', '')} {NO_TRIALS}".strip()
    environment = os.environ | ENVIRONMENT | {"XLA_FLAGS": flags}
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        request = request | {"topology": topology.name, "answer": str(answer)}
        try:
            done = subprocess.run(
                [sys.executable, "-m", child],
                input=json.dumps(request),
                env=environment,
                capture_output=True,
                text=True,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return asked._replace(why=f"not compiled within --timeout {limit:g} s")
        if answer.is_file():
            return asked._replace(**json.loads(answer.read_text()))
    last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
    why = f"the compiling process ended with code {done.returncode}: {last[:300]}"
    return asked._replace(why=why)
