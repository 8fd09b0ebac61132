"""Tests of `smf_jax.hosts`."""
