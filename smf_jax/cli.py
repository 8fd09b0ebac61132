"""The `smf` command: one verb a function; a user's mistake ends with code 2."""

import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from smf_jax.config import (
    USAGE_DOCUMENTS,
    ConfigError,
    FinetuneConfig,
    PretrainConfig,
    require,
)

USAGE = """usage: smf VERB [OPTIONS] [--debug]

  demo       pretrain a small model, teach it new facts by every method, compare
  pretrain   train a model from scratch                smf pretrain configs/world.py
  usage      count what a background reads             smf usage runs/world
  finetune   teach a run new facts                     smf finetune configs/smf_world.py
  evaluate   ask a run all its questions               smf evaluate runs/smf_world
  ask        ask a run one question                    smf ask RUN "who ... ?"
  doctor     check versions and devices                smf doctor

`smf VERB --help` tells the options of a verb. --debug shows where an error arose.
"""


def demo(arguments: Sequence[str], console: Console) -> None:
    """Runs the main job and writes its report."""
    from smf_jax import demo, report

    config = tyro.cli(demo.DemoConfig, args=list(arguments), prog="smf demo")
    demo.run(config, console)
    path = report.write(Path(config.out))
    console.print(f"report: {path}")


def pretrain(arguments: Sequence[str], console: Console) -> None:
    """Trains the model of a configuration file."""
    config = load_config(PretrainConfig, "pretrain", arguments)
    from smf_jax.train.pretrain import pretrain

    console.print(f"run: {pretrain(config, console)}")


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
    config = load_config(FinetuneConfig, "finetune", arguments)
    from smf_jax.train.finetune import finetune

    taught = finetune(config, console)
    _print_point(taught.points[-1], console)
    console.print(f"run: {taught.run_dir}")


def evaluate(arguments: Sequence[str], console: Console) -> None:
    """Asks a run what it was taught and what it should have kept."""

    def options(run: tyro.conf.Positional[str], /, facts: str | None = None):
        """Ask RUN its new facts, taught or not, and those of its pretraining.

        Example: smf evaluate runs/smf_world

        Args:
          run: The run directory.
          facts: JSONL(.gz) of facts to ask as new ones; by default the run's own.
        """
        return run, facts

    run, facts = tyro.cli(options, args=list(arguments), prog="smf evaluate")
    from smf_jax.train.questions import evaluate

    _print_point(evaluate(run, facts, console), console)


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


VERBS: dict[str, Callable[[Sequence[str], Console], None]] = {
    verb.__name__: verb
    for verb in (demo, pretrain, usage, finetune, evaluate, ask, doctor)
}


def load_config(kind: type, verb: str, arguments: Sequence[str]) -> Any:
    """Returns the configuration of a Python file, with overrides from the command line.

    Raises:
      ConfigError: The file is missing or defines no `config()` of this kind.
    """
    if not arguments or arguments[0].startswith("-"):
        if "--help" in arguments:
            _parse(kind, verb, tyro.MISSING, ["--help"])
        raise ConfigError(f"name a configuration file: smf {verb} configs/NAME.py")
    path = Path(arguments[0])
    require(path.is_file(), f"{path}: no such configuration file")
    try:
        namespace = runpy.run_path(str(path))
        default = namespace["config"]() if "config" in namespace else None
    except (SyntaxError, ImportError, NameError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} does not run: {error}") from error
    require("config" in namespace, f"{path} defines no config()")
    require(
        isinstance(default, kind),
        f"{path} is a {type(default).__name__}, but `smf {verb}` takes a "
        f"{kind.__name__}",
    )
    return _parse(kind, verb, default, arguments[1:])


def _parse(kind: type, verb: str, default: Any, arguments: Sequence[str]) -> Any:
    return tyro.cli(
        kind,
        default=default,
        args=list(arguments),
        prog=f"smf {verb} CONFIG",
        description=f"{kind.__doc__}\n\nExample: smf {verb} configs/NAME.py",
        config=(tyro.conf.AvoidSubcommands,),
    )


def _print_point(point: Any, console: Console) -> None:
    for group, scores in point.scores.items():
        console.print(
            f"{group:9} exact match {scores.exact_match:.3f}  F1 {scores.f1:.3f}",
            highlight=False,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a verb and returns the exit code: 2 for a user's mistake."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        print(f"smf: no verb {verb!r}; there are {', '.join(VERBS)}", file=sys.stderr)
        return 2
    try:
        VERBS[verb](rest, Console(soft_wrap=True))
    except ConfigError as error:
        if debug:
            raise
        print(f"smf {verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"smf {verb}: interrupted", file=sys.stderr)
        return 130
    return 0
