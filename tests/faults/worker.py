"""Runs `smf` commands in children of one process that has imported everything once.

Started with `fault.so` loaded before libc. Reads one JSON object a line:

    {"argv": [...], "folder": "...", "nth": 3, "errno": 0, "signals": [[5, 9]]}

(SIGKILL, 9, when it is given its fifth batch)

and answers each with its exit code (negative: the signal that ended it), how many file
operations there were below `folder`, and what it wrote to stderr.
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
from smf_jax.train import finetune, pretrain, verify  # noqa: F401  before forking
from tests import compiled
from tests.faults.hurt import hurt


def send(signals: list[list], pause: float = 0) -> None:
    """Arranges that this process gets signals when it is given its n-th batches.

    From the first of them on it takes `pause` seconds more for each batch.
    """
    given = 0
    share = sharding.MeshLayout.shard_batch

    def count(layout, batch, parts=None):
        nonlocal given
        if parts is None:  # not for a step
            return share(layout, batch)
        given += 1
        for at, number in signals:
            if at == given:
                hurt(number)
        if signals and given >= signals[0][0]:
            time.sleep(pause)
        return share(layout, batch, parts)

    sharding.MeshLayout.shard_batch = count


def run(task: dict, errors: str, counted: str) -> None:
    """Runs a command and ends the process."""
    code = 70
    out = os.open(errors, os.O_WRONLY)
    os.dup2(out, 1)
    os.dup2(out, 2)
    try:
        faults = ctypes.CDLL(None)
        send(task.get("signals", []))
        folder = task.get("folder", "")
        arguments = (folder.encode(), task.get("nth", 0), task.get("errno", 0))
        faults.fault_arm(*arguments)
        code = cli.main(task["argv"])
        count = faults.fault_count()
        faults.fault_arm(b"", 0, 0)
        with open(counted, "w") as file:
            file.write(str(count))
    finally:
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def configure(cache: str) -> None:
    """Makes programs compile quickly, and only once for all processes."""
    gc.disable()  # they live too short to need it, and would copy what it looks at
    quick = {
        "jax_platforms": "cpu",
        "jax_disable_most_optimizations": True,
        "jax_traceback_in_locations_limit": 0,
    }
    compiled.update(quick | compiled.keep_in(cache))


def main() -> None:
    configure(sys.argv[1])
    for line in sys.stdin:
        with (
            tempfile.NamedTemporaryFile("r") as errors,
            tempfile.NamedTemporaryFile("r") as counted,
        ):
            child = os.fork()
            if child == 0:
                run(json.loads(line), errors.name, counted.name)
            _, status = os.waitpid(child, 0)
            answer = {
                "code": os.waitstatus_to_exitcode(status),
                "operations": int(counted.read() or -1),
                "output": errors.read(),
            }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
