"""Prints what an evaluation found, with numbers of questions and 95 % intervals."""

from collections.abc import Callable, Iterable, Sequence

from rich.console import Console

from smf_jax.data.prompts import Prompt
from smf_jax.evaluate.asking import Asking
from smf_jax.evaluate.forgetting import forgetting
from smf_jax.evaluate.intervals import show_interval
from smf_jax.evaluate.perplexity import TextLoss
from smf_jax.evaluate.questions import GROUPS, Evaluation, Questions

SHOWN = 60  # characters of a prompt


def print_scores(
    questions: Questions, asking: Asking, points: Sequence[Evaluation], console: Console
) -> None:
    """Prints the scores of one evaluation, or how they changed from one to another."""

    def tell(name: str, text: str) -> None:
        console.print(f"{name:16}  {text}")

    groups = questions.groups()
    for group in groups:
        of_group = [point.scores[group] for point in points]
        exact = _path(f"{scores.exact_match:.3f}" for scores in of_group)
        interval = show_interval(of_group[-1].exact_match_95)
        f1 = _path(f"{scores.f1:.3f}" for scores in of_group)
        n = f"n={of_group[-1].n:<5,}"
        tell(GROUPS[group], f"{n}  exact match {exact} {interval}  F1 {f1}")
    if len(points) == 2 and "known" in groups:
        _tell_forgotten(questions.known, *points, tell)
    losses = [point.texts for point in points if point.texts is not None]
    if losses:
        _tell_losses(losses, tell)
    tell("", f"[...]: 95 % interval; prompts: {asking.form.kind}, such as")
    for group, prompts in groups.items():
        text = prompts[0].text
        tell(GROUPS[group], text if len(text) <= SHOWN else f"{text[:SHOWN]} ...")


def _tell_forgotten(
    known: Sequence[Prompt],
    before: Evaluation,
    after: Evaluation,
    tell: Callable[[str, str], None],
) -> None:
    change = forgetting(known, before.answers["known"], after.answers["known"])
    if change is None:
        return
    share = f"{change.forgotten:.1%} {show_interval(change.forgotten_95, '.1%')}"
    counts = f"{len(change.lost):,} lost, {len(change.gained):,} gained"
    tell("forgotten", f"n={change.right_before:<5,}  {share}  {counts}")


def _tell_losses(losses: Sequence[TextLoss], tell: Callable[[str, str], None]) -> None:
    path, change = _path(f"{of.loss:.4f}" for of in losses), ""
    if len(losses) == 2:
        rise, interval = losses[0].change_to(losses[1])
        change = f"{rise:+.4f} {show_interval(interval, '+.4f')}"
    tell("text rows", f"n={losses[-1].n:<5,}  loss {path} nats a token {change}")


def _path(values: Iterable[str]) -> str:
    return " -> ".join(values)
