"""The runs: pretraining, retrofitting, finetuning."""

import dataclasses
import hashlib
import json
import re
from typing import Any, ClassVar, Literal

from smf_jax.config.checks import (
    require,
    require_not_negative,
    require_parts,
    require_positive,
)
from smf_jax.config.data import DataConfig, Teach
from smf_jax.config.mesh import ComputeConfig, MeshConfig
from smf_jax.config.model import MemoryConfig, ModelConfig
from smf_jax.config.optim import OptimConfig

USAGE_DOCUMENTS = 200  # batches a background is counted over; the paper has 1000
# Loss of a step; exact match on the facts taught, reworded, and known before.
Metric = Literal["loss", "taught", "held_out", "known"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaveConfig:
    """When a run saves a checkpoint, and which it keeps."""

    every: int = 250  # steps between checkpoints; the last step always has one
    keep: int = 2  # latest checkpoints kept
    keep_every: int = 0  # checkpoints at its multiples are kept for good; 0: none
    best: Metric | None = None  # the best checkpoint by this metric is kept, too

    def __post_init__(self):
        require_positive("save", self, "every", "keep")
        require_not_negative("save", self, "keep_every")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What every training run has."""

    verb: ClassVar[str]  # the command that runs it

    run_dir: str  # where the run is written
    steps: int = 1000
    grad_accum_steps: int = 1  # parts in which a batch's gradient is computed
    log_every: int = 10  # steps between rows of metrics.jsonl
    on_nan: str = "stop"  # or skip=K: skip up to K batches that are not finite
    seed: int = 0  # of new parameters and of the data order
    save: SaveConfig = dataclasses.field(default_factory=SaveConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    compute: ComputeConfig = dataclasses.field(default_factory=ComputeConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)

    def __post_init__(self):
        require_positive(self.verb, self, "steps", "log_every")
        require(
            re.fullmatch(r"stop|skip=[0-9]{1,6}", self.on_nan) is not None,
            f"on_nan={self.on_nan} must be stop, or skip=K for at most K batches",
        )
        require(
            self.optim.warmup_steps < self.steps,
            f"optim.warmup_steps={self.optim.warmup_steps} must be below steps="
            f"{self.steps}: optim.learning_rate is reached after the warmup",
        )

    def _require_method(self, method: str) -> None:
        require(
            self.optim.method == method,
            f"optim.method={self.optim.method} is for smf finetune; smf {self.verb} "
            f"needs optim.method={method}",
        )

    def _require_packed(self, data: DataConfig, balance_weight: float) -> None:
        require_parts("data.batch_size", data.batch_size, self.grad_accum_steps)
        require(
            self.save.best in (None, "loss"),
            f"save.best={self.save.best} is a score of taught models; smf {self.verb} "
            "has save.best=loss",
        )
        require(
            balance_weight == 0 or self.grad_accum_steps == 1,
            f"grad_accum_steps={self.grad_accum_steps} needs balance_weight=0, not "
            f"{balance_weight}: the balance loss is not a sum over parts of a batch",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainConfig):
    """A model trained from scratch."""

    verb: ClassVar[str] = "pretrain"

    steps: int = 1200
    balance_weight: float = 0.02  # of the loss that evens out reads over slots
    values_lr_scale: float = 3.0  # learning rate of memory values / optim.learning_rate
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)

    def __post_init__(self):
        super().__post_init__()
        require_positive(self.verb, self, "values_lr_scale")
        require_not_negative(self.verb, self, "balance_weight")
        self._require_method("full")
        has_memory = self.model.memory is not None
        self._require_packed(self.data, self.balance_weight if has_memory else 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrofitConfig(TrainConfig):
    """Memory layers added to a run's model, and trained until they have healed."""

    verb: ClassVar[str] = "retrofit"

    base: str  # the run directory whose model gets them
    steps: int = 600
    eval_every: int = 50  # steps between evaluations; 0: only at the end
    balance_weight: float = 0.02  # of the loss that evens out reads over slots
    values_lr_scale: float = 3.0  # learning rate of memory values / optim.learning_rate
    held_out: float = 0.05  # share of the packed rows held out; at most a half
    margin: float = 0.01  # nats by which the held-out loss may exceed the base's
    memory: MemoryConfig = dataclasses.field(
        default_factory=lambda: MemoryConfig(placement="add")
    )
    data: DataConfig  # what the memory is trained on
    optim: OptimConfig = dataclasses.field(
        default_factory=lambda: OptimConfig(method="memory")
    )

    def __post_init__(self):
        super().__post_init__()
        require_positive(self.verb, self, "values_lr_scale")
        require_not_negative(self.verb, self, "balance_weight", "eval_every", "margin")
        require(
            0 < self.held_out <= 0.5,
            f"held_out={self.held_out} must be above 0, and 0.5 at most",
        )
        self._require_method("memory")
        self._require_packed(self.data, self.balance_weight)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainConfig):
    """New facts taught to a run's model by one method."""

    verb: ClassVar[str] = "finetune"

    base: str  # the run directory whose model learns
    facts: str | None = None  # JSONL(.gz); None: the facts that `base` held back
    teach: Teach = "questions"  # the wording trained on
    seq_len: int | None = None  # tokens of the longest text; None: as the base's data
    loss_on: Literal["answer", "all"] = "answer"  # tokens whose loss is trained
    steps: int = 150
    batch_size: int = 64  # facts a step
    reuse_prefix: bool = True  # smf: cache the output below the memory for each text
    eval_every: int = 25  # steps between points of the curve; 0: only at the end
    optim: OptimConfig = dataclasses.field(  # the paper's
        default_factory=lambda: OptimConfig(
            method="smf", optimizer="sgd", learning_rate=2.0
        )
    )

    def __post_init__(self):
        super().__post_init__()
        require_positive(self.verb, self, "batch_size")
        require_parts("batch_size", self.batch_size, self.grad_accum_steps)
        require_not_negative(self.verb, self, "eval_every")
        require(
            self.seq_len is None or self.seq_len > 0,
            f"seq_len={self.seq_len} must be above 0, or None",
        )


def config_hash(config: Any) -> str:
    """Returns 16 hex digits that name the content of a configuration."""
    text = json.dumps(dataclasses.asdict(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
