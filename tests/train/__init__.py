"""Tests of `smf_jax.train`."""
