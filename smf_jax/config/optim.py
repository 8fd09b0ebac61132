"""What trains, by which rule, on which rows."""

import dataclasses
import math
from typing import Literal

from smf_jax.config.checks import require, require_not_negative, require_positive

Selector = Literal["tfidf", "tf", "idf", "random", "all", "kl"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank additions to linear layers (Hu et al. 2021, arXiv:2106.09685)."""

    rank: int = 32
    alpha: float = 64.0  # the addition is scaled by alpha / rank
    targets: str = r".*(attention|feed_forward)/.*"  # pattern of linear layers' paths

    def __post_init__(self):
        require_positive("lora", self, "rank", "alpha")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """What trains, by which rule, on which rows."""

    method: Literal["full", "lora", "smf", "memory"] = "full"
    optimizer: Literal["sgd", "adamw", "muon"] = "adamw"
    learning_rate: float = 2e-3  # the highest of the schedule
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: int = 0  # rises linearly over these
    end_lr_fraction: float = 0.0  # of learning_rate, where cosine and linear end
    weight_decay: float = 0.0  # not SGD's; of matrices, and of rows that smf chose
    max_grad_norm: float | None = (
        None  # of the gradient of what trains; None: no clipping
    )
    top_t: int = 500  # smf: slots written per step and table
    select: Selector = "tfidf"  # smf: what ranks the slots
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)

    def __post_init__(self):
        require_positive("optim", self, "learning_rate", "top_t")
        shares = ("end_lr_fraction", "weight_decay")
        require_not_negative("optim", self, "warmup_steps", *shares)
        require(
            self.max_grad_norm is None or 0 < self.max_grad_norm < math.inf,
            f"optim.max_grad_norm={self.max_grad_norm} must be above 0 and finite, or None",
        )
        require(
            self.learning_rate < 1 or self.optimizer == "sgd",
            f"optim.learning_rate={self.learning_rate} is a rate for SGD, but "
            f"optim.optimizer is {self.optimizer}, by which every number moves by "
            "about the rate in a step",
        )
        require(
            self.optimizer != "muon" or self.method in ("full", "memory"),
            f"optim.optimizer=muon turns whole matrices and cannot train the rows or "
            f"factors of optim.method={self.method}",
        )
        require(
            self.weight_decay == 0 or self.optimizer != "sgd",
            f"optim.weight_decay={self.weight_decay} needs optim.optimizer=adamw or "
            "muon, but it is sgd",
        )
