"""Tests of `smf_jax.model`."""
