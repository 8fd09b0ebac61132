"""Waits for the other processes at point after point, and is hurt at some.

python -m tests.faults.one_of_few CACHE '[[3, "sleep"]]'
"""

import json
import sys

import jax

from smf_jax import multihost
from tests.faults.hurt import hurt

POINTS = 1000

if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    multihost.initialize({})
    faults = dict(json.loads(sys.argv[2]))
    for number in range(1, POINTS):
        multihost.reached(f"point {number}")
        if number in faults:
            hurt(faults[number])
        multihost.barrier(f"end of point {number}")
