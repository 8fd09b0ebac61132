"""Configuration as frozen dataclasses, each validated when it is made.

The resolved configuration is written to the run directory as JSON, where later commands
read it.
"""

from smf_jax.config.ask import BY_DEFAULT, AskConfig, PromptKind
from smf_jax.config.checks import (
    ConfigError,
    require,
    require_divisible,
    require_seed,
)
from smf_jax.config.data import DataConfig, ImportConfig, Teach, WorldConfig
from smf_jax.config.mesh import ComputeConfig, MeshConfig, TableSplit, name_mesh
from smf_jax.config.model import (
    CalibratedConfig,
    MemoryConfig,
    ModelConfig,
    RopeConfig,
    RopeScalingConfig,
    calibrated_memory,
)
from smf_jax.config.optim import (
    TEACH_OPTIM,
    LoraConfig,
    OptimConfig,
    PerFactConfig,
    Selector,
)
from smf_jax.config.paths import with_absolute_paths
from smf_jax.config.source import (
    FACT_KEYS,
    FIELD_KEYS,
    PREFIX,
    TEXT_KEYS,
    DataSet,
    Kind,
    data_dir,
    is_data_set,
    parse_data_set,
    parse_fields,
    path_of,
    require_fields,
    require_source,
    short_name,
    with_path,
)
from smf_jax.config.teach import TeachConfig, finetune_of
from smf_jax.config.train import (
    USAGE_DOCUMENTS,
    FinetuneConfig,
    KeepConfig,
    PretrainConfig,
    RetrofitConfig,
    SaveConfig,
    TrainConfig,
    config_hash,
)

__all__ = [
    "BY_DEFAULT",
    "FACT_KEYS",
    "FIELD_KEYS",
    "PREFIX",
    "TEACH_OPTIM",
    "TEXT_KEYS",
    "USAGE_DOCUMENTS",
    "AskConfig",
    "CalibratedConfig",
    "ComputeConfig",
    "ConfigError",
    "DataConfig",
    "DataSet",
    "FinetuneConfig",
    "ImportConfig",
    "KeepConfig",
    "Kind",
    "LoraConfig",
    "MemoryConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimConfig",
    "PerFactConfig",
    "PretrainConfig",
    "PromptKind",
    "RetrofitConfig",
    "RopeConfig",
    "RopeScalingConfig",
    "SaveConfig",
    "Selector",
    "TableSplit",
    "Teach",
    "TeachConfig",
    "TrainConfig",
    "WorldConfig",
    "calibrated_memory",
    "config_hash",
    "data_dir",
    "finetune_of",
    "is_data_set",
    "name_mesh",
    "parse_data_set",
    "parse_fields",
    "path_of",
    "require",
    "require_divisible",
    "require_fields",
    "require_seed",
    "require_source",
    "short_name",
    "with_absolute_paths",
    "with_path",
]
