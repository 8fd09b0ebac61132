"""Tests of `smf_jax.slots`."""
