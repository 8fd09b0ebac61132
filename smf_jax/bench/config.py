"""Configuration of a benchmark."""

import dataclasses
from typing import Literal, get_args

from smf_jax.config import (
    ComputeConfig,
    MemoryConfig,
    ModelConfig,
    require,
    require_divisible,
)

Part = Literal[
    "lookup",
    "ranking",
    "methods",
    "pretraining",
    "products",
    "slots",
    "decoding",
    "pretrained",
]


def _model() -> ModelConfig:
    memory = MemoryConfig(
        layers=(4,), num_keys=1024, top_k=32, num_heads=4, key_dim=256, value_dim=512
    )
    return ModelConfig(
        vocab_size=8192,
        dim=512,
        num_layers=8,
        num_heads=8,
        num_kv_heads=8,
        hidden_dim=1408,
        memory=memory,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Benchmark memory lookups, training steps and decoding on this machine.

    Cases of a group are timed in turn, and their medians compared.

    PyTorch (extra `torch`) does the same work on the same device.

    The default sizes need 24 GB of memory.

    Example: smf bench --out runs/bench
    """

    out: str = "runs/bench"  # output directory of bench.json
    # all but pretrained, which needs a model
    parts: tuple[Part, ...] = tuple(n for n in get_args(Part) if n != "pretrained")
    repeats: int = 7  # samples per case, after the warmup
    texts: int = 64  # texts per batch
    seq_len: int = 64  # tokens per text
    grad_accum_steps: int = 2  # parts of a batch in a step of SMF
    top_t: int = 500  # slots updated per step of SMF
    # folder or .gguf of a model, for the part pretrained
    source: str | None = None
    table: Literal["float32", "bfloat16"] = "float32"  # type of rows, for lookup only
    compute: ComputeConfig = dataclasses.field(default_factory=ComputeConfig)
    model: ModelConfig = dataclasses.field(default_factory=_model)

    def __post_init__(self):
        for name in ("repeats", "texts", "seq_len", "top_t"):
            value = getattr(self, name)
            option = name.replace("_", "-")
            require(value > 0, f"--{option} {value} must be above 0")
        require(
            (self.source is not None) == ("pretrained" in self.parts),
            "--source MODEL and --parts pretrained need each other",
        )
        require_divisible("--texts", self.texts, self.grad_accum_steps)
        require(self.model.memory is not None, "smf bench needs model.memory")
        require(self.model.vocab_size > 0, "smf bench needs model.vocab_size")

    @property
    def tokens(self) -> int:
        """Tokens of a batch."""
        return self.texts * self.seq_len
