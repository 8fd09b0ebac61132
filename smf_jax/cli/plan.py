"""The verb that compiles a run for accelerators that are not here."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console

from smf_jax.cli.files import read_config, shown
from smf_jax.config import (
    ConfigError,
    FinetuneConfig,
    PretrainConfig,
    RetrofitConfig,
    require,
)

KINDS = (PretrainConfig, RetrofitConfig, FinetuneConfig)


def plan(arguments: Sequence[str], console: Console) -> int:
    """Compiles a run's step for accelerators that are not here."""
    config, names, mesh, texts, timeout, as_json = _parse(arguments)
    require(timeout > 0, f"--timeout {timeout} must be above 0")
    require(texts is None or texts > 0, f"--texts {texts} must be above 0")
    made = _made(config)
    from smf_jax.plan import search, show
    from smf_jax.plan.topology import find, is_family, ladder, require_compiler

    for name in names:  # a mistake in the last is found before the first is compiled
        require_compiler(ladder(name)[0] if is_family(name) else find(name))

    told = Console(stderr=True, soft_wrap=True) if as_json else console
    tell = functools.partial(told.print, highlight=False)
    if made.model.vocab_size == 0:
        line = f"vocabulary: {made.data.vocab_size} tokens, the most that there may be"
        tell(line)
    ask = search.asker(made, texts, timeout, tell)
    compared = None if mesh == "compare" else config.mesh
    outcomes = search.try_all(names, compared, made.model.memory, ask)
    if as_json:
        plain = {name: [each._asdict() for each in of] for name, of in outcomes.items()}
        print(json.dumps(plain, indent=2))
    else:
        show.show(outcomes, config, console)
    fits = [any(each.fits for each in of) for of in outcomes.values()]
    return 0 if all(fits) else 1


def _parse(arguments: Sequence[str]) -> tuple:
    if arguments and not arguments[0].startswith("-"):
        default = read_config(Path(arguments[0]), KINDS, "plan")
    elif "--help" in arguments:
        default = None
    else:
        raise ConfigError("name a configuration file: smf plan configs/NAME.py")

    def options(
        topology: tuple[str, ...],
        config: shown(type(default), default) = default,
        mesh: Literal["config", "compare"] = "config",
        texts: int | None = None,
        timeout: int = 600,
        json: bool = False,
    ):
        """Compile the step of a run for TPUs or GPUs that are not here: does it fit?

        Prints bytes a device, operations, every exchange between devices, and what to
        change. Exit code 1: it does not fit. Needs the extra `plan`.

        TPU slices go by Google's names (v5e-16, v5p-128, v4-8, v6e-256, tpu7x-8) or by
        their shape (v5e:4x4), GPUs by number and hosts (h100x8, a100x8x2). A family
        alone (v5e, h100) is tried from its smallest size until one fits.

        smf plan configs/NAME.py --help tells every setting, as it is there.

        Example: smf plan configs/world.py --topology v5e-8 h100x8

        Args:
          topology: One or more to compile for.
          config: As a configuration file says, and as is said here. `base` may be the
            configuration file of a run that is not made yet.
          mesh: As the configuration says, or compare all that make sense.
          texts: Of a fact, in a batch of finetuning; by default as many as it is
            taught by.
          timeout: Seconds after which a compiler is stopped.
          json: Print all of it as JSON.
        """
        return config, topology, mesh, texts, timeout, json

    return tyro.cli(
        options,
        args=list(arguments[1:] if default is not None else arguments),
        prog="smf plan CONFIG",
        config=(tyro.conf.AvoidSubcommands,),
    )


def _made(config: Any) -> Any:
    """Returns how the model of a run comes to be, though it may not be made yet."""
    from smf_jax.runs.record import Lineage, lineage_of, read_record

    if isinstance(config, PretrainConfig):
        return Lineage(pretrain=config)
    base = Path(config.base)
    if base.suffix == ".py":
        made = _made(read_config(base, KINDS, "plan"))
    else:
        require(
            base.is_dir(),
            f"{base}: no such run directory; name the configuration file that makes "
            "it: --base configs/NAME.py",
        )
        made = lineage_of(read_record(base))
    if isinstance(config, RetrofitConfig):
        return made._replace(retrofit=config)
    return made._replace(finetune=config)
