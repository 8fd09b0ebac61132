"""What is timed, and how large it is."""

import dataclasses
from typing import Literal, get_args

from smf_jax.config import (
    ComputeConfig,
    MemoryConfig,
    ModelConfig,
    require,
    require_parts,
)

Part = Literal["lookup", "ranking", "methods", "pretraining", "slots", "decoding"]
KNOWN = "smf, texts seen before"  # the name of that work


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
    """Time the lookup, the ranking of keys, steps of every method, and decoding.

    What is compared takes turns, so that both meet the same noise; medians are told.
    Needs 24 GB of memory at its default size. With the extra `torch`, PyTorch does the
    same work beside it, on the same device.
    """

    out: str = "runs/bench"  # where bench.json and the figures are written
    parts: tuple[Part, ...] = get_args(Part)
    repeats: int = 7  # turns of each, after one that is not counted
    texts: int = 64  # of a batch
    seq_len: int = 64  # tokens of each
    # Parts in which SMF computes a batch: less memory, and no gradient of weights that
    # would have to be summed over parts.
    grad_accum_steps: int = 2
    top_t: int = 500  # rows that a step of SMF writes
    rank: int = 8  # of LoRA
    most_keys: int = 2048  # of a half, in the largest of the growing tables
    table: Literal["float32", "bfloat16"] = "float32"  # rows of the part lookup
    compute: ComputeConfig = dataclasses.field(default_factory=ComputeConfig)
    model: ModelConfig = dataclasses.field(default_factory=_model)

    def __post_init__(self):
        for name in ("repeats", "texts", "seq_len", "top_t", "rank", "most_keys"):
            require(getattr(self, name) > 0, f"--{name} must be above 0")
        require_parts("--texts", self.texts, self.grad_accum_steps)
        require(self.model.memory is not None, "a bench needs model.memory")
        require(self.model.vocab_size > 0, "a bench needs model.vocab_size")
