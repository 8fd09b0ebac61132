"""The main job from nothing to a comparison, and the recipes it follows."""

from smf_jax.demo.recipes import (
    FILE_RECIPES,
    RETROFIT_RECIPE,
    WORLD_RECIPES,
    DemoConfig,
    Recipe,
    base_config,
    finetune_config,
    retrofit_config,
)
from smf_jax.demo.run import run, walk

__all__ = [
    "FILE_RECIPES",
    "RETROFIT_RECIPE",
    "WORLD_RECIPES",
    "DemoConfig",
    "Recipe",
    "base_config",
    "finetune_config",
    "retrofit_config",
    "run",
    "walk",
]
