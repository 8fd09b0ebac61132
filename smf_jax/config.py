"""What a run is told: frozen dataclasses that check themselves before any device works.

A section holds what one room of the package reads. The resolved configuration is
written to the run directory as JSON, and later commands read that record.
"""

import dataclasses
import hashlib
import json
from typing import Any, Literal

Teach = Literal["questions", "statements", "both"]
Selector = Literal["tfidf", "tf", "idf", "random", "all", "kl"]


class ConfigError(ValueError):
    """A mistake in what the user typed or in a file the user named."""


def require(holds: bool, message: str) -> None:
    """Raises `ConfigError(message)` unless `holds`."""
    if not holds:
        raise ConfigError(message)


def _require_positive(section: str, config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        require(value > 0, f"{section}.{name}={value} must be above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScalingConfig:
    """Llama 3.1's stretching of the rotary wavelengths for long contexts."""

    factor: float = 8.0  # long wavelengths grow by this factor
    low_freq_factor: float = 1.0  # wavelengths above original/low are stretched whole
    high_freq_factor: float = 4.0  # wavelengths below original/high stay
    original_max_position: int = 8192  # context length of the first training

    def __post_init__(self):
        require(
            self.low_freq_factor < self.high_freq_factor,
            f"rope_scaling.low_freq_factor={self.low_freq_factor} must be below "
            f"rope_scaling.high_freq_factor={self.high_freq_factor}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """Product-key memory layers (Lample et al. 2019; Berges et al. 2024)."""

    layers: tuple[int, ...] = (2,)  # which transformer layers have one, from 0
    num_keys: int = 256  # sub-keys per half; the table has num_keys**2 slots
    num_heads: int = 4  # each head reads top_k slots
    top_k: int = 8  # slots read per head and token
    key_dim: int = 64  # width of a query and of a key; each half has key_dim / 2
    value_dim: int = 128  # width of a row of the table
    query_norm: bool = True  # RMS-norm on the halves of the query
    key_norm: bool = False  # RMS-norm on the keys
    placement: Literal["replace", "add"] = "replace"  # of, or beside, the feed-forward
    share_values: bool = True  # one table for all memory layers, or one each

    def __post_init__(self):
        _require_positive(
            "memory", self, "num_keys", "num_heads", "top_k", "key_dim", "value_dim"
        )
        require(
            len(self.layers) > 0 and list(self.layers) == sorted(set(self.layers)),
            f"memory.layers={self.layers} must name layers, rising, without repeats",
        )
        require(
            self.key_dim % 2 == 0,
            f"memory.key_dim={self.key_dim} must be even: it holds two half-keys",
        )
        require(
            self.top_k <= self.num_keys,
            f"memory.top_k={self.top_k} exceeds memory.num_keys={self.num_keys}: "
            "each half has only num_keys candidates",
        )

    @property
    def num_slots(self) -> int:
        """Rows of one table."""
        return self.num_keys**2

    @property
    def num_pools(self) -> int:
        """Tables of values: one when the layers share it."""
        return 1 if self.share_values else len(self.layers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A Llama-style decoder, with the switches of the Llama and Qwen families."""

    vocab_size: int = 0  # 0: as many as the tokenizer has
    dim: int = 128  # width of the residual stream
    num_layers: int = 4
    num_heads: int = 4  # query heads
    num_kv_heads: int = 4  # key and value heads; num_heads is a multiple of it
    head_dim: int | None = None  # None: dim / num_heads
    hidden_dim: int = 384  # width inside the SwiGLU feed-forward
    rope_theta: float = 10_000.0  # base of the rotary wavelengths
    rope_scaling: RopeScalingConfig | None = None
    tie_embeddings: bool = True  # the output layer is the embedding, transposed
    qkv_bias: bool = False  # biases on query, key and value (Qwen2)
    qk_norm: bool = False  # RMS-norm on each query and key head (Qwen3)
    norm_eps: float = 1e-5
    memory: MemoryConfig | None = dataclasses.field(default_factory=MemoryConfig)

    def __post_init__(self):
        positive = ("dim", "num_layers", "num_heads", "num_kv_heads", "hidden_dim")
        _require_positive("model", self, *positive, "rope_theta", "norm_eps")
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"model.num_heads={self.num_heads} is no multiple of "
            f"model.num_kv_heads={self.num_kv_heads}",
        )
        require(
            self.head_dim is not None or self.dim % self.num_heads == 0,
            f"model.dim={self.dim} is no multiple of model.num_heads={self.num_heads}; "
            "set model.head_dim",
        )
        require(
            self.head_width % 2 == 0,
            f"a head is {self.head_width} wide; rotary embedding needs an even width",
        )
        if self.memory is not None:
            last = self.memory.layers[-1]
            require(
                self.memory.layers[0] >= 0 and last < self.num_layers,
                f"memory.layers={self.memory.layers} must lie in 0 .. "
                f"{self.num_layers - 1}, for model.num_layers={self.num_layers}",
            )

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.dim // self.num_heads


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """The synthetic fact world: people, each with four facts."""

    known_people: int = 1000  # their facts are part of pretraining
    new_people: int = 250  # their facts are taught afterwards
    first_names: int = 200
    last_names: int = 300
    seed: int = 0

    def __post_init__(self):
        _require_positive(
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

    facts: str | None = None  # JSONL(.gz) of facts; None: the synthetic world
    background: str | None = None  # JSONL(.gz) of texts beside the facts
    new_fraction: float = 0.5  # share of `facts` kept out of pretraining
    fact_share: float = 0.5  # share of the rows of pretraining that hold facts
    loss_on: Literal["answer", "all"] = "answer"  # of a fact; a text's is on all tokens
    tokenizer: Literal["word", "bpe"] = "word"
    vocab_size: int = 4096  # tokens at most, the three special ones included
    seq_len: int = 64  # tokens of a packed sequence
    batch_size: int = 32  # packed sequences
    world: WorldConfig = dataclasses.field(default_factory=WorldConfig)

    def __post_init__(self):
        _require_positive("data", self, "vocab_size", "seq_len", "batch_size")
        for name in ("new_fraction", "fact_share"):
            value = getattr(self, name)
            require(0 < value < 1, f"data.{name}={value} must lie between 0 and 1")
        require(
            self.background is None or self.facts is not None,
            "data.background is set without data.facts: the synthetic world brings "
            "its own text",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank additions to linear layers (Hu et al. 2021, arXiv:2106.09685)."""

    rank: int = 32
    alpha: float = 64.0  # the addition is scaled by alpha / rank
    targets: str = r".*(attention|feed_forward)/.*"  # pattern of linear layers' paths

    def __post_init__(self):
        _require_positive("lora", self, "rank", "alpha")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """What trains, by which rule, on which rows."""

    method: Literal["full", "lora", "smf"] = "full"
    optimizer: Literal["sgd", "adamw", "muon"] = "adamw"
    learning_rate: float = 2e-3  # the highest of the schedule
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: int = 0  # rises linearly from 0 over these
    final_fraction: float = 0.0  # of learning_rate, where cosine and linear end
    weight_decay: float = 0.0  # not SGD's; never applied to vectors
    momentum: float = 0.0  # SGD's
    clip_norm: float | None = None  # of the gradient of what trains; None: no clipping
    top_t: int = 500  # smf: slots written per step and table
    select: Selector = "tfidf"  # smf: what ranks the slots
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)

    def __post_init__(self):
        _require_positive("optim", self, "learning_rate", "top_t")
        for name in ("warmup_steps", "final_fraction", "weight_decay", "momentum"):
            value = getattr(self, name)
            require(value >= 0, f"optim.{name}={value} must not be negative")
        require(
            self.clip_norm is None or self.clip_norm > 0,
            f"optim.clip_norm={self.clip_norm} must be above 0, or None",
        )
        require(
            self.momentum == 0 or self.optimizer == "sgd",
            f"optim.momentum={self.momentum} is SGD's, but optim.optimizer is "
            f"{self.optimizer}",
        )
        require(
            self.optimizer != "muon" or self.method == "full",
            f"optim.optimizer=muon turns whole matrices and cannot train the rows or "
            f"factors of optim.method={self.method}",
        )
        require(
            self.weight_decay == 0 or self.optimizer != "sgd",
            f"optim.weight_decay={self.weight_decay} needs optim.optimizer=adamw or "
            "muon, but it is sgd",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """A model trained from scratch."""

    run_dir: str  # where the run is written
    steps: int = 1200
    log_every: int = 10  # steps between two lines of metrics.jsonl
    seed: int = 0  # of the parameters and of the order of the data
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)

    def __post_init__(self):
        _require_positive("pretrain", self, "steps", "log_every")
        require(
            self.optim.method == "full",
            f"optim.method={self.optim.method} teaches a model that exists; "
            "pretraining is optim.method=full",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """A run's model taught new facts by one method."""

    base: str  # the run directory whose model learns
    run_dir: str  # where this run is written
    facts: str | None = None  # JSONL(.gz); None: the facts that `base` kept back
    teach: Teach = "questions"  # the wording trained on
    loss_on: Literal["answer", "all"] = "answer"  # tokens whose loss is trained
    steps: int = 150
    batch_size: int = 64  # facts a step
    accumulate: int = 1  # parts a step's batch is computed in
    eval_every: int = 25  # steps between two points of the curve; 0: only at the end
    log_every: int = 10  # steps between two lines of metrics.jsonl
    seed: int = 0  # of the order of the facts
    optim: OptimConfig = OptimConfig(method="smf", optimizer="sgd")

    def __post_init__(self):
        positive = ("steps", "batch_size", "accumulate", "log_every")
        _require_positive("finetune", self, *positive)
        require(
            self.batch_size % self.accumulate == 0,
            f"batch_size={self.batch_size} is no multiple of "
            f"accumulate={self.accumulate}",
        )
        require(self.eval_every >= 0, f"eval_every={self.eval_every} is negative")


def config_hash(config: Any) -> str:
    """Returns 16 hex digits that name the content of a configuration."""
    text = json.dumps(dataclasses.asdict(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
