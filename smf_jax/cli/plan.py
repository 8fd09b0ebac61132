"""The verb that compiles a run's training step for other accelerators."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from smf_jax.cli.files import read_config, shown
from smf_jax.cli.options import HELP, LIST, parse
from smf_jax.config import (
    FinetuneConfig,
    PretrainConfig,
    RetrofitConfig,
    calibrated_memory,
    require,
)

KINDS = (PretrainConfig, RetrofitConfig, FinetuneConfig)


def plan(arguments: Sequence[str], console: Console) -> int:
    """Compiles a run's training step for TPUs or GPUs that need not be attached."""
    config, names, texts, timeout, as_json = _parse(arguments)
    require(texts is None or texts > 0, f"--texts {texts} must be above 0")
    require(
        config.steps > 0,
        "a retrofit of 0 steps calibrates a memory: it has no training step to plan",
    )
    lineage = _lineage(config)
    from smf_jax.plan import compile, report, topology
    from smf_jax.plan.abstract_step import batch_shape

    candidates = {name: topology.find(name) for name in names}
    for first, *_ in candidates.values():
        topology.require_compiler(first)
    make = "smf_jax.plan.abstract_step:step_of_record"
    parts = lineage._asdict().items()
    record = {name: config and dataclasses.asdict(config) for name, config in parts}
    step = [record, *batch_shape(lineage, texts)]
    log = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)

    def compile_one(size: topology.Topology) -> compile.Result:
        log.print(f"compiling for {size.name}")
        return compile.compile_for(size, make, step, timeout)

    results = {}
    for name, sizes in candidates.items():
        results[name] = compile.find_smallest(sizes, compile_one)
        if not as_json:
            report.show(results[name], config, console)
    if as_json:
        print(json.dumps(results, indent=2, default=dataclasses.asdict))
    return 0 if all(tried[-1].fits for tried in results.values()) else 1


def _parse(arguments: Sequence[str]) -> tuple:
    has_file = bool(arguments) and not arguments[0].startswith("-")
    usage = "name a configuration file: smf plan configs/NAME.py"
    lists = bool(HELP & {*arguments}) or arguments[:1] == LIST[:1]
    require(has_file or lists, usage)
    default = read_config(Path(arguments[0]), KINDS, "plan") if has_file else None

    def options(
        topology: tuple[str, ...],
        config: shown(type(default), default) = default,
        texts: int | None = None,
        timeout: int = 600,
        json: bool = False,
    ):
        """Check whether a run's training step fits TPUs or GPUs that are not attached.

        Prints memory, FLOPs and collectives per device. Exit code 1: it does not fit.

        smf plan configs/NAME.py --help lists every setting with the file's values.

        Example: smf plan configs/world.py --topology v5e-8 h100x8

        Args:
          topology: TPU slices (v5e-16, v5p-128, v5e:4x4), GPUs (h100x8; a100x8x2 for
            two hosts), or families (v5e: finds the smallest size that fits).
          config: The run; `base` may be the configuration file of a run that does not
            exist yet.
          texts: Texts per fact in a finetuning batch.
          timeout: Seconds after which a compilation is stopped.
          json: Print the results as JSON.
        """
        return config, topology, texts, timeout, json

    return parse(options, "plan CONFIG", arguments[has_file:])


def _lineage(config: Any) -> Any:
    """Returns the lineage of a run that may not exist yet."""
    from smf_jax.runs.record import Lineage, lineage_of, read_record

    if isinstance(config, PretrainConfig):
        return Lineage(pretrain=config)
    base = Path(config.base)
    if base.suffix == ".py":
        lineage = _lineage(read_config(base, KINDS, "plan"))
    else:
        advice = "name the configuration file that makes it: --base configs/NAME.py"
        require(base.is_dir(), f"{base}: no such run directory; {advice}")
        lineage = lineage_of(read_record(base))
    if isinstance(config, FinetuneConfig):
        return lineage._replace(finetune=config)
    if config.memory is None:
        memory = calibrated_memory(lineage.model)
        config = dataclasses.replace(config, memory=memory)
    return lineage._replace(retrofit=config)
