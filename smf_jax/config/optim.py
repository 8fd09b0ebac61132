"""The finetuning method, the optimizer and its schedule."""

import dataclasses
import math
from typing import Literal

from smf_jax.config.checks import require, require_not_negative, require_positive

Selector = Literal["tfidf", "tf", "idf", "random", "all", "kl", "contrastive"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters of linear layers (Hu et al. 2021, arXiv:2106.09685)."""

    rank: int = 32  # of the adapters
    alpha: float = 64.0  # adapters are scaled by alpha / rank
    targets: str = r".*(attention|feed_forward)/.*"  # regex of adapted layers' paths

    def __post_init__(self):
        require_positive("lora", self, "rank", "alpha")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerFactConfig:
    """How sparse finetuning treats each fact of a step."""

    # slots of its own, chosen before the first step: those of the facts of a step that
    # are not answered yet are updated; None: optim.top_t slots of all facts together
    rows: int | None = None
    # select=contrastive: exponents of a slot's rarity in text, and among the facts
    rarity: float = 3.0
    contrast: float = 1.5
    # facts leave a step if no token of theirs has a larger loss (nats); 0: none leave
    answered: float = 0.0

    def __post_init__(self):
        require_not_negative("optim.per_fact", self, "rarity", "contrast", "answered")
        require(
            self.rows is None or self.rows > 0,
            f"optim.per_fact.rows={self.rows} must be above 0, or None",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Which parameters are trained, by which optimizer."""

    method: Literal["full", "lora", "smf", "memory"] = "full"  # what is trained
    # normalized: each row moves by the learning rate, against its gradient
    optimizer: Literal["sgd", "adamw", "muon", "normalized"] = "adamw"
    learning_rate: float = 2e-3  # peak of the schedule
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: int = 0  # steps of linear warmup
    end_lr_fraction: float = 0.0  # final learning rate / learning_rate; not constant
    weight_decay: float = 0.0  # of matrices and selected rows; not with sgd
    max_grad_norm: float | None = None  # clips the global norm; None: no clipping
    top_t: int = 500  # smf: slots updated per step and table
    select: Selector = "tfidf"  # smf: score that ranks slots
    per_fact: PerFactConfig = dataclasses.field(default_factory=PerFactConfig)
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)

    def __post_init__(self):
        require_positive("optim", self, "learning_rate", "top_t")
        not_negative = ("warmup_steps", "end_lr_fraction", "weight_decay")
        require_not_negative("optim", self, *not_negative)
        require(
            self.max_grad_norm is None or 0 < self.max_grad_norm < math.inf,
            f"optim.max_grad_norm={self.max_grad_norm} must be above 0 and finite, or "
            "None",
        )
        require(
            self.learning_rate < 1 or self.optimizer == "sgd",
            f"optim.learning_rate={self.learning_rate} is too large for optim.optimizer"
            f"={self.optimizer}, whose updates are about as large as the rate: only "
            "sgd accepts 1 or more",
        )
        for_rows = self.optimizer == "normalized" or self.per_fact != PerFactConfig()
        require(
            self.method == "smf" or not for_rows,
            "optim.optimizer=normalized and optim.per_fact are for optim.method=smf, "
            f"not for {self.method}",
        )
        require(
            self.optimizer != "muon" or self.method in ("full", "memory"),
            f"optim.optimizer=muon orthogonalizes whole matrices and cannot train the "
            f"rows or adapters of optim.method={self.method}",
        )
        require(
            self.weight_decay == 0 or self.optimizer in ("adamw", "muon"),
            f"optim.weight_decay={self.weight_decay} is not for optim.optimizer="
            f"{self.optimizer}: use adamw or muon",
        )


# Teaches facts to a calibrated memory; rates are in units of its gain.
TEACH_OPTIM = OptimConfig(
    method="smf",
    optimizer="normalized",
    learning_rate=0.7,
    schedule="linear",
    end_lr_fraction=0.1,
    select="contrastive",
    per_fact=PerFactConfig(rows=100, answered=0.3),
)
