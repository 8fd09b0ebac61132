"""Tests of `smf_jax.kernels`."""
