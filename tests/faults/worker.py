"""Runs `smf` commands in children of one process that has imported everything once.

Started with `fault.so` loaded before libc. Reads one JSON object a line:

    {"argv": [...], "signals": [[5, 9]], "folder": "/run", "nth": 3, "errno": 0,
     "operation": "write */manifest.json"}

sends SIGKILL (9) when the command gets its fifth batch, and hurts the third operation
below `folder` that fits the shell pattern, as fault.c describes. Answers with the exit
code (negative: the signal that ended it), operations below `folder`, and output.
"""

import ctypes
import gc
import json
import os
import sys
import tempfile
import time
import traceback

from smf_jax import cli, sharding
from smf_jax.runs import verify  # noqa: F401  before forking
from smf_jax.verbs import evaluate, finetune, pretrain, retrofit, usage  # noqa: F401
from tests import compiled
from tests.faults.hurt import hurt


def send(signals: list[list], pause: float = 0) -> None:
    """Sends this process signals when it gets its n-th batches.

    From the first of them on each batch takes `pause` seconds more.
    """
    batches = 0
    shard_batch = sharding.MeshLayout.shard_batch

    def count(layout, batch, parts=None):
        nonlocal batches
        if parts is None:  # not for a training step
            return shard_batch(layout, batch)
        batches += 1
        for number, signal in signals:
            if number == batches:
                hurt(signal)
        if signals and batches >= signals[0][0]:
            time.sleep(pause)
        return shard_batch(layout, batch, parts)

    sharding.MeshLayout.shard_batch = count


def run(task: dict, output: str, log: str) -> None:
    """Runs a command and ends the process."""
    code = 70
    out = os.open(output, os.O_WRONLY)
    os.dup2(out, 1)
    os.dup2(out, 2)
    try:
        faults = ctypes.CDLL(None)
        send(task.get("signals", []))
        faults.fault_arm(
            task["folder"].encode(),
            task.get("operation", "*").encode(),
            task.get("nth", 0),
            task.get("errno", 0),
            log.encode(),
        )
        code = cli.main(task["argv"])
        faults.fault_arm(b"", b"", 0, 0, b"")
    finally:
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def configure(cache: str) -> None:
    """Makes programs compile quickly, and once for all processes."""
    gc.disable()  # children are too short-lived to need it, and would copy its objects
    compiled.update(
        compiled.quick(cache)
        | {"jax_platforms": "cpu", "jax_traceback_in_locations_limit": 0}
    )


def main() -> None:
    configure(sys.argv[1])
    for line in sys.stdin:
        with (
            tempfile.NamedTemporaryFile("r", errors="replace") as output,
            tempfile.NamedTemporaryFile("r") as log,
        ):
            child = os.fork()
            if child == 0:
                run(json.loads(line), output.name, log.name)
            _, status = os.waitpid(child, 0)
            answer = {
                "code": os.waitstatus_to_exitcode(status),
                "operations": log.read().splitlines(),
                "output": output.read(),
            }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
