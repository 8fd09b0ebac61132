"""Configuration as frozen dataclasses, each validated when it is made.

The resolved configuration is written to the run directory as JSON, where later commands
read it.
"""

from smf_jax.config.ask import BY_DEFAULT, AskConfig, PromptKind
from smf_jax.config.checks import (
    ConfigError,
    require,
    require_divisible,
    require_file,
    require_seed,
)
from smf_jax.config.data import DataConfig, ImportConfig, Teach, WorldConfig
from smf_jax.config.mesh import ComputeConfig, MeshConfig, TableSplit, name_mesh
from smf_jax.config.model import (
    MemoryConfig,
    ModelConfig,
    RopeConfig,
    RopeScalingConfig,
)
from smf_jax.config.optim import LoraConfig, OptimConfig, Selector
from smf_jax.config.paths import with_absolute_paths
from smf_jax.config.train import (
    USAGE_DOCUMENTS,
    FinetuneConfig,
    PretrainConfig,
    RetrofitConfig,
    SaveConfig,
    TrainConfig,
    config_hash,
)

__all__ = [
    "BY_DEFAULT",
    "USAGE_DOCUMENTS",
    "AskConfig",
    "ComputeConfig",
    "ConfigError",
    "DataConfig",
    "FinetuneConfig",
    "ImportConfig",
    "LoraConfig",
    "MemoryConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimConfig",
    "PretrainConfig",
    "PromptKind",
    "RetrofitConfig",
    "RopeConfig",
    "RopeScalingConfig",
    "SaveConfig",
    "Selector",
    "TableSplit",
    "Teach",
    "TrainConfig",
    "WorldConfig",
    "config_hash",
    "name_mesh",
    "require",
    "require_divisible",
    "require_file",
    "require_seed",
    "with_absolute_paths",
]
