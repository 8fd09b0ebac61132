"""The verbs of the `smf` command; models.py and plan.py hold some of them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from smf_jax.cli.files import RunDir, load_config, recorded_mesh
from smf_jax.cli.models import export_hf, import_hf, retrofit
from smf_jax.cli.options import parse
from smf_jax.cli.plan import plan
from smf_jax.config import (
    USAGE_DOCUMENTS,
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
    from smf_jax.verbs.finetune import finetune

    taught = finetune(config, console, resume)
    _print_scores(taught.questions, [taught.points[0], taught.points[-1]], console)
    console.print(f"run: {taught.run_dir}")


def evaluate(arguments: Sequence[str], console: Console) -> None:
    """Scores a run on new facts and on those it should keep."""
    recorded = recorded_mesh(arguments)

    def options(
        run: RunDir,
        /,
        facts: str | None = None,
        step: int | None = None,
        mesh: MeshConfig = recorded,
    ):
        """Score RUN on new facts, in two wordings, and on known facts.

        Example: smf evaluate runs/smf_world

        Args:
          facts: JSONL(.gz) of new facts; None: those of the run
          step: checkpoint to evaluate; None: the last step
        """
        return run, facts, step, None if mesh == recorded else mesh

    run, facts, step, mesh = parse(options, "evaluate", arguments)
    from smf_jax.verbs.evaluate import evaluate

    evaluation, questions = evaluate(run, facts, console, step, mesh)
    _print_scores(questions, [evaluation], console)


def ask(arguments: Sequence[str], console: Console) -> None:
    """Prints a run's greedy answer to a question."""
    recorded = recorded_mesh(arguments)
    metavar = tyro.conf.arg(metavar="QUESTION")

    def options(
        run: RunDir,
        question: Annotated[tyro.conf.Positional[str], metavar],
        /,
        max_new_tokens: int = 16,
        mesh: MeshConfig = recorded,
    ):
        """Answer a question with the model of RUN, by greedy decoding.

        Example: smf ask runs/demo/smf "what is the profession of ... ?"

        Args:
          question: the question; with a word tokenizer, of known words only
          max_new_tokens: maximum length of the answer
        """
        return run, question, max_new_tokens, None if mesh == recorded else mesh

    run, question, max_new_tokens, mesh = parse(options, "ask", arguments)
    require(question.strip() != "", "the question is blank")
    require(max_new_tokens > 0, f"--max-new-tokens {max_new_tokens} must be above 0")
    from smf_jax.verbs.evaluate import answer_one

    answer = answer_one(run, question, max_new_tokens, mesh)
    console.print(answer, markup=False, highlight=False)


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


def _print_scores(questions: Any, points: Sequence[Any], console: Console) -> None:
    """Prints how the scores of each group of questions changed over evaluations."""

    def print_line(group: str, *cells: str) -> None:
        console.print(f"{group:9} {'  '.join(cells)}", highlight=False)

    for group, facts in questions.groups().items():
        exact = (f"{point.scores[group].exact_match:.3f}" for point in points)
        f1 = (f"{point.scores[group].f1:.3f}" for point in points)
        scores = f"exact match {' -> '.join(exact)}", f"F1 {' -> '.join(f1)}"
        print_line(group, f"n={len(facts):<6}", *scores)
    losses = [point.text_loss for point in points]
    if None not in losses:
        print_line("texts", f"loss {' -> '.join(f'{loss:.4f}' for loss in losses)}")


VERBS: dict[str, Callable[[Sequence[str], Console], int | None]] = {
    verb.__name__.replace("_", "-"): verb
    for verb in (
        *(demo, pretrain, usage, finetune, evaluate, ask),
        *(import_hf, retrofit, export_hf, plan, bench, verify, doctor, completion),
    )
}
