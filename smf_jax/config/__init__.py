"""Frozen dataclasses that check themselves before any device works.

A section holds what one room of the package reads. The resolved configuration is
written to the run directory as JSON, and later commands read that record.
"""

from smf_jax.config.checks import ConfigError, require, require_parts
from smf_jax.config.mesh import ComputeConfig, Layout, MeshConfig, name_mesh
from smf_jax.config.model import MemoryConfig, ModelConfig, RopeScalingConfig
from smf_jax.config.optim import LoraConfig, OptimConfig, Rows, Selector
from smf_jax.config.run import (
    USAGE_DOCUMENTS,
    DataConfig,
    FinetuneConfig,
    ImportConfig,
    PretrainConfig,
    RetrofitConfig,
    SaveConfig,
    Teach,
    WorldConfig,
    config_hash,
)

__all__ = [
    "USAGE_DOCUMENTS",
    "ComputeConfig",
    "ConfigError",
    "DataConfig",
    "FinetuneConfig",
    "ImportConfig",
    "Layout",
    "LoraConfig",
    "MemoryConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimConfig",
    "PretrainConfig",
    "RetrofitConfig",
    "RopeScalingConfig",
    "Rows",
    "SaveConfig",
    "Selector",
    "Teach",
    "WorldConfig",
    "config_hash",
    "name_mesh",
    "require",
    "require_parts",
]
