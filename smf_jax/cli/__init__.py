"""The `smf` command; a user's mistake ends with one line and exit code 2."""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

# Not what takes long to import: Ctrl-C must be handled before.
from smf_jax.cli import interrupts
from smf_jax.exits import AT_ONCE, SAVED, Interrupted

HELP = """usage: smf VERB [OPTIONS] [--debug]

  teach      teach a pretrained model facts    smf teach MODEL --facts FILE
  demo       pretrain, teach, compare methods  smf demo --out runs/demo
  pretrain   train a model from scratch        smf pretrain configs/world.py
  usage      count background reads of slots   smf usage runs/world
  finetune   teach new facts to a model        smf finetune configs/smf_world.py
  evaluate   score new and known facts         smf evaluate runs/smf_world
  ask        answer one question               smf ask RUN "who ... ?"
  import-hf  import a Hugging Face model       smf import-hf OWNER/NAME RUN
  retrofit   add memory layers to a model      smf retrofit configs/NAME.py
  export-hf  export a model to Hugging Face    smf export-hf RUN DIRECTORY
  patch      show, apply or revert a patch     smf patch revert RUN OUT
  data       write a data set for tfds         smf data to-tfds FILE DIR
  plan       check if a run fits TPUs or GPUs  smf plan CONFIG --topology v5e-8
  bench      benchmark this machine            smf bench --out runs/bench
  verify     check the integrity of a run      smf verify runs/world
  doctor     check versions and devices        smf doctor
  completion complete commands in a shell      smf completion bash

`smf VERB --help` lists the options of a verb; smf --version prints the version.
With any verb, --debug prints the traceback of an error, and --coordinator
HOST:PORT --num-processes N --process-id I make this process one of N.

Exit codes: 0 success; 1 failure (damaged, diverged, not healed, does not fit);
2 wrong input; 69 another process is lost or stuck; 75 stopped, nothing lost;
130 interrupted: the last checkpoint stands.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a verb and returns the exit code."""
    from smf_jax.cli.commands import VERBS
    from smf_jax.cli.flags import take_flags
    from smf_jax.config import ConfigError

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        cluster_flags, arguments = take_flags(arguments)
    except ConfigError as error:
        print(f"smf: {error}", file=sys.stderr)
        return 2
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP)
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"smf_jax {version('smf-jax')}")
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        names = ", ".join(VERBS)
        print(f"smf: unknown verb {verb!r}: use one of {names}", file=sys.stderr)
        return 2
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        return _run_verb(verb, rest, cluster_flags, debug)
    except (KeyboardInterrupt, Interrupted) as error:  # during imports
        return _report_interrupt(verb, error)
    finally:
        signal.signal(signal.SIGTERM, previous)


def run() -> NoReturn:
    """Runs `smf` as a program."""
    interrupts.install()
    code = None
    try:
        code = main()
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:  # smf --help | head
        _discard_output()
        code = 0
    finally:
        if code != AT_ONCE:  # else it has been reported
            interrupts.end_if_raised()
    if code == AT_ONCE:  # without waiting for JAX's threads
        os._exit(code)
    sys.exit(code)


def _terminate(signal_number, frame) -> None:
    # Training replaces this handler: see train/preemption.py.
    raise Interrupted("terminated, with nothing to save")


def _report_interrupt(verb: str, error: BaseException) -> int:
    if isinstance(error, Interrupted):
        line = f"{error}; run the same command again to continue"
        print(f"smf {verb}: {line}", file=sys.stderr)
        return SAVED
    print(f"smf {verb}: interrupted", file=sys.stderr)
    return AT_ONCE


def _run_verb(
    verb: str, arguments: Sequence[str], cluster_flags: Mapping[str, str], debug: bool
) -> int:
    import logging

    from smf_jax import multihost
    from smf_jax.checkpoint import SaveError
    from smf_jax.cli.commands import VERBS
    from smf_jax.config import ConfigError
    from smf_jax.hf import ExportError
    from smf_jax.train.guard import TrainingError

    if not debug:  # orbax logs the traceback of every error that it raises
        logging.getLogger("absl").setLevel(logging.CRITICAL)
    code = 1
    interrupts.begin()
    try:
        if not {"-h", "--help"} & {*arguments}:
            multihost.initialize(cluster_flags)
            _require_same_command(verb, arguments)
        code = VERBS[verb](arguments, _make_console()) or 0
    except BrokenPipeError:
        _discard_output()
        code = 0
    except (ConfigError, ExportError, SaveError, TrainingError, OSError) as error:
        interrupts.end_if_raised()
        if debug:
            raise
        print(f"smf {verb}: {error}", file=sys.stderr)
        code = 2 if isinstance(error, ConfigError) else 1
    except (KeyboardInterrupt, Interrupted) as error:
        code = _report_interrupt(verb, error)
    finally:
        multihost.shut_down(code)
    return code


def _require_same_command(verb: str, arguments: Sequence[str]) -> None:
    import jax

    from smf_jax import multihost
    from smf_jax.runs.record import code_version

    if jax.process_count() > 1:
        command = {"verb": verb, "arguments": list(arguments), **code_version()}
        multihost.require_same("command or code", command)


def _make_console() -> Any:
    from rich.console import Console

    from smf_jax import multihost

    console = Console(
        soft_wrap=True,
        markup=False,  # a path or an answer may look like it
        highlight=False,
        quiet=not multihost.is_main(),
        # Notebooks and CI force rich to draw progress bars into pipes.
        force_terminal=sys.stdout.isatty(),
    )

    def discard() -> None:
        console.quiet = True
        _discard_output()

    console.on_broken_pipe = discard
    return console


def _discard_output() -> None:
    """Discards further output: `smf VERB | head` must not end a run."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
