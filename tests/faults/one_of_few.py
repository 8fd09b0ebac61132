"""Waits for the other processes at point after point, and is hurt at some.

python -m tests.faults.one_of_few CACHE '[[3, "sleep"]]'
"""

import json
import sys

import jax

from smf_jax import distributed
from tests.faults.hurt import hurt

POINTS = 1000

if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    distributed.initialize({})
    faults = dict(json.loads(sys.argv[2]))
    for number in range(1, POINTS):
        distributed.mark(f"point {number}")
        if number in faults:
            hurt(faults[number])
        distributed.wait_for_all(f"end of point {number}")
