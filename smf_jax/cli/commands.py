"""The verbs of the `smf` command; other files of this room hold some."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from smf_jax.cli.data import data
from smf_jax.cli.files import Flat, RunDir, load_config, recorded_mesh
from smf_jax.cli.models import export_hf, import_hf, retrofit
from smf_jax.cli.options import parse
from smf_jax.cli.patch import patch
from smf_jax.cli.plan import plan
from smf_jax.cli.teach import teach
from smf_jax.config import (
    BY_DEFAULT,
    USAGE_DOCUMENTS,
    AskConfig,
    FinetuneConfig,
    MeshConfig,
    PretrainConfig,
    require,
)


def demo(arguments: Sequence[str], console: Console) -> None:
    """Compares all methods on a small model, and writes a report."""
    from smf_jax import demo, report

    config = parse(demo.DemoConfig, "demo", arguments)
    demo.run(config, console)
    console.print(f"report: {report.write(Path(config.out))}")


def pretrain(arguments: Sequence[str], console: Console) -> None:
    """Trains the model of a configuration file."""
    config, resume = load_config(PretrainConfig, "pretrain", arguments)
    from smf_jax.verbs.pretrain import pretrain

    console.print(f"run: {pretrain(config, console, resume)}")


def usage(arguments: Sequence[str], console: Console) -> None:
    """Counts the document frequency of a run's slots."""
    recorded = recorded_mesh(arguments)

    def options(
        run: RunDir,
        /,
        documents: int = USAGE_DOCUMENTS,
        batch_size: int | None = None,
        mesh: MeshConfig = recorded,
    ):
        """Count how many background documents read each slot of RUN.

        Example: smf usage runs/world --documents 200

        Args:
          documents: documents to read, each a batch of pretraining data
          batch_size: packed rows per document; None: as in pretraining
        """
        return run, documents, batch_size, None if mesh == recorded else mesh

    run, documents, batch_size, mesh = parse(options, "usage", arguments)
    require(documents > 0, f"--documents {documents} must be above 0")
    if batch_size is not None:
        require(batch_size > 0, f"--batch-size {batch_size} must be above 0")
    from smf_jax.verbs.usage import collect_usage

    collect_usage(run, documents, console, batch_size, mesh)


def finetune(arguments: Sequence[str], console: Console) -> None:
    """Teaches new facts as a configuration file says."""
    config, resume = load_config(FinetuneConfig, "finetune", arguments)
    from smf_jax.cli.scores import print_scores
    from smf_jax.verbs.finetune import finetune

    taught = finetune(config, console, resume)
    points = [taught.points[0], taught.points[-1]]
    print_scores(taught.questions, taught.asking, points, console)
    console.print(f"run: {taught.run_dir}")


def evaluate(arguments: Sequence[str], console: Console) -> None:
    """Scores a run on new facts and on those it should keep."""
    recorded = recorded_mesh(arguments)

    def options(
        run: RunDir,
        /,
        facts: str | None = None,
        patterns: str | None = None,
        fields: str | None = None,
        step: int | None = None,
        ask: Flat[AskConfig] = BY_DEFAULT,
        mesh: MeshConfig = recorded,
    ):
        """Score RUN on new facts, in words they are taught by and others, and on known.

        Example: smf evaluate runs/smf_world

        Args:
          facts: JSONL(.gz) of new facts, or tfds:NAME; None: those of the run
          patterns: JSONL(.gz) of patterns by relation, for wordings of `facts`
          fields: of tfds:NAME, such as question=FIELD,answers=FIELD
          step: checkpoint to evaluate; None: the last step
        """
        require(
            patterns is None or facts is not None,
            "--patterns needs --facts, whose wordings it fills",
        )
        changed = None if mesh == recorded else mesh
        return run, facts, patterns, console, ask, step, changed, fields

    settings = parse(options, "evaluate", arguments)
    from smf_jax.cli.scores import print_scores
    from smf_jax.verbs.evaluate import evaluate

    evaluated = evaluate(*settings)
    about = (evaluated.questions, evaluated.asking, [evaluated.evaluation])
    print_scores(*about, console)
    if not evaluated.is_taught:
        console.print("not taught yet: new facts are asked as they would be taught")
    console.print(f"answers: {evaluated.write()}")


