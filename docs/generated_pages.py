"""Writes the reference pages of the command line and of the configuration.

Both are generated from what the program itself uses: the help texts of its verbs, and
the dataclasses with the comments beside their fields.
"""

import ast
import contextlib
import dataclasses
import inspect
import io
import os
import re
import tokenize
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smf_jax import cli, config
from smf_jax.bench.config import BenchConfig
from smf_jax.cli.commands import VERBS
from smf_jax.demo import DemoConfig

REFERENCE = Path(__file__).parent / "reference"
KINDS = (
    *(config.PretrainConfig, config.RetrofitConfig, config.FinetuneConfig),
    config.KeepConfig,
    *(config.DataConfig, config.WorldConfig),
    *(config.OptimConfig, config.LoraConfig, config.PerFactConfig),
    *(config.ModelConfig, config.MemoryConfig, config.CalibratedConfig),
    *(config.RopeConfig, config.RopeScalingConfig),
    *(config.SaveConfig, config.MeshConfig, config.ComputeConfig),
    *(config.AskConfig, config.TeachConfig, DemoConfig, BenchConfig),
)

COMMAND_LINE = """# Command line

Generated from `smf --help` and `smf VERB --help`. A verb that takes a configuration
file accepts every field of it as an option: see [Configuration](configuration.md).

```text
{help}
```
"""
VERB = """
## smf {verb}

```text
{help}
```
"""
CONFIGURATION = """# Configuration

Generated from the dataclasses in `smf_jax/config/`. A configuration file is a Python
file with a function `config()` that returns one of the first three. On the command
line a field is an option: `optim.top_t` is `--optim.top-t`. The fields of the last
four are options of `smf evaluate` and `smf ask`, `smf teach`, `smf demo`, and
`smf bench`.
"""
CLASS = """
## {name}

{summary}

| field | type | default | meaning |
| --- | --- | --- | --- |
"""


def help_text(*arguments: str) -> str:
    """Returns what `smf ARGUMENTS --help` prints on a terminal of 80 columns."""
    os.environ["COLUMNS"] = "80"
    with (
        contextlib.redirect_stdout(io.StringIO()) as output,
        contextlib.suppress(SystemExit),
    ):
        cli.main([*arguments, "--help"])
    return output.getvalue().strip()


def command_line() -> str:
    """Returns the page of the command line."""
    parts = [COMMAND_LINE.format(help=help_text())]
    parts += (VERB.format(verb=verb, help=help_text(verb)) for verb in VERBS)
    return "".join(parts)


def configuration() -> str:
    """Returns the page of the configuration."""
    return CONFIGURATION + "".join(map(_class_table, KINDS))


def _class_table(kind: type) -> str:
    summary = inspect.getdoc(kind).partition("\n\n")[0]
    rows = (f"| {' | '.join(map(_cell, row))} |\n" for row in _fields(kind))
    return CLASS.format(name=kind.__name__, summary=summary) + "".join(rows)


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def _fields(kind: type) -> Iterator[tuple[str, str, str, str]]:
    comments = {}
    for owner in reversed(kind.__mro__[:-1]):
        comments |= _field_comments(owner)
    types = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        type_name = re.sub(
            r"\w+\.(?=\w)", "", inspect.formatannotation(types[field.name])
        )
        default, comment = _default(field), comments[field.name]
        yield f"`{field.name}`", f"`{type_name}`", default, comment


def _field_comments(kind: type) -> dict[str, str]:
    """Returns the comment beside or above each field that a class itself declares."""
    source = inspect.getsource(kind)
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    (tree,) = ast.parse(source).body
    fields, last = {}, tree.lineno
    for node in tree.body:
        if isinstance(node, ast.AnnAssign):
            lines = (line for line in comments if last < line <= node.end_lineno)
            fields[node.target.id] = " ".join(comments[line] for line in sorted(lines))
        last = node.end_lineno
    return fields


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{field.default!r}`"
    if field.default_factory is dataclasses.MISSING:
        return "required"
    return _link(field.default_factory())


def _link(value: Any) -> str:
    """Returns a link to the table of a value's class, with what differs from it."""
    name = type(value).__name__
    changed = [
        f"`{field.name}={getattr(value, field.name)!r}`"
        for field in dataclasses.fields(value)
        if field.default not in (dataclasses.MISSING, getattr(value, field.name))
    ]
    return " ".join([f"[{name}](#{name.lower()})", *changed])


def write_pages(app: Any, settings: Any) -> None:
    """Writes both pages, before Sphinx looks for its sources."""
    (REFERENCE / "cli.md").write_text(command_line())
    (REFERENCE / "configuration.md").write_text(configuration())


def setup(app: Any) -> dict[str, bool]:
    """Registers the extension."""
    app.connect("config-inited", write_pages)
    return {"parallel_read_safe": True}
