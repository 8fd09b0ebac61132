"""The verbs of the `smf` command, one a function."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from smf_jax.cli.files import load_config, mesh_of
from smf_jax.cli.models import export_hf, import_hf, retrofit
from smf_jax.cli.plan import plan
from smf_jax.config import (
    USAGE_DOCUMENTS,
    FinetuneConfig,
    MeshConfig,
    PretrainConfig,
    require,
)


def demo(arguments: Sequence[str], console: Console) -> None:
    """Runs the main job and writes its report."""
    from smf_jax import demo, report

    config = tyro.cli(demo.DemoConfig, args=list(arguments), prog="smf demo")
    demo.run(config, console)
    path = report.write(Path(config.out))
    console.print(f"report: {path}")


def pretrain(arguments: Sequence[str], console: Console) -> None:
    """Trains the model of a configuration file."""
    config, resume = load_config(PretrainConfig, "pretrain", arguments)
    from smf_jax.verbs.pretrain import pretrain

    console.print(f"run: {pretrain(config, console, resume)}")


def usage(arguments: Sequence[str], console: Console) -> None:
    """Collects the document frequency of a run's slots."""
    own = mesh_of(arguments)

    def options(
        run: tyro.conf.Positional[str],
        /,
        documents: int = USAGE_DOCUMENTS,
        batch_size: int | None = None,
        mesh: MeshConfig = own,
    ):
        """Count in how many background documents each slot of RUN is read.

        Example: smf usage runs/world --documents 200

        Args:
          run: The run directory.
          documents: Batches of pretraining text to read.
          batch_size: Rows of a document; by default as many as in pretraining.
        """
        return run, documents, batch_size, None if mesh == own else mesh

    run, documents, size, mesh = tyro.cli(
        options, args=list(arguments), prog="smf usage"
    )
    require(documents > 0, f"--documents {documents} must be above 0")
    require(size is None or size > 0, f"--batch-size {size} must be above 0")
    from smf_jax.verbs.usage import collect_usage

    collect_usage(run, documents, console, size, mesh)


def finetune(arguments: Sequence[str], console: Console) -> None:
    """Teaches new facts as a configuration file says."""
    config, resume = load_config(FinetuneConfig, "finetune", arguments)
    from smf_jax.verbs.finetune import finetune

    taught = finetune(config, console, resume)
    before, after = taught.points[0].scores, taught.points[-1].scores
    for group in after:
        change = (before[group].exact_match, after[group].exact_match)
        console.print(
            f"{group:9} exact match {change[0]:.3f} -> {change[1]:.3f}", highlight=False
        )
    losses = [taught.points[place].text_loss for place in (0, -1)]
    if None not in losses:
        line = f"texts     loss {losses[0]:.4f} -> {losses[1]:.4f}"
        console.print(line, highlight=False)
    console.print(f"run: {taught.run_dir}")


def evaluate(arguments: Sequence[str], console: Console) -> None:
    """Asks a run what it was taught and what it should have kept."""
    own = mesh_of(arguments)

    def options(
        run: tyro.conf.Positional[str],
        /,
        facts: str | None = None,
        step: int | None = None,
        mesh: MeshConfig = own,
    ):
        """Ask RUN its new facts, taught or not, and those of its pretraining.

        Example: smf evaluate runs/smf_world

        Args:
          run: The run directory.
          facts: JSONL(.gz) of facts to ask as new ones; by default the run's own.
          step: Which kept checkpoint to ask; by default that of the last step.
        """
        return run, facts, step, None if mesh == own else mesh

    run, facts, step, mesh = tyro.cli(
        options, args=list(arguments), prog="smf evaluate"
    )
    from smf_jax.verbs.evaluate import evaluate

    _print_point(evaluate(run, facts, console, step, mesh), console)


