"""A small base for the tutorials: 2 layers that learn 800 facts about 200 people.

Command: smf pretrain configs/small_world.py && smf usage runs/small_world
Machine and result: see docs/tutorials/world.ipynb.
"""

import dataclasses

from smf_jax.config import MemoryConfig, ModelConfig, PretrainConfig, WorldConfig
from smf_jax.demo import DemoConfig, base_config


def config() -> PretrainConfig:
    """Returns the configuration."""
    base = base_config(DemoConfig())
    world = WorldConfig(
        known_people=200, new_people=50, first_names=100, last_names=100
    )
    return dataclasses.replace(
        base,
        run_dir="runs/small_world",
        steps=200,
        model=ModelConfig(
            num_layers=2, hidden_dim=256, memory=MemoryConfig(layers=(1,))
        ),
        data=dataclasses.replace(base.data, world=world),
    )
