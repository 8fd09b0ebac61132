"""Evaluates a run on the facts it was taught and those it should have kept."""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from smf_jax import multihost
from smf_jax.config import (
    BY_DEFAULT,
    AskConfig,
    ConfigError,
    DataConfig,
    FinetuneConfig,
    MeshConfig,
    require,
    require_fields,
    short_name,
)
from smf_jax.data.batches import Batch, pack_corpus
from smf_jax.data.corpus import Corpus, load_facts, with_texts
from smf_jax.data.prompts import Prompt, encode_asked
from smf_jax.data.records import MAX_PROMPT, Fact
from smf_jax.data.tokenizer import unknown_words
from smf_jax.evaluate.answers import answer
from smf_jax.evaluate.asking import Asking, make_asking
from smf_jax.evaluate.questions import (
    Evaluation,
    Questions,
    evaluate_model,
    load_questions,
)
from smf_jax.model.lora import merge_lora
from smf_jax.runs.files import EVALUATION, write_result
from smf_jax.runs.layout import print_layout
from smf_jax.runs.load import (
    Run,
    corpus_of,
    load_run,
    located,
    warn_unhealed,
)

TEXTS = 64  # rows of text for the loss
TEXT_TOKENS = 128  # of such a row, for a run without data of its own
MAX_NEW_TOKENS = 32  # of an answer to a single question


class Evaluated(NamedTuple):
    """What an evaluation found, and where it is to be written."""

    evaluation: Evaluation
    questions: Questions
    asking: Asking
    is_taught: bool  # whether the run was taught new facts
    path: Path

    def write(self) -> Path:
        """Writes scores and answers, and returns the path."""
        write_evaluation(self.path, self.questions, self.evaluation, self.asking)
        return self.path


def evaluate(
    run_dir: str,
    facts: str | None,
    patterns: str | None,
    console: Console,
    config: AskConfig = BY_DEFAULT,
    step: int | None = None,
    mesh: MeshConfig | None = None,
    fields: str | None = None,
) -> Evaluated:
    """Evaluates a run on all its questions.

    The checkpoint is that of `step`, by default the last. Another step, other facts and
    another way of asking get a file of their own. The wording called "taught" is that
    of the run's own teaching; for other facts, and for a run that was taught nothing,
    the questions themselves. `fields` are of data sets: see `read_facts`.

    Raises:
      ConfigError: There is no such run, it has no questions, its files have changed,
        or the result cannot be written.
    """
    require_fields(fields, facts, config.shots_from)
    run = load_run(run_dir, step, mesh=mesh)
    name = Path(EVALUATION).stem
    name += "" if step is None else f"-{step}"
    name += "" if facts is None else f"-{short_name(facts)}"
    name += "" if config == BY_DEFAULT else f"-{config.prompt}"
    path = run.run_dir / f"{name}.json"
    _require_writable(path)
    print_layout(run.model.layout, console)
    warn_unhealed(run, console)
    own = run.lineage.finetune and located(run, run.lineage.finetune)
    corpus = corpus_of(run)
    if own is not None:
        corpus = with_texts(corpus, own.keep.texts, own.fields)
    questions = _questions(run, own, corpus, facts, patterns, console, fields)
    multihost.require_same("data", questions.hash)
    shots = _shots(config, corpus, fields)
    asking = asking_of(run, config, questions, shots)
    shown = {fact.id for fact in shots} if config.shots_from is None else set()
    known = [prompt for prompt in questions.known if prompt.fact not in shown]
    questions = questions._replace(known=known)
    texts = sample_texts(run, corpus)
    about = (questions, texts, run.step, asking, console)
    evaluation = evaluate_model(run.model, run.tokenizer, *about)

    is_taught = run.lineage.finetune is not None
    return Evaluated(evaluation, questions, asking, is_taught, path)