def ask(arguments: Sequence[str], console: Console) -> None:
    """Prints a run's greedy answer to a question."""
    own = mesh_of(arguments)

    def options(
        run: tyro.conf.Positional[str],
        question: tyro.conf.Positional[str],
        /,
        max_new_tokens: int = 16,
        mesh: MeshConfig = own,
    ):
        """Ask the model of RUN a question.

        Example: smf ask runs/demo/smf "what is the profession of ... ?"

        Args:
          run: The run directory.
          question: The question, in the words that the model knows.
          max_new_tokens: Where an answer ends that does not end itself.
        """
        return run, question, max_new_tokens, None if mesh == own else mesh

    run, question, tokens, mesh = tyro.cli(
        options, args=list(arguments), prog="smf ask"
    )
    require(question.strip() != "", "the question is blank")
    require(tokens > 0, f"--max-new-tokens {tokens} must be above 0")
    from smf_jax.verbs.evaluate import answer_one

    answer = answer_one(run, question, tokens, mesh)
    console.print(answer, markup=False, highlight=False)


def verify(arguments: Sequence[str], console: Console) -> int:
    """Checks every file and every number of a run."""

    def options(run: tyro.conf.Positional[str], /):
        """Check every file of RUN's checkpoints, and the numbers they hold.

        Prints what is wrong, file by file, and `params sha256 HEX`, which names the
        content of all parameters, however they are placed. Exit code 1: damaged.

        Example: smf verify runs/world

        Args:
          run: The run directory.
        """
        return run

    run = tyro.cli(options, args=list(arguments), prog="smf verify")
    from smf_jax.runs.verify import verify

    return 0 if verify(Path(run), console) else 1


def selftest(arguments: Sequence[str], console: Console) -> int:
    """Kills a small run again and again, and compares bits."""

    def options(kill: bool = False, rounds: int = 6, seed: int = 0):
        """Kill a small training run on this machine, resume it, and compare bits.

        Example: smf selftest --kill

        Args:
          kill: Do so: at random steps, and while checkpoints are being written.
          rounds: How often, half of them of each kind.
          seed: Of the moments.
        """
        return kill, rounds, seed

    kill, rounds, seed = tyro.cli(options, args=list(arguments), prog="smf selftest")
    require(kill, "say what to test: smf selftest --kill")
    require(rounds > 0, f"--rounds {rounds} must be above 0")
    from smf_jax import selftest

    return 0 if selftest.kill(rounds, seed, console) else 1


def bench(arguments: Sequence[str], console: Console) -> None:
    """Times this machine, beside PyTorch where it is installed."""
    from smf_jax.bench import report, run
    from smf_jax.bench.config import BenchConfig

    config = tyro.cli(
        BenchConfig,
        args=list(arguments),
        prog="smf bench",
        description=f"{BenchConfig.__doc__}\n\nExample: smf bench --out runs/bench",
        config=(tyro.conf.AvoidSubcommands,),
    )
    results = run.run(config, console)
    report.show(config, results, console)
    console.print(f"figure: {report.draw(config, results)}")


def doctor(arguments: Sequence[str], console: Console) -> None:
    """Checks versions and devices, and says what to change."""

    def options():
        """Check versions and devices, and say what to change.

        Example: smf doctor
        """

    tyro.cli(options, args=list(arguments), prog="smf doctor")
    from smf_jax import doctor

    for line in doctor.examine():
        console.print(line, highlight=False)


def _print_point(point: Any, console: Console) -> None:
    for group, scores in point.scores.items():
        console.print(
            f"{group:9} exact match {scores.exact_match:.3f}  F1 {scores.f1:.3f}",
            highlight=False,
        )
    if point.text_loss is not None:
        console.print(f"texts     loss {point.text_loss:.4f}", highlight=False)


VERBS: dict[str, Callable[[Sequence[str], Console], int | None]] = {
    verb.__name__.replace("_", "-"): verb
    for verb in (
        *(demo, pretrain, import_hf, retrofit, usage, finetune, evaluate, ask),
        *(export_hf, plan, bench),
        *(verify, selftest, doctor),
    )
}
