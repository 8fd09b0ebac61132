"""The budget of what teaching may forget, and what is said if it was not enough."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from smf_jax.config import KeepConfig
from smf_jax.evaluate.forgetting import forgetting
from smf_jax.evaluate.questions import Evaluation, Questions

TRIES = 2  # at the full rate, and at half of it


class Broken(NamedTuple):
    """An evaluation that found more forgotten than is allowed."""

    step: int
    forgotten: float | None  # share of the known facts; None: none was known
    text_loss: float | None  # its rise, in nats a token; None: there are no texts


def over_budget(
    config: KeepConfig, questions: Questions, first: Evaluation, now: Evaluation
) -> Broken | None:
    """Returns by how much an evaluation is over the budget, if it is and there is one.

    `first` is the evaluation before any step.
    """
    if config.forget_at_most is None:
        return None
    kept = questions.known and forgetting(
        questions.known, first.answers["known"], now.answers["known"]
    )
    share = kept.forgotten if kept else None
    rise = None if first.texts is None else first.texts.change_to(now.texts)[0]
    over = (share or 0) > config.forget_at_most
    if over or (rise or 0) > config.text_loss_at_most:
        return Broken(now.step, share, rise)
    return None


def describe_budget(
    config: KeepConfig, broken: Sequence[Broken], last: int
) -> dict[str, Any] | None:
    """Returns the budget, what broke it, and which step was taken, for the record."""
    if config.forget_at_most is None:
        return None
    return {
        "forget_at_most": config.forget_at_most,
        "text_loss_at_most": config.text_loss_at_most,
        "broken": [each._asdict() for each in broken],
        "step": last,
    }


def tell_budget(budget: dict[str, Any]) -> str:
    """Returns what became of a budget, as a sentence or two."""
    lines = [
        f"after step {each['step']} {_amounts(Broken(**each))}"
        for each in budget["broken"]
    ]
    limits = (budget["forget_at_most"], budget["text_loss_at_most"])
    amounts = f"{limits[0]:.1%} forgotten, text loss +{limits[1]:.3f} nats"
    if not lines:
        return f"The budget ({amounts}) was kept at the full rate."
    story = f"The budget ({amounts}) was broken: {lines[0]}; taught on at half the rate"
    if len(lines) < TRIES:
        return f"{story}, within the budget."
    taken = f"step {budget['step']}" if budget["step"] else "the untaught model"
    return f"{story}, and again {lines[1]}: the result is {taken}."


def _amounts(broken: Broken) -> str:
    parts = []
    if broken.forgotten is not None:
        parts.append(f"{broken.forgotten:.1%} were forgotten")
    if broken.text_loss is not None:
        parts.append(f"text loss rose by {broken.text_loss:.4f}")
    return " and ".join(parts)
