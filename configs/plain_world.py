"""The demo's base without memory layers: a 1M model that learns the same facts.

Command: smf pretrain configs/plain_world.py
Machine and result: see docs/reference/results.md.
"""

import dataclasses

from smf_jax.config import PretrainConfig
from smf_jax.demo import DemoConfig, base_config


def config() -> PretrainConfig:
    """Returns the configuration."""
    base = base_config(DemoConfig())
    model = dataclasses.replace(base.model, memory=None)
    return dataclasses.replace(base, run_dir="runs/plain_world", model=model)
