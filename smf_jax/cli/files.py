"""Reads configuration files, with overrides, and what a run has recorded."""

import functools
import runpy
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Annotated, Any, Literal, TypeVar

import tyro

from smf_jax.cli.options import HELP, LIST, options_of, parse
from smf_jax.config import ConfigError, MeshConfig, require

RunDir = Annotated[
    tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN", help="run directory")
]
T = TypeVar("T")
Flat = Annotated[T, tyro.conf.arg(name="")]  # options without the section's name
EXAMPLES = {"pretrain": "world", "retrofit": "retrofit_world", "finetune": "smf_world"}
USED_MOST = {
    "pretrain": "run-dir steps optim.learning-rate data.background data.facts",
    "retrofit": "base run-dir steps optim.learning-rate data.background",
    "finetune": "base run-dir facts steps batch-size optim.learning-rate optim.top-t",
}
# Errors that a mistake in the Python of a configuration file may raise.
FILE_ERRORS = (
    *(SyntaxError, ImportError, NameError, TypeError, AttributeError),
    *(ArithmeticError, LookupError, ValueError, OSError),
)


def load_config(kind: type, verb: str, arguments: Sequence[str]) -> tuple[Any, Any]:
    """Returns the configuration of a Python file with its overrides, and the `Resume`.

    Raises:
      ConfigError: The file is missing or defines no `config()` of this kind.
    """
    if arguments and not arguments[0].startswith("-"):
        default = read_config(Path(arguments[0]), (kind,), verb)
        return _parse_config(kind, verb, default, arguments[1:])
    if HELP & {*arguments}:
        _parse_config(kind, verb, None, ["--help"])
    if arguments[:1] == LIST[:1]:
        _parse_config(kind, verb, tyro.MISSING, LIST)
    raise ConfigError(f"name a configuration file: smf {verb} configs/NAME.py")


def read_config(path: Path, kinds: Sequence[type], verb: str) -> Any:
    """Returns the configuration of a Python file, or that of a run, to use it again.

    Raises:
      ConfigError: The file is missing, does not run, or defines no `config()` of one of
        these kinds.
    """
    if path.is_dir():
        default = _recorded_config(path)
    else:
        require(path.is_file(), f"{path}: no such configuration file, and no run")
        default = _config_of_file(path)
    require(
        isinstance(default, tuple(kinds)),
        f"{path} is a {type(default).__name__}, but smf {verb} takes a "
        f"{' or '.join(kind.__name__ for kind in kinds)}",
    )
    return default


def _recorded_config(run_dir: Path) -> Any:
    from smf_jax.runs.record import lineage_of, read_record

    return lineage_of(read_record(run_dir)).own


def _config_of_file(path: Path) -> Any:
    try:
        namespace = runpy.run_path(str(path))
        default = namespace["config"]() if "config" in namespace else None
    except ConfigError:
        raise
    except FILE_ERRORS as error:
        raise ConfigError(f"{path} does not run: {error}") from error
    require("config" in namespace, f"{path} defines no config()")
    return default


def recorded_mesh(arguments: Sequence[str]) -> MeshConfig:
    """Returns the mesh of the run that the first argument names, if it names one."""
    from smf_jax.runs.files import CONFIG
    from smf_jax.runs.record import lineage_of, read_record

    run_dir = Path(arguments[0]) if arguments else Path()
    if not (run_dir / CONFIG).is_file():
        return MeshConfig()
    return lineage_of(read_record(run_dir)).mesh


def shown(kind: type, default: Any) -> Any:
    """Returns the type of a configuration for tyro: hidden unless a file has set it."""
    if default is None:
        return tyro.conf.Suppress[Any]
    return Flat[kind]


def _parse_config(kind: type, verb: str, default: Any, arguments: Sequence[str]) -> Any:
    def options(
        config: shown(kind, default) = default,
        resume: Literal["auto", "never", "must"] = "auto",
        allow_fallback: bool = False,
    ):
        """Train a model.

        Args:
          config: settings of the file, with overrides
          resume: auto: resume if interrupted; never: fail if it was; must: fail unless
            it was
          allow_fallback: resume from an older checkpoint if the latest is damaged
        """
        return config, resume, allow_fallback

    config, resume, allow_fallback = parse(
        options,
        f"{verb} CONFIG",
        arguments,
        _describe(kind, verb, default) if HELP & {*arguments} else "",
    )
    from smf_jax.runs.open import Resume

    return config, Resume(resume, allow_fallback)


def _describe(kind: type, verb: str, default: Any) -> str:
    """Returns what the help of a verb says above all options."""
    listed = options_of(functools.partial(parse, kind, verb))
    meanings = {flag: each["meaning"] for each in listed for flag in each["flags"]}
    flags = [f"--{name}" for name in USED_MOST[verb].split()]
    width = max(map(len, flags))
    indent = " " * (width + 4)
    lines = [
        fill(f"  {flag:{width}}  {meanings[flag]}", 80, subsequent_indent=indent)
        for flag in flags
    ]
    paragraphs = [kind.__doc__, "\n".join(["Used most:", *lines])]
    if default is None:
        paragraphs += [f"Run `smf {verb} configs/NAME.py --help` for all settings."]
    paragraphs += [f"Example: smf {verb} configs/{EXAMPLES[verb]}.py"]
    return "\n\n".join(paragraphs)
