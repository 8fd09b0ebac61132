"""The verbs of the `smf` command, one a function."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console

from smf_jax.cli.files import load_config
from smf_jax.config import (
    USAGE_DOCUMENTS,
    DataConfig,
    FinetuneConfig,
    PretrainConfig,
    RetrofitConfig,
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
    from smf_jax.train.pretrain import pretrain

    console.print(f"run: {pretrain(config, console, resume)}")


def import_hf(arguments: Sequence[str], console: Console) -> None:
    """Makes a run of a Hugging Face model."""

    def options(
        source: tyro.conf.Positional[str],
        run: tyro.conf.Positional[str],
        /,
        revision: str | None = None,
        ignore: tuple[str, ...] = (),
        facts: str | None = None,
        background: str | None = None,
        seq_len: int = 64,
    ):
        """Make a run of a Hugging Face model: Llama, Mistral, Qwen2, Qwen3, SmolLM.

        Reads safetensors only. HF_HUB_OFFLINE=1 takes what was downloaded before.

        Example: smf import-hf HuggingFaceTB/SmolLM2-135M runs/smollm

        Args:
          source: A directory, or a repository OWNER/NAME.
          run: The run directory that is written.
          revision: Branch, tag or commit of the repository.
          ignore: Keys of its config.json that are set aside, on your word.
          facts: JSONL(.gz) of facts that it is asked and taught as it is.
          background: JSONL(.gz) of texts beside them.
          seq_len: Tokens of a row of them.
        """
        return source, run, revision, ignore, facts, background, seq_len

    source, run, revision, ignore, facts, background, seq_len = tyro.cli(
        options, args=list(arguments), prog="smf import-hf"
    )
    data = None
    if facts is not None or background is not None:
        data = DataConfig(facts=facts, background=background, seq_len=seq_len)
    from smf_jax.train.exchange import import_run

    path = import_run(source, run, revision, ignore, data, console)
    console.print(f"run: {path}")


def export_hf(arguments: Sequence[str], console: Console) -> None:
    """Writes a run's model for Hugging Face."""

    def options(
        run: tyro.conf.Positional[str],
        directory: tyro.conf.Positional[str],
        /,
        patch: str | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ):
        """Write the model of RUN as safetensors, with its config and tokenizer.

        What was written is read again, and must give the same logits. With memory
        layers, smf_jax.torch_baseline loads it; without, transformers does. A LoRA run
        is merged, and its adapter for PEFT lies in DIRECTORY/adapter.

        Example: smf export-hf runs/smf_world exported

        Args:
          run: The run directory.
          directory: Where the model is written; must not exist, or be empty.
          patch: A patch file that is applied to the memory first.
          dtype: Of the parameters as they are written.
        """
        return run, directory, patch, dtype

    run, directory, patch, dtype = tyro.cli(
        options, args=list(arguments), prog="smf export-hf"
    )
    from smf_jax.train.exchange import export_run

    export_run(run, directory, patch, dtype, console)


def retrofit(arguments: Sequence[str], console: Console) -> int:
    """Gives a run's model a memory and heals it."""
    config, resume = load_config(RetrofitConfig, "retrofit", arguments)
    from smf_jax import report
    from smf_jax.train.retrofit import retrofit

    done = retrofit(config, console, resume)
    console.print(f"figure: {report.draw_retrofit(done.run_dir)}")
    if not done.healed:
        print(f"smf retrofit: {done.verdict}: train another longer", file=sys.stderr)
        return 1
    console.print(done.verdict, highlight=False)
    return 0


def usage(arguments: Sequence[str], console: Console) -> None:
    """Collects the document frequency of a run's slots."""

    def options(run: tyro.conf.Positional[str], /, documents: int = USAGE_DOCUMENTS):
        """Count in how many background documents each slot of RUN is read.

        Example: smf usage runs/world --documents 200

        Args:
          run: The run directory.
          documents: Batches of pretraining text to read.
        """
        return run, documents

    run, documents = tyro.cli(options, args=list(arguments), prog="smf usage")
    require(documents > 0, f"--documents {documents} must be above 0")
    from smf_jax.train.pretrain import collect_usage

    collect_usage(run, documents, console)


def finetune(arguments: Sequence[str], console: Console) -> None:
    """Teaches new facts as a configuration file says."""
    config, resume = load_config(FinetuneConfig, "finetune", arguments)
    from smf_jax.train.finetune import finetune

    taught = finetune(config, console, resume)
    _print_point(taught.points[-1], console)
    console.print(f"run: {taught.run_dir}")


def evaluate(arguments: Sequence[str], console: Console) -> None:
    """Asks a run what it was taught and what it should have kept."""

    def options(
        run: tyro.conf.Positional[str],
        /,
        facts: str | None = None,
        step: int | None = None,
    ):
        """Ask RUN its new facts, taught or not, and those of its pretraining.

        Example: smf evaluate runs/smf_world

        Args:
          run: The run directory.
          facts: JSONL(.gz) of facts to ask as new ones; by default the run's own.
          step: Which kept checkpoint to ask; by default that of the last step.
        """
        return run, facts, step

    run, facts, step = tyro.cli(options, args=list(arguments), prog="smf evaluate")
    from smf_jax.train.questions import evaluate

    _print_point(evaluate(run, facts, console, step), console)


def ask(arguments: Sequence[str], console: Console) -> None:
    """Prints a run's greedy answer to a question."""

    def options(
        run: tyro.conf.Positional[str],
        question: tyro.conf.Positional[str],
        /,
        max_new_tokens: int = 16,
    ):
        """Ask the model of RUN a question.

        Example: smf ask runs/demo/smf "what is the profession of ... ?"

        Args:
          run: The run directory.
          question: The question, in the words that the model knows.
          max_new_tokens: Where an answer ends that does not end itself.
        """
        return run, question, max_new_tokens

    run, question, tokens = tyro.cli(options, args=list(arguments), prog="smf ask")
    require(question.strip() != "", "the question is blank")
    require(tokens > 0, f"--max-new-tokens {tokens} must be above 0")
    from smf_jax.train.questions import ask_one

    console.print(ask_one(run, question, tokens), markup=False, highlight=False)


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
    from smf_jax.train.verify import verify

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


VERBS: dict[str, Callable[[Sequence[str], Console], int | None]] = {
    verb.__name__.replace("_", "-"): verb
    for verb in (
        *(demo, pretrain, import_hf, retrofit, usage, finetune, evaluate, ask),
        export_hf,
        *(verify, selftest, doctor),
    )
}
