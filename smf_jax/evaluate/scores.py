"""Scores of answers, each with its number of facts and its 95 % interval."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from smf_jax.data.prompts import Prompt
from smf_jax.evaluate.intervals import Interval, wilson
from smf_jax.evaluate.normalise import normalise, squad_normalise


class Scores(NamedTuple):
    """Means over facts, each between 0 and 1, of the means over a fact's prompts."""

    n: int  # facts
    exact_match: float
    exact_match_95: Interval
    f1: float
    f1_95: Interval
    squad_exact_match: float  # as the evaluation of SQuAD normalises, for comparison
    squad_f1: float


def is_exact(
    answer: str,
    accepted: Sequence[str],
    normalise: Callable[[str], str] = normalise,
    goes_on: bool = False,
) -> bool:
    """Returns whether an answer equals any accepted one, both normalised.

    With `goes_on` it may go on after that, as a model completes a text that no question
    ends: "French, and he" is then "French", but "Frenchman" is not.
    """
    return any(_pairs(answer, accepted, normalise, goes_on, lambda a, b: a == b))


def token_f1(
    answer: str,
    accepted: Sequence[str],
    normalise: Callable[[str], str] = normalise,
    goes_on: bool = False,
) -> float:
    """Returns the F1 of the words shared with the best matching accepted answer.

    With `goes_on` only as many words count as the accepted answer has.
    """
    return max(_pairs(answer, accepted, normalise, goes_on, _f1))


def is_right(answer: str, prompt: Prompt) -> bool:
    """Returns whether an answer to a prompt is an accepted one."""
    return is_exact(answer, prompt.answers, goes_on=not prompt.is_question)


def _pairs(answer, accepted, normalise, goes_on, compare):
    """Yields `compare(answer, right)` for each accepted answer, both normalised."""
    whole = normalise(answer)
    for right in map(normalise, accepted):
        words = whole.split()[: len(right.split())] if goes_on else None
        yield compare(whole if words is None else " ".join(words), right)


def _f1(answer: str, right: str) -> float:
    answer, right = answer.split(), right.split()
    if not answer or not right:
        return float(answer == right)
    shared = (Counter(answer) & Counter(right)).total()
    return 2 * shared / (len(answer) + len(right))


def score(answers: Sequence[str], prompts: Sequence[Prompt]) -> Scores:
    """Returns the scores of one answer per prompt."""
    pairs = list(zip(answers, prompts, strict=True))
    exact, f1, squad_exact, squad_f1 = (
        of_facts(
            [
                float(measure(answer, p.answers, rule, not p.is_question))
                for answer, p in pairs
            ],
            prompts,
        )
        for rule in (normalise, squad_normalise)
        for measure in (is_exact, token_f1)
    )
    n = len(exact)
    means = (sum(exact) / n, sum(f1) / n)
    with_ends = (each for mean in means for each in (mean, wilson(mean, n)))
    return Scores(n, *with_ends, sum(squad_exact) / n, sum(squad_f1) / n)


def of_facts(scores: Sequence[float], prompts: Sequence[Prompt]) -> list[float]:
    """Returns the mean score of each fact, from the scores of its prompts."""
    by_fact = defaultdict(list)
    for value, prompt in zip(scores, prompts, strict=True):
        by_fact[prompt.fact].append(value)
    return [sum(values) / len(values) for values in by_fact.values()]
