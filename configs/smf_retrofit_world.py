"""Teaches the 1,000 new facts of the demo's world to a retrofitted base by SMF.

Command: smf finetune configs/smf_retrofit_world.py   (after configs/retrofit_world.py
  and smf usage runs/retrofit_world)
Machine and result: see docs/reference/results.md.
"""

from smf_jax.config import FinetuneConfig
from smf_jax.demo import RETROFIT_RECIPE, finetune_config


def config() -> FinetuneConfig:
    """Returns the configuration."""
    base, run_dir = "runs/retrofit_world", "runs/smf_retrofit_world"
    return finetune_config(RETROFIT_RECIPE, base, run_dir)
