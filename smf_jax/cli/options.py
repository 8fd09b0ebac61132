"""Parses the options of a verb, and lists them."""

import ast
import contextlib
import inspect
import io
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

HELP = {"-h", "--help"}
# The only way to have tyro list its options.
LIST = ["--tyro-write-completion", "bash", "-"]


class _Page(io.StringIO):
    """Collects what is printed, in the colors and characters of standard output."""

    encoding = None

    def __init__(self, stdout: io.TextIOBase):
        super().__init__()
        self.encoding, self.isatty = stdout.encoding, stdout.isatty


def parse(
    options: Callable, verb: str, arguments: Sequence[str], description: str = ""
) -> Any:
    """Returns what `options` returns for the arguments of a verb."""
    if inspect.isfunction(options):
        # tyro prints the line breaks inside an argument's description.
        options.__doc__ = re.sub(r"\n {4,}", " ", inspect.getdoc(options))
    page = _Page(sys.stdout)
    try:
        with contextlib.redirect_stdout(page if HELP & {*arguments} else sys.stdout):
            return tyro.cli(
                options,
                args=list(arguments),
                prog=f"smf {verb}",
                description=description or None,
                config=(tyro.conf.AvoidSubcommands,),
            )
    finally:
        usage, _, rest = page.getvalue().partition("\n")
        if usage:  # tyro's lists all options, in more than 80 columns
            print(" ".join(["usage: smf", verb, "[OPTIONS]", *_positional(options)]))
            print(rest, end="")


def options_of(parse: Callable[[Sequence[str]], Any]) -> list[dict[str, Any]]:
    """Returns the flags, meaning, type and choices of each option of a parser."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as script,
        contextlib.suppress(SystemExit),
    ):
        parse(LIST)
    (listed,) = re.findall("^COMPLETION_SPEC = (.*)$", script.getvalue(), re.MULTILINE)
    options = ast.literal_eval(listed)["options"]
    return [each | {"meaning": _meaning(each["description"])} for each in options]


def _meaning(description: str) -> str:
    """Returns a description without the form of the value and the default."""
    text = description.rpartition(" \N{BULLET} ")[2]
    return re.sub(r" ?\((required|default: .*)\)$", "", text)


def _positional(options: Callable) -> list[str]:
    parameters = inspect.signature(options).parameters.values()
    return [
        each.name.upper() for each in parameters if each.kind is each.POSITIONAL_ONLY
    ]