def ask(arguments: Sequence[str], console: Console) -> int:
    """Prints a run's answers to a question."""
    recorded = recorded_mesh(arguments)
    metavar = tyro.conf.arg(metavar="QUESTION")

    def options(
        run: RunDir,
        question: Annotated[tyro.conf.Positional[str], metavar],
        /,
        samples: int = 1,
        ask: Flat[AskConfig] = BY_DEFAULT,
        mesh: MeshConfig = recorded,
    ):
        """Answer a question with the model of RUN: greedily, or by sampling.

        Example: smf ask runs/demo/smf "what is the profession of ... ?"

        Args:
          question: the question; with a word tokenizer, of known words only
          samples: answers to print, one a line; needs a temperature
        """
        require(question.strip() != "", "the question is blank")
        require(samples > 0, f"--samples {samples} must be above 0")
        require(
            samples == 1 or ask.temperature > 0,
            f"--samples {samples} would be the same answer: give a --temperature",
        )
        changed = None if mesh == recorded else mesh
        return run, question.strip(), console, ask, samples, changed

    settings = parse(options, "ask", arguments)
    from smf_jax.verbs.evaluate import ask

    answers = ask(*settings)
    for answer in answers:
        print(answer)
    if all(answers):
        return 0
    doubled = "  " in settings[1]
    advice = "; the question has doubled spaces" if doubled else ""
    print(
        "smf ask: an empty answer: the model ended it, or its line, before the first "
        f"word{advice}",
        file=sys.stderr,
    )
    return 1


def verify(arguments: Sequence[str], console: Console) -> int:
    """Checks the integrity of a run."""

    def options(run: RunDir, /):
        """Check all files of RUN, and the numbers in its checkpoints.

        Prints damage by file, and the hash of all parameters: `params sha256 HEX`.

        The exit code is 1 if there is damage.

        Example: smf verify runs/world
        """
        return run

    run = parse(options, "verify", arguments)
    from smf_jax.runs.verify import verify

    return 0 if verify(Path(run), console) else 1


def bench(arguments: Sequence[str], console: Console) -> None:
    """Benchmarks this machine, beside PyTorch where it is installed."""
    from smf_jax.bench import run
    from smf_jax.bench.config import BenchConfig

    run.run(parse(BenchConfig, "bench", arguments), console)


def doctor(arguments: Sequence[str], console: Console) -> None:
    """Reports versions, devices and known problems."""

    def options():
        """Report versions, devices and known problems.

        Example: smf doctor
        """

    parse(options, "doctor", arguments)
    from smf_jax import doctor

    for line in doctor.examine():
        console.print(line)


def completion(arguments: Sequence[str], console: Console) -> None:
    """Prints a script that completes this command in a shell."""
    from smf_jax.cli.completion import Shell, write_script

    metavar = tyro.conf.arg(metavar="SHELL")

    def options(shell: Annotated[tyro.conf.Positional[Shell], metavar], /):
        """Print a script that completes verbs, options, choices and file names.

        Example: smf completion bash > ~/.local/share/bash-completion/completions/smf

        For zsh, write it to a file _smf in a directory of $fpath, and for fish to
        ~/.config/fish/completions/smf.fish.

        Args:
          shell: bash, zsh or fish
        """
        return shell

    print(write_script(VERBS, parse(options, "completion", arguments)))


VERBS: dict[str, Callable[[Sequence[str], Console], int | None]] = {
    verb.__name__.replace("_", "-"): verb
    for verb in (
        *(teach, demo, pretrain, usage, finetune, evaluate, ask),
        *(import_hf, retrofit, export_hf, patch, data, plan, bench, verify, doctor),
        completion,
    )
}