def _questions(
    run: Run,
    own: FinetuneConfig | None,
    corpus: Corpus,
    facts: str | None,
    patterns: str | None,
    console: Console,
    fields: str | None,
) -> Questions:
    keep = () if own is None else own.keep.facts
    if facts is None and own is not None:
        about = (own.facts, own.patterns, own.teach)
        questions = load_questions(corpus, *about, console, own.fields, keep)
        require(
            questions.hash == run.corpus_hash,
            f"the facts of {run.run_dir} have changed since it was taught (hash "
            f"{run.corpus_hash} then, {questions.hash} now)",
        )
    else:
        about = (facts, patterns, "questions")
        questions = load_questions(corpus, *about, console, fields, keep)
    require(bool(questions.groups()), f"{run.run_dir} has no questions: name --facts")
    return questions


def _require_writable(path: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def _shots(config: AskConfig, corpus: Corpus, fields: str | None = None) -> list[Fact]:
    """Returns the answered questions that come before each question."""
    count = config.num_shots
    if count == 0:
        return []
    facts = corpus.known
    if config.shots_from is not None:
        facts, _ = load_facts(config.shots_from, None, fields)
    facts = [fact for fact in facts if fact.question]
    source = config.shots_from or "known facts"
    require(
        len(facts) >= count,
        f"{count} answered questions are to come before each question, but there are "
        f"{len(facts)} in {source} (--shots, --shots-from)",
    )
    return facts[:count]


def asking_of(
    run: Run,
    config: AskConfig,
    questions: Questions | None = None,
    shots: Sequence[Fact] = (),
) -> Asking:
    """Returns how a run is asked: as it was taught, unless `config` says otherwise."""
    taught = run.lineage.finetune
    if config.prompt == "auto" and taught is not None:
        config = dataclasses.replace(config, prompt=taught.prompt)
    groups = [] if questions is None else questions.groups().values()
    answers = [each for group in groups for p in group for each in p.answers]
    context = run.lineage.context_length
    return make_asking(config, run.tokenizer, shots, answers, context)


def write_evaluation(
    path: Path, questions: Questions, evaluation: Evaluation, asking: Asking
) -> None:
    """Writes scores and every answer."""
    answers = {
        group: [
            prompt._asdict() | {"answer": reply}
            for prompt, reply in zip(prompts, evaluation.answers[group], strict=True)
        ]
        for group, prompts in questions.groups().items()
    }
    asked = {"asked": asking.to_json(), "answers": answers}
    write_result(path, evaluation.to_json() | asked)


def ask(
    run_dir: str,
    question: str,
    console: Console,
    config: AskConfig = BY_DEFAULT,
    samples: int = 1,
    mesh: MeshConfig | None = None,
) -> list[str]:
    """Returns a run's answers to one question: the greedy one, or samples.

    Raises:
      ConfigError: There is no such run, the question has unknown words, or it is too
        long for the model.
    """
    require(
        len(question) <= MAX_PROMPT,
        f"the question has {len(question):,} characters, and may have {MAX_PROMPT}",
    )
    run = load_run(run_dir, mesh=mesh)
    merge_lora(run.model)
    shots = _shots(config, corpus_of(run)) if config.num_shots else []
    form, config, context = asking_of(run, config, shots=shots)
    unknown = unknown_words(run.tokenizer, question)
    require(
        not unknown,
        f"the tokenizer of {run_dir} does not know {', '.join(map(repr, unknown))}: it "
        "has one token a word, of the words of its corpus",
    )
    data = run.lineage.data
    length = len(encode_asked(run.tokenizer, form, question))
    if data is not None and length > data.seq_len:
        console.print(
            f"WARNING: the prompt has {length:,} tokens, and the model was trained on "
            f"texts of {data.seq_len:,} (data.seq_len)",
            style="bold red",
        )
    prompts = [Prompt("", question, ())] * samples
    new_tokens = config.max_new_tokens or MAX_NEW_TOKENS
    return answer(run.model, run.tokenizer, prompts, new_tokens, form, config, context)


def sample_texts(run: Run, corpus: Corpus) -> list[Batch]:
    """Returns rows of a corpus's texts, to measure forgetting by their loss."""
    texts = corpus.texts[:: -(-len(corpus.texts) // TEXTS) or 1]
    if not texts:
        return []
    some = corpus._replace(examples=[], texts=texts)
    longest = run.lineage.context_length or TEXT_TOKENS
    of_base = run.lineage.data or DataConfig(seq_len=min(TEXT_TOKENS, longest))
    return pack_corpus(run.tokenizer, some, of_base).texts[:TEXTS]
