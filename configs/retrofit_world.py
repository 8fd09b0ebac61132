"""Adds a memory layer to the demo's base without one, after export and import.

Method: a product-key memory (arXiv:2412.09764) is added to a feed-forward, and only it
is trained, on the base's own training data.
Command: smf retrofit configs/retrofit_world.py   (after configs/plain_world.py, and
  smf export-hf runs/plain_world runs/exported_world
  smf import-hf runs/exported_world runs/imported_world)
Machine and result: see docs/reference/results.md.
"""

from smf_jax.config import RetrofitConfig
from smf_jax.demo import retrofit_config


def config() -> RetrofitConfig:
    """Returns the configuration."""
    return retrofit_config("runs/imported_world", "runs/retrofit_world")
