"""Writes scripts that complete the `smf` command in a shell."""

import argparse
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import shtab
from rich.console import Console

from smf_jax.cli.flags import FLAGS
from smf_jax.cli.options import options_of, parse
from smf_jax.cli.plan import KINDS

Shell = Literal["bash", "zsh", "fish"]


def write_script(verbs: Mapping[str, Callable], shell: str) -> str:
    """Returns a script that completes verbs, their options, choices and files."""
    parser = argparse.ArgumentParser(prog="smf")
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers()
    for verb, run in verbs.items():
        command = commands.add_parser(
            verb, help=run.__doc__, add_help=False, conflict_handler="resolve"
        )
        for option in options_of(functools.partial(run, console=Console())):
            _add(command, option)
        command.add_argument("--debug", action="store_true", help="print tracebacks")
        for flag in FLAGS:
            command.add_argument(flag, help="of a process of several")
        if verb == "completion":
            command.add_argument("shell", choices=get_args(Shell))
        else:
            command.add_argument("files", nargs="*").complete = shtab.FILE
    for kind in KINDS:  # its file says which
        for option in options_of(functools.partial(parse, kind, "plan")):
            _add(commands.choices["plan"], option)
    return shtab.complete(parser, shell)


def _add(command: argparse.ArgumentParser, option: Mapping[str, Any]) -> None:
    flags, meaning = option["flags"], option["meaning"]
    if option["type"] in ("flag", "boolean"):
        command.add_argument(*flags, action="store_true", help=meaning)
        return
    values = {"choices": option.get("choices"), "nargs": option["nargs"]}
    action = command.add_argument(*flags, help=meaning, **values)
    if option["type"] == "path":
        action.complete = shtab.FILE
