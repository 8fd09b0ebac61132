"""Teaches the 1,000 new facts of the demo's world by SMF.

Command: smf finetune configs/smf_world.py   (after configs/world.py and its usage)
Machine and result: see docs/reference/results.md.
"""

from smf_jax.config import FinetuneConfig
from smf_jax.demo import WORLD_RECIPES, finetune_config


def config() -> FinetuneConfig:
    """Returns the configuration."""
    return finetune_config(WORLD_RECIPES["smf"], "runs/world", "runs/smf_world")
