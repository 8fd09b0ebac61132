"""Pretraining data, and the facts held back from it."""

import dataclasses
from typing import Any, Literal

from smf_jax.config.checks import require, require_positive, require_seed
from smf_jax.config.model import ModelConfig
from smf_jax.config.source import require_fields

Teach = Literal["questions", "statements", "both"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """A synthetic world of people with four facts each."""

    known_people: int = 1000  # people whose facts are pretrained on
    new_people: int = 250  # people whose facts are taught by finetuning
    first_names: int = 200
    last_names: int = 300
    seed: int = 0

    def __post_init__(self):
        require_positive(
            "world", self, "known_people", "new_people", "first_names", "last_names"
        )
        require_seed("world", self)
        names = self.first_names * self.last_names
        people = self.known_people + self.new_people
        require(
            2 * people <= names,
            f"world.first_names x world.last_names = {names} names, but {people} "
            "people and as many strangers need distinct ones",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Pretraining data: facts, some of them held back as new, and background text."""

    # JSONL(.gz) of facts, or tfds:NAME; without it and `background`, the synthetic
    # world
    facts: str | None = None
    patterns: str | None = None  # JSONL(.gz) of patterns by relation, for wordings
    background: str | None = None  # JSONL(.gz) of texts, or tfds:NAME
    fields: str | None = None  # of tfds:NAME, such as question=FIELD,answers=FIELD
    new_fraction: float = 0.5  # share of `facts` held back from pretraining
    fact_share: float = 0.5  # share of a batch's rows that hold facts
    loss_on: Literal["answer", "all"] = "answer"  # tokens of a fact with a loss
    tokenizer: Literal["word", "bpe"] = "word"
    vocab_size: int = 4096  # upper limit, including three special tokens
    seq_len: int = 64  # tokens per packed row
    batch_size: int = 32  # packed rows per step
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
        require(
            self.patterns is None or self.facts is not None,
            "data.patterns needs data.facts, whose wordings it fills",
        )
        require_fields(self.fields, self.facts, self.background)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """A model imported from Hugging Face, with the files that came with it."""

    source: str  # directory or repository
    revision: str | None  # commit of the repository
    ignore: tuple[str, ...]  # ignored keys of its config.json
    model: ModelConfig
    bos_tokens: tuple[int, ...]  # ids of the tokens before a text
    eos_token: int  # id of the token that ends a text and an answer
    other_ends: tuple[int, ...]  # ids of other tokens that end an answer
    config: dict[str, Any]  # its config.json
    files: dict[str, str]  # small files to export again, by name
    data: DataConfig | None  # facts and texts for evaluation and finetuning
