"""Parses command lines, and configuration files with overrides."""

import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from smf_jax.config import ConfigError, MeshConfig, require

RunDir = Annotated[
    tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN", help="run directory")
]
EXAMPLES = {"pretrain": "world", "retrofit": "retrofit_world", "finetune": "smf_world"}
# Errors that a mistake in the Python of a configuration file may raise.
FILE_ERRORS = (
    *(SyntaxError, ImportError, NameError, TypeError, AttributeError),
    *(ArithmeticError, LookupError, ValueError, OSError),
)


def parse(options: Callable, verb: str, arguments: Sequence[str]) -> Any:
    """Returns what `options` returns for the arguments of a verb."""
    return tyro.cli(options, args=list(arguments), prog=f"smf {verb}")


def load_config(kind: type, verb: str, arguments: Sequence[str]) -> tuple[Any, Any]:
    """Returns the configuration of a Python file with its overrides, and the `Resume`.

    Raises:
      ConfigError: The file is missing or defines no `config()` of this kind.
    """
    if arguments and not arguments[0].startswith("-"):
        default = read_config(Path(arguments[0]), (kind,), verb)
        return _parse_config(kind, verb, default, arguments[1:])
    if {"-h", "--help"} & {*arguments}:
        _parse_config(kind, verb, None, ["--help"])
    raise ConfigError(f"name a configuration file: smf {verb} configs/NAME.py")


def read_config(path: Path, kinds: Sequence[type], verb: str) -> Any:
    """Returns the configuration of a Python file.

    Raises:
      ConfigError: The file is missing, does not run, or defines no `config()` of one of
        these kinds.
    """
    require(path.is_file(), f"{path}: no such configuration file")
    try:
        namespace = runpy.run_path(str(path))
        default = namespace["config"]() if "config" in namespace else None
    except ConfigError:
        raise
    except FILE_ERRORS as error:
        raise ConfigError(f"{path} does not run: {error}") from error
    require("config" in namespace, f"{path} defines no config()")
    require(
        isinstance(default, tuple(kinds)),
        f"{path} is a {type(default).__name__}, but smf {verb} takes a "
        f"{' or '.join(kind.__name__ for kind in kinds)}",
    )
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
    return Annotated[kind, tyro.conf.arg(name="")]


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

    config, resume, allow_fallback = tyro.cli(
        options,
        args=list(arguments),
        prog=f"smf {verb} CONFIG",
        description=f"{kind.__doc__}\n\n"
        f"Run `smf {verb} configs/NAME.py --help` for all settings.\n\n"
        f"Example: smf {verb} configs/{EXAMPLES[verb]}.py",
        config=(tyro.conf.AvoidSubcommands,),
    )
    from smf_jax.runs.open import Resume

    return config, Resume(resume, allow_fallback)
