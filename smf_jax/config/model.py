"""Model architecture."""

import dataclasses
import math
from typing import Literal

from smf_jax.config.checks import require, require_positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScalingConfig:
    """Scaling of rotary wavelengths for contexts longer than those of pretraining.

    "linear" scales all of them (Chen et al. 2023, arXiv:2306.15595). "llama3" (Llama
    3.1) and "yarn" (Peng et al. 2023, arXiv:2309.00071) scale long ones, keep short
    ones, and blend those between.
    """

    # linear scales all wavelengths, the others only long ones
    type: Literal["linear", "llama3", "yarn"] = "llama3"
    factor: float = 8.0  # scales wavelengths
    original_max_position: int = 8192  # llama3, yarn: context length before scaling
    # llama3: wavelengths above original/low are fully scaled
    low_freq_factor: float = 1.0
    # llama3: wavelengths below original/high are not scaled
    high_freq_factor: float = 4.0
    # yarn: wavelengths with more turns in the original context are not scaled
    beta_fast: float = 32.0
    # yarn: wavelengths with fewer turns in it are fully scaled
    beta_slow: float = 1.0
    truncate: bool = True  # yarn: round the dimensions of both limits, outwards
    # yarn: multiplies queries and keys; None: 0.1 ln(factor) + 1
    attention_factor: float | None = None

    def __post_init__(self):
        positive = ("factor", "original_max_position", "beta_fast", "beta_slow")
        require_positive("rope_scaling", self, *positive)
        if self.attention_factor is not None:
            require_positive("rope_scaling", self, "attention_factor")
        require(
            self.low_freq_factor < self.high_freq_factor,
            f"rope_scaling.low_freq_factor={self.low_freq_factor} must be below "
            f"rope_scaling.high_freq_factor={self.high_freq_factor}",
        )
        require(
            self.beta_slow <= self.beta_fast,
            f"rope_scaling.beta_slow={self.beta_slow} must not be above "
            f"rope_scaling.beta_fast={self.beta_fast}",
        )

    @property
    def amplitude(self) -> float:
        """Factor of rotated queries and keys."""
        if self.type != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(max(self.factor, 1)) + 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864)."""

    theta: float = 10_000.0  # base of the wavelengths
    scaling: RopeScalingConfig | None = None
    skip_layers: tuple[int, ...] = ()  # layers without rotary embedding (SmolLM3)

    def __post_init__(self):
        require_positive("rope", self, "theta")
        yarn = self.scaling is not None and self.scaling.type == "yarn"
        require(
            self.theta > 1 or not yarn,
            f"rope.theta={self.theta} must be above 1 for rope_scaling.type=yarn",
        )


ROW_UNIT = 512  # the rows of a table are a multiple, so that devices can share them


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibratedConfig:
    """A memory whose queries and keys are statistics of a pretrained model."""

    temperature: float = 0.1  # divides scores before the softmax
    num_rows: int | None = 0  # rows that exist, others read as zeros; None: all exist

    def __post_init__(self):
        require_positive("memory.calibrated", self, "temperature")
        require(
            self.num_rows is None or self.num_rows >= 0,
            f"memory.calibrated.num_rows={self.num_rows} must be 0 or more",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """Product-key memory layers (Lample et al. 2019; Berges et al. 2024)."""

    layers: tuple[int, ...] = (2,)  # transformer layers with memory, from 0
    num_keys: int = 256  # sub-keys per half; a table has num_keys**2 slots
    num_heads: int = 4
    top_k: int = 8  # slots read per head and token
    key_dim: int = 64  # width of queries and keys, each of two halves
    value_dim: int = 128  # width of a table row
    query_norm: bool = True  # RMS-norm on query halves
    key_norm: bool = False  # RMS-norm on keys
    placement: Literal["replace", "add"] = (
        "replace"  # the feed-forward, or add to its output
    )
    share_values: bool = True  # one table for all memory layers, not one each
    relevance_gate: bool = False  # learned gate per token, from 0 to 1
    calibrated: CalibratedConfig | None = None  # None: all of it is trained

    def __post_init__(self):
        require_positive(
            "memory", self, "num_keys", "num_heads", "top_k", "key_dim", "value_dim"
        )
        require(
            len(self.layers) > 0 and list(self.layers) == sorted(set(self.layers)),
            f"memory.layers={self.layers} must list distinct layers in ascending order",
        )
        require(
            self.key_dim % 2 == 0,
            f"memory.key_dim={self.key_dim} must be even: a key has two halves",
        )
        require(
            self.top_k <= self.num_keys,
            f"memory.top_k={self.top_k} exceeds memory.num_keys={self.num_keys}: "
            "each half has only num_keys candidates",
        )
        if self.calibrated is None:
            return
        require(
            len(self.layers) == 1,
            f"memory.layers={self.layers}: a calibrated memory has one layer, so that "
            "what facts read is known before they are written",
        )
        require(
            self.placement == "add",
            "memory.placement=replace is not for a calibrated memory, which is added "
            "to the feed-forward",
        )
        require(
            self.num_slots < 2**31,
            f"memory.num_keys={self.num_keys} makes more than 2**31 slots",
        )

    @property
    def num_slots(self) -> int:
        """Rows of one table."""
        return self.num_keys**2

    @property
    def num_rows(self) -> int | None:
        """Rows that were written, if no others exist; None: each slot has a row."""
        return None if self.calibrated is None else self.calibrated.num_rows

    def with_rows(self, num_rows: int) -> "MemoryConfig":
        """Returns the calibrated memory with this many rows."""
        calibrated = dataclasses.replace(self.calibrated, num_rows=num_rows)
        return dataclasses.replace(self, calibrated=calibrated)

    @property
    def table_rows(self) -> int:
        """Rows of one table: all slots, or those that exist, and unused ones."""
        if self.num_rows is None:
            return self.num_slots
        return (self.num_rows // ROW_UNIT + 1) * ROW_UNIT  # at least one is unused

    @property
    def num_tables(self) -> int:
        """Number of value tables; 1 if all memory layers share one."""
        return 1 if self.share_values else len(self.layers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A Llama-style decoder, with the options of the Llama and Qwen families."""

    vocab_size: int = 0  # 0: size of the tokenizer's vocabulary
    dim: int = 128  # width of the residual stream
    num_layers: int = 4
    num_heads: int = 4  # query heads
    num_kv_heads: int = 4  # key and value heads; divides num_heads
    head_dim: int | None = None  # None: dim / num_heads
    hidden_dim: int = 384  # width of the SwiGLU feed-forward
    rope: RopeConfig = dataclasses.field(default_factory=RopeConfig)
    tie_embeddings: bool = True  # share weights of embedding and output layer
    qkv_bias: bool = False  # biases on query, key and value (Qwen2)
    qk_norm: bool = False  # RMS-norm on each query and key head (Qwen3)
    norm_eps: float = 1e-5
    memory: MemoryConfig | None = dataclasses.field(default_factory=MemoryConfig)

    def __post_init__(self):
        positive = ("dim", "num_layers", "num_heads", "num_kv_heads", "hidden_dim")
        require_positive("model", self, *positive, "norm_eps")
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"model.num_heads={self.num_heads} is not a multiple of "
            f"model.num_kv_heads={self.num_kv_heads}",
        )
        require(
            self.head_dim is not None or self.dim % self.num_heads == 0,
            f"model.dim={self.dim} is not a multiple of model.num_heads="
            f"{self.num_heads}: set model.head_dim",
        )
        require(
            self.head_width % 2 == 0,
            f"model.head_dim={self.head_width} must be even for rotary embedding",
        )
        require(
            all(0 <= layer < self.num_layers for layer in self.rope.skip_layers),
            f"model.rope.skip_layers={self.rope.skip_layers} must lie in 0 .. "
            f"{self.num_layers - 1}, for model.num_layers={self.num_layers}",
        )
        if self.memory is not None:
            last = self.memory.layers[-1]
            require(
                self.memory.layers[0] >= 0 and last < self.num_layers,
                f"memory.layers={self.memory.layers} must lie in 0 .. "
                f"{self.num_layers - 1}, for model.num_layers={self.num_layers}",
            )
            require(
                self.memory.calibrated is None or self.memory.value_dim == self.dim,
                f"memory.value_dim={self.memory.value_dim} must be model.dim="
                f"{self.dim} for a calibrated memory, whose rows are vectors of the "
                "stream",
            )

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.dim // self.num_heads


def calibrated_memory(model: ModelConfig) -> MemoryConfig:
    """Returns a calibrated memory for a model, without any rows.

    Lower layers forget less, and learn less; a third of the depth is a good compromise.
    """
    return MemoryConfig(
        layers=(model.num_layers // 3,),
        num_keys=2048,  # 4M slots: finer ones are shared less with other texts
        key_dim=min(256, model.dim // 4 * 2),
        value_dim=model.dim,
        placement="add",
        calibrated=CalibratedConfig(),
    )
