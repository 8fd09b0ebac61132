"""The data of a teaching run: facts that are new, facts that are kept, and texts."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from smf_jax import checkpoint
from smf_jax.config import TeachConfig, require
from smf_jax.data.corpus import load_facts, load_kept
from smf_jax.data.records import Fact, Text, read_texts
from smf_jax.data.sources import prepared_facts
from smf_jax.runs import Run, load_run
from smf_jax.runs.files import read_result, write_result, write_text
from smf_jax.runs.load import corpus_of
from smf_jax.verbs.teach_questions import ask_facts
from smf_jax.verbs.teach_texts import choose_texts

Records = dict[str, Sequence[Fact] | Sequence[Text]]  # by the stem of their file
DATA = "data"  # the folder
QUESTIONS, TEXTS = "questions.json", "texts.json"  # records of what is in it


class Sources(NamedTuple):
    """What the files of a command hold."""

    facts: list[Fact]
    others: list[Fact]  # to be kept, if the model knows them
    texts: list[Text]


class Made(NamedTuple):
    """What is in the folder DATA."""

    inputs: dict[str, str]  # what it was made from
    counts: dict[str, int]
    files: tuple[str, ...]  # without a suffix
    seconds: dict[str, float]


def read_sources(config: TeachConfig, console: Console) -> Sources:
    """Reads every file, so that a mistake in one is found before any work.

    Raises:
      ConfigError: A file is missing or broken.
    """
    config.require_files()
    facts, notes = load_facts(config.facts, config.patterns)
    for note in notes:
        console.print(f"data: {note}")
    others = load_kept(config.keep)
    texts = [] if config.background is None else read_texts(config.background)
    return Sources(facts, others, texts)


def make_data(
    config: TeachConfig, base: Path, sources: Sources, out: Path, console: Console
) -> Made:
    """Asks the run `base` and chooses texts, unless that is done.

    Raises:
      ConfigError: It was done with other inputs; or as `ask_facts` and `choose_texts`.
    """
    model, seed = _identity(base), str(config.seed)
    of_questions = {"model": model, "prompt": config.prompt, "seed": seed}
    of_questions |= {"facts": _hash(sources.facts), "keep": _hash(sources.others)}
    of_texts = {"model": model, "background": _hash(sources.texts), "seed": seed}
    folder, run = out / DATA, None

    def loaded() -> Run:
        nonlocal run
        run = run or load_run(base, mesh=config.mesh)
        return run

    def ask() -> tuple[dict[str, int], Records]:
        others = sources.others or _found(loaded(), console)
        asked = ask_facts(config, loaded(), sources.facts, others, console)
        counts = {"asked": len(sources.facts), "tried": asked.tried}
        files = {"new": asked.new, "known": asked.known, "keep": asked.kept}
        return counts | {"fact_tokens": asked.seq_len}, files

    def choose() -> tuple[dict[str, int], Records]:
        texts = choose_texts(config, loaded(), sources.texts, console)
        files = {"background": texts.background, "texts": texts.measured}
        return {"text_tokens": texts.seq_len}, files

    console.print(f"questions: {len(sources.facts):,} facts", style="bold")
    questions = _once(folder, QUESTIONS, of_questions, ask, console)
    console.print(
        "{asked:,} facts: {new:,} are new, {known:,} are known; {keep:,} of {tried:,} "
        "others are to be kept".format(**questions["counts"])
    )
    own = config.background or f"written by {config.model}"
    console.print(f"texts: {own}", style="bold")
    texts = _once(folder, TEXTS, of_texts, choose, console)
    console.print(
        "{background:,} texts are the background, {texts:,} others are measured".format(
            **texts["counts"]
        )
    )
    counts = questions["counts"] | texts["counts"]
    files = (*questions["files"], *texts["files"])
    seconds = {"questions": questions["seconds"], "texts": texts["seconds"]}
    return Made(of_questions | of_texts, counts, files, seconds)


def _once(
    folder: Path,
    name: str,
    inputs: dict[str, str],
    make: Callable[[], tuple[dict[str, int], Records]],
    console: Console,
) -> dict[str, Any]:
    """Writes the files that `make` returns and a record of them, unless it is there."""
    if (folder / name).exists():
        record = read_result(folder / name)
        differing = [key for key in inputs if inputs[key] != record["inputs"].get(key)]
        require(
            not differing,
            f"{folder / name} was made with another {' and '.join(differing)}: choose "
            f"another --out, or remove {folder.parent}",
        )
        console.print(f"already done: {folder / name}")
        return record
    begin = time.perf_counter()
    counts, files = make()
    folder.mkdir(exist_ok=True)
    for stem, records in files.items():
        if records:  # an empty file would be refused
            write_text(folder / f"{stem}.jsonl", "".join(map(_line, records)))
    counts = counts | {stem: len(records) for stem, records in files.items()}
    record = {
        "inputs": inputs,
        "counts": counts,
        "files": [stem for stem, records in files.items() if records],
        "seconds": time.perf_counter() - begin,
    }
    write_result(folder / name, record)
    return record


def _line(record: Fact | Text) -> str:
    filled = {name: value for name, value in record._asdict().items() if value}
    return json.dumps(filled, ensure_ascii=False) + "\n"


def _identity(run_dir: Path) -> str:
    """Returns a hash of a run's last checkpoint, and of its record."""
    manifest = checkpoint.read(run_dir, checkpoint.latest_step(run_dir))
    return _hash([manifest.arrays, manifest.run_files])


def _hash(content: Any) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def _found(run: Run, console: Console) -> list[Fact]:
    """Returns facts to be kept that are at hand: those of the run, or of data sets."""
    known = corpus_of(run).known
    if known:
        return known
    sources = prepared_facts()
    if sources:
        console.print(f"to be kept, as far as known: {', '.join(sources)}")
    return load_kept(sources)
