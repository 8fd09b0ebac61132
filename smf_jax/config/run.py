"""What a run is told: its data, what trains, and for how long."""

import dataclasses
import hashlib
import json
import re
from typing import Any, Literal

from smf_jax.config.checks import (
    require,
    require_not_negative,
    require_parts,
    require_positive,
)
from smf_jax.config.mesh import ComputeConfig, MeshConfig
from smf_jax.config.model import MemoryConfig, ModelConfig
from smf_jax.config.optim import OptimConfig

USAGE_DOCUMENTS = 200  # batches a background is counted over; the paper has 1000
Teach = Literal["questions", "statements", "both"]
# Loss of a step; exact match on the facts taught, reworded, and known before.
Metric = Literal["loss", "taught", "held_out", "known"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """The synthetic fact world: people, each with four facts."""

    known_people: int = 1000  # their facts are part of pretraining
    new_people: int = 250  # their facts are taught afterwards
    first_names: int = 200
    last_names: int = 300
    seed: int = 0

    def __post_init__(self):
        require_positive(
            "world", self, "known_people", "new_people", "first_names", "last_names"
        )
        room = self.first_names * self.last_names
        people = self.known_people + self.new_people
        require(
            2 * people <= room,
            f"world.first_names x world.last_names = {room} names are too few for "
            f"{people} people and as many strangers",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What a model is pretrained on, and which facts are kept back as new."""

    # JSONL(.gz) of facts. None: none where there is a background, else the world's.
    facts: str | None = None
    background: str | None = None  # JSONL(.gz) of texts
    new_fraction: float = 0.5  # share of `facts` kept out of pretraining
    fact_share: float = 0.5  # share of the rows of pretraining that hold facts
    loss_on: Literal["answer", "all"] = "answer"  # of a fact; a text's is on all tokens
    tokenizer: Literal["word", "bpe"] = "word"
    vocab_size: int = 4096  # tokens at most, the three special ones included
    seq_len: int = 64  # tokens of a packed sequence
    batch_size: int = 32  # packed sequences
    world: WorldConfig = dataclasses.field(default_factory=WorldConfig)

    def __post_init__(self):
        require_positive("data", self, "vocab_size", "seq_len", "batch_size")
        require(
            0 <= self.new_fraction < 1,
            f"data.new_fraction={self.new_fraction} must be 0 or more and below 1",
        )
        require(
            0 < self.fact_share < 1,
            f"data.fact_share={self.fact_share} must lie between 0 and 1",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaveConfig:
    """When a run saves a checkpoint, and which of them it keeps."""

    every: int = 250  # steps between two checkpoints; the last step has one, too
    keep: int = 2  # latest checkpoints kept
    keep_every: int = 0  # those of its multiples are kept for good; 0: none
    best: Metric | None = None  # of which the best checkpoint is kept, too

    def __post_init__(self):
        require_positive("save", self, "every", "keep")
        require_not_negative("save", self, "keep_every")


def _require_on_nan(on_nan: str) -> None:
    require(
        re.fullmatch(r"stop|skip=[0-9]{1,6}", on_nan) is not None,
        f"on_nan={on_nan} must be stop, or skip=K for at most K batches left out",
    )


def _require_best_by_loss(save: SaveConfig, run: str) -> None:
    require(
        save.best in (None, "loss"),
        f"save.best={save.best} is asked of taught models; {run} has save.best=loss",
    )


def _require_warmed_up(optim: OptimConfig, steps: int) -> None:
    require(
        optim.warmup_steps < steps,
        f"optim.warmup_steps={optim.warmup_steps} leaves nothing of steps={steps}: "
        "optim.learning_rate is reached after the warmup",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """A model trained from scratch."""

    run_dir: str  # where the run is written
    steps: int = 1200
    accumulate: int = 1  # parts a step's batch is computed in
    balance: float = 0.02  # weight of the loss that evens out which slots are read
    values_rate: float = 3.0  # of the memory's values, times optim.learning_rate
    log_every: int = 10  # steps between two lines of metrics.jsonl
    on_nan: str = "stop"  # or skip=K: leave out K batches of no finite loss
    seed: int = 0  # of the parameters and of the order of the data
    save: SaveConfig = dataclasses.field(default_factory=SaveConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    compute: ComputeConfig = dataclasses.field(default_factory=ComputeConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)

    def __post_init__(self):
        require_positive("pretrain", self, "steps", "log_every", "values_rate")
        require_parts("data.batch_size", self.data.batch_size, self.accumulate)
        require_not_negative("pretrain", self, "balance")
        _require_on_nan(self.on_nan)
        _require_best_by_loss(self.save, "pretraining")
        _require_warmed_up(self.optim, self.steps)
        require(
            self.optim.method == "full",
            f"optim.method={self.optim.method} teaches a model that exists; "
            "pretraining is optim.method=full",
        )
        require(
            self.optim.rows == "all" or self.model.memory is not None,
            f"optim.rows={self.optim.rows} is of a memory's rows, and model.memory is "
            "None",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrofitConfig:
    """Memory layers given to a run's model, and healed on text."""

    base: str  # the run directory whose model gets them
    run_dir: str  # where this run is written
    steps: int = 600
    accumulate: int = 1  # parts a step's batch is computed in
    balance: float = 0.02  # weight of the loss that evens out which slots are read
    values_rate: float = 3.0  # of the memory's values, times optim.learning_rate
    held_out: float = 0.05  # share of the packed rows that only measure; at most a half
    margin: float = 0.01  # nats by which their loss may be above the base's when healed
    eval_every: int = 50  # steps between two measures; 0: only at the end
    log_every: int = 10  # steps between two lines of metrics.jsonl
    on_nan: str = "stop"  # or skip=K: leave out K batches of no finite loss
    seed: int = 0  # of the memory's parameters and of the order of the data
    save: SaveConfig = dataclasses.field(default_factory=SaveConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    compute: ComputeConfig = dataclasses.field(default_factory=ComputeConfig)
    memory: MemoryConfig = dataclasses.field(
        default_factory=lambda: MemoryConfig(placement="add")
    )
    data: DataConfig  # what it heals on
    optim: OptimConfig = dataclasses.field(
        default_factory=lambda: OptimConfig(method="memory")
    )

    def __post_init__(self):
        require_positive("retrofit", self, "steps", "log_every", "values_rate")
        require_parts("data.batch_size", self.data.batch_size, self.accumulate)
        require_not_negative("retrofit", self, "balance", "eval_every", "margin")
        _require_on_nan(self.on_nan)
        _require_warmed_up(self.optim, self.steps)
        require(
            0 < self.held_out <= 0.5,
            f"held_out={self.held_out} must be above 0, and 0.5 at most",
        )
        require(
            self.optim.method == "memory",
            f"optim.method={self.optim.method} trains other parameters; a retrofit is "
            "optim.method=memory",
        )
        _require_best_by_loss(self.save, "a retrofit")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """A model that came from Hugging Face, with all that it came with."""

    source: str  # the directory or repository
    revision: str | None  # of a repository: the commit that was read
    ignore: tuple[str, ...]  # keys of its configuration that the user set aside
    model: ModelConfig
    end_token: int  # the id that ends a text
    config: dict[str, Any]  # its config.json
    files: dict[str, str]  # small files that go out with it again, by name
    data: DataConfig | None  # what it is asked and taught


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """A run's model taught new facts by one method."""

    base: str  # the run directory whose model learns
    run_dir: str  # where this run is written
    facts: str | None = None  # JSONL(.gz); None: the facts that `base` kept back
    teach: Teach = "questions"  # the wording trained on
    seq_len: int | None = None  # tokens of the longest text; None: as the base's data
    loss_on: Literal["answer", "all"] = "answer"  # tokens whose loss is trained
    steps: int = 150
    batch_size: int = 64  # facts a step
    accumulate: int = 1  # parts a step's batch is computed in
    # smf: whether what lies below the memory is computed once a text, and kept by hosts
    reuse_prefix: bool = True
    eval_every: int = 25  # steps between two points of the curve; 0: only at the end
    log_every: int = 10  # steps between two lines of metrics.jsonl
    on_nan: str = "stop"  # or skip=K: leave out K batches of no finite loss
    seed: int = 0  # of the order of the facts
    save: SaveConfig = dataclasses.field(default_factory=SaveConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    compute: ComputeConfig = dataclasses.field(default_factory=ComputeConfig)
    optim: OptimConfig = dataclasses.field(  # the paper's
        default_factory=lambda: OptimConfig(
            method="smf", optimizer="sgd", learning_rate=2.0
        )
    )

    def __post_init__(self):
        require_positive("finetune", self, "steps", "batch_size", "log_every")
        require_parts("batch_size", self.batch_size, self.accumulate)
        require_not_negative("finetune", self, "eval_every")
        require(
            self.seq_len is None or self.seq_len > 0,
            f"seq_len={self.seq_len} must be above 0, or None",
        )
        _require_on_nan(self.on_nan)
        _require_warmed_up(self.optim, self.steps)


def config_hash(config: Any) -> str:
    """Returns 16 hex digits that name the content of a configuration."""
    text = json.dumps(dataclasses.asdict(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
