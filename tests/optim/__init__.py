"""Tests of `smf_jax.optim`."""
