"""What a model is trained on, and which facts are held back."""

import dataclasses
from typing import Any, Literal

from smf_jax.config.checks import require, require_positive
from smf_jax.config.model import ModelConfig

Teach = Literal["questions", "statements", "both"]


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
class ImportConfig:
    """A model imported from Hugging Face, and the files that came with it."""

    source: str  # the directory or repository
    revision: str | None  # of a repository: the commit that was read
    ignore: tuple[str, ...]  # keys of `config.json` that were ignored
    model: ModelConfig
    eos_token: int  # the id that ends a text
    config: dict[str, Any]  # its config.json
    files: dict[str, str]  # small files that are exported again, by name
    data: DataConfig | None  # facts and texts for evaluation and teaching
