"""Frozen dataclasses that check themselves before any device works.

A section holds what one room of the package reads. The resolved configuration is
written to the run directory as JSON, and later commands read that record.
"""

from smf_jax.config.checks import ConfigError, require
from smf_jax.config.model import MemoryConfig, ModelConfig, RopeScalingConfig
from smf_jax.config.run import (
    USAGE_DOCUMENTS,
    DataConfig,
    FinetuneConfig,
    ImportConfig,
    LoraConfig,
    OptimConfig,
    PretrainConfig,
    RetrofitConfig,
    SaveConfig,
    Selector,
    Teach,
    WorldConfig,
    config_hash,
)

__all__ = [
    "USAGE_DOCUMENTS",
    "ConfigError",
    "DataConfig",
    "FinetuneConfig",
    "ImportConfig",
    "LoraConfig",
    "MemoryConfig",
    "ModelConfig",
    "OptimConfig",
    "PretrainConfig",
    "RetrofitConfig",
    "RopeScalingConfig",
    "SaveConfig",
    "Selector",
    "Teach",
    "WorldConfig",
    "config_hash",
    "require",
]
