"""Training runs: pretraining, retrofitting and finetuning."""

import dataclasses
import hashlib
import json
import re
from typing import Any, ClassVar, Literal

from smf_jax.config.checks import (
    require,
    require_divisible,
    require_not_negative,
    require_positive,
    require_seed,
)
from smf_jax.config.data import DataConfig, Teach
from smf_jax.config.mesh import ComputeConfig, MeshConfig
from smf_jax.config.model import MemoryConfig, ModelConfig
from smf_jax.config.optim import OptimConfig
from smf_jax.config.source import require_fields

USAGE_DOCUMENTS = 200  # background batches for document frequencies; paper: 1000
# Training loss, or exact match on new facts as taught or in a held-out wording, or on
# known facts.
Metric = Literal["loss", "taught", "held_out", "known"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaveConfig:
    """When checkpoints are saved, and which are kept."""

    every: int = 250  # steps between checkpoints; the last step always saves one
    keep: int = 2  # latest checkpoints to keep
    keep_every: int = 0  # also keep checkpoints of every K-th step; 0: none
    best: Metric | None = None  # also keep the best checkpoint by this metric

    def __post_init__(self):
        require_positive("save", self, "every", "keep")
        require_not_negative("save", self, "keep_every")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of every training run."""

    verb: ClassVar[str]  # the `smf` command of this kind of run

    run_dir: str  # output directory
    steps: int = 1000  # training steps
    grad_accum_steps: int = 1  # parts of a batch for gradient accumulation
    log_every: int = 10  # steps between rows of metrics.jsonl
    on_nan: str = "stop"  # stop, or skip=K to skip up to K non-finite steps
    seed: int = 0  # seed of new parameters and data order
    save: SaveConfig = dataclasses.field(default_factory=SaveConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    compute: ComputeConfig = dataclasses.field(default_factory=ComputeConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)

    def __post_init__(self):
        require_positive(self.verb, self, "log_every")
        self._require_steps()
        require_seed(self.verb, self)
        require(
            re.fullmatch(r"stop|skip=[0-9]{1,6}", self.on_nan) is not None,
            f"on_nan={self.on_nan} must be stop or skip=K, for at most K steps",
        )

    def _require_steps(self) -> None:
        require_positive(self.verb, self, "steps")
        require(
            self.optim.warmup_steps < self.steps,
            f"optim.warmup_steps={self.optim.warmup_steps} must be below steps="
            f"{self.steps}: optim.learning_rate is only reached after the warmup",
        )

    def _require_method(self, method: str) -> None:
        require(
            self.optim.method == method,
            f"optim.method={self.optim.method} is for smf finetune: smf {self.verb} "
            f"needs optim.method={method}",
        )

    def _require_packed(self, data: DataConfig, balance_weight: float) -> None:
        require_divisible("data.batch_size", data.batch_size, self.grad_accum_steps)
        require(
            self.save.best in (None, "loss"),
            f"save.best={self.save.best} is only available in smf finetune; smf "
            f"{self.verb} accepts only save.best=loss",
        )
        require(
            balance_weight == 0 or self.grad_accum_steps == 1,
            f"grad_accum_steps={self.grad_accum_steps} needs balance_weight=0, not "
            f"{balance_weight}: the balance loss is not a sum over parts of a batch",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainConfig):
    """Train a model from scratch."""

    verb: ClassVar[str] = "pretrain"

    steps: int = 1200  # training steps
    balance_weight: float = 0.02  # weight of the load-balancing loss
    values_lr_scale: float = 3.0  # scales optim.learning_rate for memory tables
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
    """Add memory layers to a model: calibrated to its data, or trained until it heals.

    A calibrated memory is exact from the start, so that no step is needed.
    """

    verb: ClassVar[str] = "retrofit"

    base: str  # run directory of the model to extend
    steps: int = 0  # training steps; 0: only calibrate
    documents: int = 96  # calibrated: batches of data that are read
    eval_every: int = 50  # steps between evaluations; 0: only the last step
    balance_weight: float = 0.02  # weight of the load-balancing loss
    values_lr_scale: float = 3.0  # scales optim.learning_rate for memory tables
    held_out: float = 0.05  # share of packed rows for evaluation; at most 0.5
    margin: float = 0.01  # largest rise of held-out loss that counts as healed
    # None: a calibrated memory at a third of the depth
    memory: MemoryConfig | None = None
    data: DataConfig
    optim: OptimConfig = dataclasses.field(
        default_factory=lambda: OptimConfig(method="memory")
    )

    def __post_init__(self):
        super().__post_init__()
        require_positive(self.verb, self, "values_lr_scale", "documents")
        require_not_negative(self.verb, self, "balance_weight", "eval_every", "margin")
        trains = self.memory is not None and self.memory.num_rows is None
        require(
            self.steps == 0 or trains,
            f"steps={self.steps} trains every row of a table: name a memory of which "
            "all rows exist (memory.calibrated.num_rows=None)",
        )
        require(
            0 < self.held_out <= 0.5,
            f"held_out={self.held_out} must be above 0 and at most 0.5",
        )
        self._require_method("memory")
        self._require_packed(self.data, self.balance_weight)

    def _require_steps(self) -> None:
        calibrates = self.memory is None or self.memory.calibrated is not None
        if self.steps or not calibrates:
            super()._require_steps()


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeepConfig:
    """What a model is to keep, and how much of it teaching may cost."""

    # JSONL(.gz) of facts that are asked before and after; (): the known ones of `base`
    facts: tuple[str, ...] = ()
    texts: str | None = None  # JSONL(.gz) of texts for the loss; None: those of `base`
    # share of these facts that may be forgotten: where an evaluation finds more,
    # teaching goes back to the one before, and on at half the rate; None: no limit
    forget_at_most: float | None = None
    text_loss_at_most: float = 0.05  # with `forget_at_most`: rise of the loss, in nats

    def __post_init__(self):
        require_not_negative("keep", self, "text_loss_at_most")
        limit = self.forget_at_most
        require(
            limit is None or 0 <= limit < 1,
            f"keep.forget_at_most={limit} must be 0 or more and below 1",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainConfig):
    """Teach new facts to the model of a run."""

    verb: ClassVar[str] = "finetune"

    base: str  # run directory of the model to teach
    # JSONL(.gz), or tfds:NAME; None: the facts that `base` held back
    facts: str | None = None
    patterns: str | None = None  # JSONL(.gz) of patterns by relation, for wordings
    fields: str | None = None  # of tfds:NAME, such as question=FIELD,answers=FIELD
    teach: Teach = "questions"  # what is trained on; questions include wordings
    # how questions are put, in teaching and asking: as they stand, or through the chat
    # template; auto: chat if the model was trained to chat
    prompt: Literal["auto", "plain", "chat"] = "auto"
    seq_len: int | None = None  # longest text in tokens; None: as in `base`
    loss_on: Literal["answer", "all"] = "answer"  # tokens with a loss
    steps: int = 150  # training steps
    batch_size: int = 64  # facts per step
    reuse_prefix: bool = True  # smf: cache activations below the first memory layer
    eval_every: int = 25  # steps between evaluations; 0: only the last step
    # what is to be kept, and how much of it may be forgotten
    keep: KeepConfig = dataclasses.field(default_factory=KeepConfig)
    # what is trained, and how; the defaults are the paper's
    optim: OptimConfig = dataclasses.field(
        default_factory=lambda: OptimConfig(
            method="smf", optimizer="sgd", learning_rate=2.0
        )
    )

    def __post_init__(self):
        super().__post_init__()
        require_positive(self.verb, self, "batch_size")
        require_divisible("batch_size", self.batch_size, self.grad_accum_steps)
        require_not_negative(self.verb, self, "eval_every")
        require(
            self.optim.per_fact.answered == 0 or self.grad_accum_steps == 1,
            f"optim.per_fact.answered={self.optim.per_fact.answered} needs "
            "grad_accum_steps=1: whether a fact is answered depends on all of its rows",
        )
        require(
            self.seq_len is None or self.seq_len > 0,
            f"seq_len={self.seq_len} must be above 0, or None",
        )
        require(
            self.patterns is None or self.facts is not None,
            "patterns needs facts, whose wordings it fills",
        )
        require(
            self.keep.forget_at_most is None or self.eval_every > 0,
            f"keep.forget_at_most={self.keep.forget_at_most} needs evaluations "
            f"(eval_every={self.eval_every})",
        )
        require_fields(self.fields, self.facts, *self.keep.facts, self.keep.texts)


def config_hash(config: Any) -> str:
    """Returns a hash of a configuration's content, 16 hex digits."""
    text = json.dumps(dataclasses.asdict(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
