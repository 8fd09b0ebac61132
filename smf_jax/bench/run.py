"""All that is timed, one part after the other, and the file of it."""

import dataclasses
import gc
import importlib.util
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from smf_jax.bench import lookup, steps
from smf_jax.bench.config import KNOWN, BenchConfig
from smf_jax.bench.timing import Times, Work, take_turns
from smf_jax.config import require
from smf_jax.runs.files import write_json
from smf_jax.runs.record import code_version

RESULTS = "bench.json"
LEAST_KEYS = 128  # of a half, in the smallest of the growing tables
NEW_TOKENS = 32
TORCH = ("torch", "transformers")
Tell = Callable[[str], Any]


def run(config: BenchConfig, console: Console) -> dict[str, Any]:
    """Times what the configuration names, and writes `bench.json`.

    Raises:
      ConfigError: There are several processes, or no kernels for the device.
    """
    require(jax.process_count() == 1, "a bench is run by one process")
    steps.place(config)  # refused before anything is made
    missing = _why_no_torch()
    if missing is not None:
        console.print(f"{missing}: timed without it")
    with_torch = missing is None
    results = {
        "config": dataclasses.asdict(config),
        "machine": _machine(with_torch),
        **code_version(),
    }
    for part in config.parts:
        console.print(f"bench: {part}")
        results[part] = PARTS[part](config, with_torch, console.print)
        write_json(_folder(config) / RESULTS, results)  # what is done is not lost
        gc.collect()
    return results


def _why_no_torch() -> str | None:
    if any(importlib.util.find_spec(name) is None for name in TORCH):
        return "PyTorch is not installed (the extra `torch`)"
    from smf_jax.bench import torch_cases

    return torch_cases.why_not()


def _folder(config: BenchConfig) -> Path:
    folder = Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _machine(with_torch: bool) -> dict[str, Any]:
    machine = {
        "device": f"{len(jax.devices())} x {jax.devices()[0].device_kind}",
        "cores": os.cpu_count(),
        "system": platform.platform(),
    }
    if with_torch:
        import torch

        machine["torch"] = torch.__version__
        machine["torch_threads"] = torch.get_num_threads()
    return machine


def _lookup(config: BenchConfig, with_torch: bool, tell: Tell) -> dict[str, Any]:
    reading = lookup.draw(config)
    works = lookup.copy() | lookup.ours(reading) | lookup.writing(reading)
    if with_torch:
        from smf_jax.bench import torch_cases

        works |= torch_cases.lookup(reading)
    times = take_turns({name: of.work for name, of in works.items()}, config.repeats)
    told = _told(times)
    return {name: of | {"bytes": works[name].bytes} for name, of in told.items()}


def _ranking(config: BenchConfig, with_torch: bool, tell: Tell) -> dict[str, Any]:
    works = lookup.ranking(config)
    if with_torch:
        from smf_jax.bench import torch_cases

        works |= torch_cases.ranking(config)
    return _told(take_turns(works, config.repeats))


def _methods(config: BenchConfig, with_torch: bool, tell: Tell) -> dict[str, Any]:
    """Times steps in small groups.

    Together their tables would fill the memory, and beside one that makes a gradient
    of its whole table others have been slower by a third.
    """
    small = steps.dense_part(config.model)
    sizes: dict[str, Any] = {"forward_peak": steps.forward_peak(config)}

    def step(method: str, name: str = "", known: bool = False) -> Work:
        stepping = steps.stepping(config, config.model, method, known)
        sizes[name or method] = _sizes(stepping)
        return stepping.work

    always = {"smf": step("smf"), KNOWN: step("smf", KNOWN, known=True)}
    groups = [
        {"lora": lambda: step("lora")},
        {"full": lambda: step("full")},
        {
            "smf, dense layers": lambda: steps.stepping(config, small, "smf").work,
            f"{KNOWN}, dense layers": lambda: (
                steps.stepping(config, small, "smf", known=True).work
            ),
        },
    ]
    if with_torch:
        from smf_jax.bench import torch_cases

        def torch_step(sparse: bool, model=config.model) -> Callable[[], Work]:
            return lambda: torch_cases.step(config, model, sparse)

        dense = {"PyTorch, dense layers": torch_step(True, small)}
        groups += [
            {"PyTorch, sparse": torch_step(True)} | dense,
            {"PyTorch, masked": torch_step(False)} | dense,
        ]
    times = []
    for group in groups:
        tell(f"  smf beside {' | '.join(group)}")
        works = always | {name: make() for name, make in group.items()}
        times.append(_told(take_turns(works, config.repeats)))
        del works
        gc.collect()
    return {"groups": times, "sizes": sizes}


def _sizes(stepping: steps.Stepping) -> dict[str, int]:
    sizes = stepping._asdict()
    del sizes["work"]
    return sizes


def _pretraining(config: BenchConfig, with_torch: bool, tell: Tell) -> dict[str, Any]:
    """Times steps with a memory, each beside one with the feed-forward in its place."""
    plain = steps.pretraining(config, dataclasses.replace(config.model, memory=None))
    always, sizes = {"a feed-forward": plain.work}, {"a feed-forward": _sizes(plain)}
    memory = steps.pretraining(config, config.model)
    sizes["a memory"] = _sizes(memory)
    times = take_turns(always | {"a memory": memory.work}, config.repeats)
    return {"groups": [_told(times)], "sizes": sizes}


def _slots(config: BenchConfig, with_torch: bool, tell: Tell) -> dict[str, Any]:
    """Times steps on ever larger tables, each beside the smallest."""
    keys, pairs = LEAST_KEYS, {}
    smallest = steps.with_memory(config.model, num_keys=LEAST_KEYS)
    least = steps.stepping(config, smallest, "smf").work
    while keys <= config.most_keys:
        tell(f"  {keys**2:,} slots")
        model = steps.with_memory(config.model, num_keys=keys)
        works = {
            "least": least,
            "step": steps.stepping(config, model, "smf").work,
        }
        pairs[str(keys**2)] = _told(take_turns(works, config.repeats))
        del works
        gc.collect()
        keys *= 2
    return pairs


def _decoding(config: BenchConfig, with_torch: bool, tell: Tell) -> dict[str, Any]:
    times = take_turns(steps.decoding(config, NEW_TOKENS), config.repeats)
    return _told(times) | {"new_tokens": config.texts * NEW_TOKENS}


def _told(times: Mapping[str, Times]) -> dict[str, Any]:
    return {name: of._asdict() for name, of in times.items()}


PARTS = {
    "lookup": _lookup,
    "ranking": _ranking,
    "methods": _methods,
    "pretraining": _pretraining,
    "slots": _slots,
    "decoding": _decoding,
}
