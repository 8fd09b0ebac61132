"""Pretrains, teaches by every method, and compares what was learned and forgotten."""

from smf_jax.demo.recipes import (
    FILE_RATES,
    FILE_RECIPES,
    RETROFIT_RECIPE,
    WORLD_RATES,
    WORLD_RECIPES,
    DemoConfig,
    Recipe,
    base_config,
    finetune_config,
    retrofit_config,
)
from smf_jax.demo.run import compare, run

__all__ = [
    "FILE_RATES",
    "FILE_RECIPES",
    "RETROFIT_RECIPE",
    "WORLD_RATES",
    "WORLD_RECIPES",
    "DemoConfig",
    "Recipe",
    "base_config",
    "compare",
    "finetune_config",
    "retrofit_config",
    "run",
]
