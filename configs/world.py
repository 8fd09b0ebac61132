"""The demo's base: a 9M model that learns 4,000 facts about 1,000 made-up people.

Method: product-key memory layers (arXiv:2412.09764); the optimizer is Muon.
Command: smf pretrain configs/world.py && smf usage runs/world
Machine and result: see docs/reference/results.md.
"""

import dataclasses

from smf_jax.config import PretrainConfig
from smf_jax.demo import DemoConfig, base_config


def config() -> PretrainConfig:
    """Returns the configuration."""
    return dataclasses.replace(base_config(DemoConfig()), run_dir="runs/world")
