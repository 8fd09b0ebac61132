"""How a model is asked: the prompt, its end, and how the answer is sampled."""

import dataclasses
from typing import Literal

from smf_jax.config.checks import require, require_not_negative, require_positive

PromptKind = Literal["plain", "few-shot", "chat"]
DEFAULT_SHOTS = 5  # of few-shot prompts, as Natural Questions are asked


@dataclasses.dataclass(frozen=True, kw_only=True)
class AskConfig:
    """How questions are put to a model, and how it answers."""

    # plain: as they stand; few-shot: after others; chat: through the chat template;
    # auto: as the model was taught, or else chat if it was trained to chat, or plain
    prompt: Literal["auto", "plain", "few-shot", "chat"] = "auto"
    shots: int | None = None  # answered questions before each; None: few-shot 5, else 0
    shots_from: str | None = None  # file or tfds:NAME; None: the run's known facts
    # strings that end an answer; None: the end of a line, unless in a chat
    stop: tuple[str, ...] | None = None
    # of an answer; None: those of the longest accepted one, or 32 where none is known
    max_new_tokens: int | None = None
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0  # share of probability to sample from
    seed: int = 0  # of sampling

    def __post_init__(self):
        require_not_negative("ask", self, "temperature")
        require_positive("ask", self, "top_p")
        require(self.top_p <= 1, f"top_p={self.top_p} must be at most 1")
        require(
            self.shots is None or self.shots >= 0,
            f"shots={self.shots} must not be negative",
        )
        require(
            self.max_new_tokens is None or self.max_new_tokens > 0,
            f"max_new_tokens={self.max_new_tokens} must be above 0",
        )
        require(
            self.stop is None or "" not in self.stop,
            "a stop string is empty, which would end every answer at once",
        )
        require(
            0 <= self.seed < 2**32, f"seed={self.seed} must lie in 0 .. {2**32 - 1}"
        )

    @property
    def num_shots(self) -> int:
        """Answered questions before each question."""
        if self.shots is None:
            return DEFAULT_SHOTS if self.prompt == "few-shot" else 0
        return self.shots


BY_DEFAULT = AskConfig()
