"""Teaching facts to a pretrained model by one command."""

import dataclasses
import math
from typing import Literal

from smf_jax.config.checks import (
    require,
    require_file,
    require_positive,
    require_seed,
)
from smf_jax.config.mesh import MeshConfig
from smf_jax.config.optim import TEACH_OPTIM, LoraConfig, OptimConfig
from smf_jax.config.source import require_source
from smf_jax.config.train import FinetuneConfig, KeepConfig, SaveConfig

FACTS_PER_STEP = 16
_LORA = OptimConfig(
    method="lora",
    learning_rate=1e-3,
    schedule="linear",
    end_lr_fraction=0.1,
    lora=LoraConfig(rank=16, alpha=32.0),
)
OPTIM = {
    "smf": TEACH_OPTIM,
    "lora": _LORA,
    "full": dataclasses.replace(_LORA, method="full", learning_rate=1e-4),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeachConfig:
    """Teach a model the facts of a file that it does not know."""

    model: str  # repository OWNER/NAME, directory, FILE.gguf, or run
    facts: str  # JSONL(.gz) of facts, or tfds:NAME
    patterns: str | None = None  # JSONL(.gz) of patterns by relation, for wordings
    keep: tuple[str, ...] = ()  # files of facts of which the known ones are to be kept
    background: str | None = None  # JSONL(.gz) of texts; None: the model writes some
    out: str = "runs/taught"  # output directory
    method: Literal["smf", "lora", "full"] = "smf"  # what is trained
    # share of the kept facts that may be forgotten, or else teaching goes back; None:
    # any
    forget_at_most: float | None = None
    # how questions are put; auto: chat if the model was trained to chat
    prompt: Literal["auto", "plain", "chat"] = "auto"
    epochs: int = 10  # times that every fact is taught
    rate: float | None = None  # learning rate; None: 0.7, of lora 1e-3, of full 1e-4
    seed: int = 0  # of the order of facts, of samples, and of new parameters
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def __post_init__(self):
        require_positive("teach", self, "epochs")
        require_seed("teach", self)
        limit = self.forget_at_most
        require(
            limit is None or 0 <= limit < 1,
            f"forget_at_most={limit} must be 0 or more and below 1",
        )
        if self.rate is not None:
            require_positive("teach", self, "rate")
        self.optim  # noqa: B018 - refuses a rate that is too large

    def require_files(self) -> None:
        """Raises `ConfigError` unless every file that is named exists."""
        require_source("facts", self.facts)
        if self.patterns is not None:
            require_file("patterns", self.patterns)
        for source in self.keep:
            require_source("keep", source)
        if self.background is not None:
            require_source("background", self.background)

    @property
    def optim(self) -> OptimConfig:
        """The optimizer, with the rate that was asked for."""
        optim = OPTIM[self.method]
        rate = optim.learning_rate if self.rate is None else self.rate
        return dataclasses.replace(optim, learning_rate=rate)


def finetune_of(
    config: TeachConfig,
    base: str,
    run_dir: str,
    *,
    facts: str,
    count: int,
    keep: tuple[str, ...],
    texts: str,
    seq_len: int,
) -> FinetuneConfig:
    """Returns the finetuning that teaches `count` facts of a file."""
    epoch = math.ceil(count / FACTS_PER_STEP)
    return FinetuneConfig(
        base=base,
        run_dir=run_dir,
        facts=facts,
        keep=KeepConfig(facts=keep, texts=texts, forget_at_most=config.forget_at_most),
        prompt=config.prompt,
        seq_len=seq_len,
        steps=config.epochs * epoch,
        batch_size=min(FACTS_PER_STEP, count),
        eval_every=0 if config.forget_at_most is None else 2 * epoch,
        seed=config.seed,
        save=SaveConfig(every=2 * epoch, keep=1),
        mesh=config.mesh,
        optim=config.optim,
    )
