"""Lets `python -m smf_jax` stand for the `smf` command."""

import sys

from smf_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
