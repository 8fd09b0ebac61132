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
    answer: str, accepted: Sequence[str], normalise: Callable[[str], str] = normalise
) -> bool:
    """Returns whether an answer equals any accepted one, both normalised."""
    return normalise(answer) in map(normalise, accepted)


def token_f1(
    answer: str, accepted: Sequence[str], normalise: Callable[[str], str] = normalise
) -> float:
    """Returns the F1 of the words shared with the best matching accepted answer."""
    return max(_f1(normalise(answer), normalise(right)) for right in accepted)


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
            [float(measure(answer, p.answers, rule)) for answer, p in pairs], prompts
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
