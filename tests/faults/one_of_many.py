"""Runs an `smf` command as one of several processes, hurt at given batches.

python -m tests.faults.one_of_many CACHE '[[25, 9]]' pretrain ...

Instead of a signal: "sleep", for ever; "hold", which holds the interpreter for ever.
"""

import ctypes
import json
import sys
import time

from smf_jax import cli
from tests.faults import worker


def hurt(how: int | str) -> None:
    print("hurt at", time.monotonic(), flush=True)
    if how == "sleep":
        while True:
            time.sleep(1)
    elif how == "hold":
        ctypes.PyDLL(None).sleep(10_000)
    else:
        worker.signal_itself(how)


if __name__ == "__main__":
    worker.configure(sys.argv[1])
    # A signal to one reaches the others in its own time, and these steps take none.
    worker.send(json.loads(sys.argv[2]), pause=0.2, hurt=hurt)
    sys.exit(cli.main(sys.argv[3:]))
