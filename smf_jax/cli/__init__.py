"""The `smf` command; a user's mistake ends with one line and code 2."""

import functools
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from rich.console import Console

from smf_jax.cli.flags import take_flags
from smf_jax.cli.verbs import VERBS
from smf_jax.config import ConfigError
from smf_jax.exits import AT_ONCE, SAVED, Interrupted

USAGE = """usage: smf VERB [OPTIONS] [--debug]

  demo       pretrain a small model, teach it new facts by every method, compare
  pretrain   train a model from scratch                smf pretrain configs/world.py
  import-hf  make a run of a Hugging Face model        smf import-hf OWNER/NAME RUN
  retrofit   give a model a memory, and heal it        smf retrofit configs/NAME.py
  usage      count what a background reads             smf usage runs/world
  finetune   teach a run new facts                     smf finetune configs/smf_world.py
  evaluate   ask a run all its questions               smf evaluate runs/smf_world
  ask        ask a run one question                    smf ask RUN "who ... ?"
  export-hf  write a model for Hugging Face            smf export-hf RUN DIRECTORY
  plan       does it fit a TPU or GPU that is not here smf plan CONFIG --topology v5e-8
  bench      time this machine, beside PyTorch         smf bench --out runs/bench
  verify     check every file and number of a run      smf verify runs/world
  selftest   kill a small run, resume, compare bits    smf selftest --kill
  doctor     check versions and devices                smf doctor

`smf VERB --help` tells the options of a verb. --debug shows where an error arose.
--coordinator HOST:PORT --num-processes N --process-id I, with any verb: one of several.
Exit codes: 0 done; 1 a run or a file is not sound, or does not fit; 2 a mistake in what
was asked; 75 told to stop, and saved; 130 stopped at once; 69 a process is missing or
stuck.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a verb and returns the exit code: 2 for a user's mistake."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        said, arguments = take_flags(arguments)
    except ConfigError as error:
        print(f"smf: {error}", file=sys.stderr)
        return 2
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        print(f"smf: no verb {verb!r}; there are {', '.join(VERBS)}", file=sys.stderr)
        return 2
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        return _finish(verb, rest, said, debug)
    except (KeyboardInterrupt, Interrupted) as error:  # while it was being loaded
        return _say_stopped(verb, error)
    finally:
        signal.signal(signal.SIGTERM, before)


def run() -> NoReturn:
    """Runs `smf` as a program."""
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    if code == AT_ONCE:  # what jax does in its threads must not be waited for
        os._exit(code)
    sys.exit(code)


def _stop(signal_number, frame) -> None:
    # While it trains a run is saved instead: see train/interrupt.py.
    raise Interrupted("stopped where there was nothing to save")


def _say_stopped(verb: str, error: BaseException) -> int:
    if isinstance(error, Interrupted):
        print(f"smf {verb}: {error}; the same command goes on", file=sys.stderr)
        return SAVED
    print(f"smf {verb}: interrupted", file=sys.stderr)
    return AT_ONCE


def _finish(
    verb: str, arguments: Sequence[str], said: Mapping[str, str], debug: bool
) -> int:
    from smf_jax import multihost
    from smf_jax.checkpoint import SaveError
    from smf_jax.hf import ExportError
    from smf_jax.train.guard import TrainingError

    if not debug:  # orbax logs each failure with its trace, and then raises it
        logging.getLogger("absl").setLevel(logging.CRITICAL)
    code = 1
    try:
        if not {"-h", "--help"} & {*arguments}:
            multihost.initialize(said)
            _require_same_command(verb, arguments)
        console = Console(soft_wrap=True, quiet=not multihost.is_main())
        console.on_broken_pipe = functools.partial(_fall_silent, console)
        code = VERBS[verb](arguments, console) or 0
    except BrokenPipeError:
        _fall_silent()
        code = 0
    except (ConfigError, ExportError, SaveError, TrainingError, OSError) as error:
        if debug:
            raise
        print(f"smf {verb}: {error}", file=sys.stderr)
        code = 2 if isinstance(error, ConfigError) else 1
    except (KeyboardInterrupt, Interrupted) as error:
        code = _say_stopped(verb, error)
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


def _fall_silent(console: Console | None = None) -> None:
    """Goes on without a reader: `smf VERB | head` is no reason to lose a run."""
    if console is not None:
        console.quiet = True
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
