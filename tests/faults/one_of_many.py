"""Runs an `smf` command as one of several processes, hurt at given batches.

python -m tests.faults.one_of_many CACHE '[[25, 9]]' pretrain ...
"""

import json
import sys

from smf_jax import cli
from tests.faults import worker

if __name__ == "__main__":
    worker.configure(sys.argv[1])
    # A signal to one reaches the others in its own time, and these steps take none.
    worker.send(json.loads(sys.argv[2]), pause=0.2)
    sys.exit(cli.main(sys.argv[3:]))
