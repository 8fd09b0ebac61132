"""Lets `python -m smf_jax` stand for the `smf` command."""

from smf_jax.cli import run

if __name__ == "__main__":
    run()
