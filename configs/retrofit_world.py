"""Gives the demo's base without a memory, exported and imported again, a memory.

Method: a product-key memory (arXiv:2412.09764) beside a feed-forward, trained alone on
the text that the base was trained on.
Command: smf retrofit configs/retrofit_world.py   (after configs/plain_world.py, and
  smf export-hf runs/plain_world runs/exported_world
  smf import-hf runs/exported_world runs/imported_world)
Machine and result: see "A model from elsewhere" in README.md.
"""

from smf_jax.config import RetrofitConfig
from smf_jax.demo import retrofit_config


def config() -> RetrofitConfig:
    """Returns the run."""
    return retrofit_config("runs/imported_world", "runs/retrofit_world")
