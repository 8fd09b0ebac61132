"""Runs the parts of a benchmark, and writes their results."""

import dataclasses
import functools
import gc
import importlib.util
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import jax
from rich.console import Console

from smf_jax.bench import lookup, pretrained, report, steps
from smf_jax.bench.config import BenchConfig
from smf_jax.bench.timing import Case, time_in_turn
from smf_jax.config import ModelConfig, require
from smf_jax.runs.files import write_json
from smf_jax.runs.record import code_version

RESULTS = "bench.json"
TABLE_KEYS = (128, 256, 512, 1024, 2048)  # num_keys of the tables of the part slots
NEW_TOKENS = 32
TORCH = ("torch", "transformers", "peft")


def run(config: BenchConfig, console: Console) -> None:
    """Times the parts of a configuration, prints them and writes `bench.json`.

    Raises:
      ConfigError: There are several processes, or `compute.lookup` does not support the
        device.
    """
    require(jax.process_count() == 1, "smf bench runs as one process")
    steps.device_layout(config)  # raises before anything is allocated
    torch_cases = _import_torch_cases(console)
    results = {
        "config": dataclasses.asdict(config),
        "device": f"{len(jax.devices())} x {jax.devices()[0].device_kind}",
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "torch": torch_cases and torch_cases.versions(),
        **code_version(),
    }
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    for part in config.parts:
        result = results[part] = {"groups": []}
        for number, group in enumerate(PARTS[part](config, torch_cases), 1):
            console.print(f"bench {part}: timing group {number}")
            result["groups"].append(time_in_turn(group, config.repeats))
            group.clear()  # frees its arrays before the next group allocates
            gc.collect()
        if part == "methods":
            result["forward_peak"] = steps.forward_peak(config)
        write_json(out / RESULTS, results)
        report.show(part, result, console)
    console.print(f"results: {out / RESULTS}")


def _import_torch_cases(console: Console) -> ModuleType | None:
    """Returns the cases for PyTorch, or None where it cannot run them."""
    if all(importlib.util.find_spec(name) for name in TORCH):
        from smf_jax.bench import torch_cases

        if torch_cases.supports_device():
            return torch_cases
    kind = jax.default_backend()
    console.print(f"no PyTorch for {kind} (extra `torch`): timing smf_jax alone")
    return None


# Each part yields groups of cases, the baseline first. Groups are small: together their
# tables would fill the memory, and a step that makes a whole table's gradient slows
# others down by a third.
Groups = Iterator[dict[str, Case]]


def _lookup(config: BenchConfig, torch_cases: ModuleType | None) -> Groups:
    inputs = lookup.draw_inputs(config)
    cases = lookup.lookup_cases(inputs)
    yield cases | (torch_cases.lookup_cases(inputs) if torch_cases else {})


def _ranking(config: BenchConfig, torch_cases: ModuleType | None) -> Groups:
    cases = {"smf_jax": lookup.ranking_case(config)}
    yield cases | ({"PyTorch": torch_cases.ranking_case(config)} if torch_cases else {})


def _methods(config: BenchConfig, torch_cases: ModuleType | None) -> Groups:
    def step(method: str, model=config.model, cached: bool = False) -> Case:
        return steps.step_case(config, model, method, cached)

    # Memory layers that cost next to nothing.
    dense = steps.with_memory(config.model, num_keys=32, num_heads=1, top_k=1)
    baselines = {"smf": step("smf"), "smf, cached": step("smf", cached=True)}
    yield baselines | {"lora": step("lora")}
    yield baselines | {"full": step("full")}
    yield baselines | {
        "smf, dense only": step("smf", dense),
        "smf, cached, dense only": step("smf", dense, cached=True),
    }
    for name in ("PyTorch, sparse", "PyTorch, masked") if torch_cases else ():
        sparse = name == "PyTorch, sparse"
        yield baselines | {
            name: torch_cases.step_case(config, config.model, sparse),
            f"{name}, dense only": torch_cases.step_case(config, dense, sparse=True),
        }


def _pretraining(config: BenchConfig, torch_cases: ModuleType | None) -> Groups:
    plain = dataclasses.replace(config.model, memory=None)
    yield {
        "feed-forward": steps.pretraining_case(config, plain),
        "memory layer": steps.pretraining_case(config, config.model),
    }


def _products(config: BenchConfig, torch_cases: ModuleType | None) -> Groups:
    rounded, exact = (
        dataclasses.replace(
            config, compute=dataclasses.replace(config.compute, products=products)
        )
        for products in ("bfloat16", "float32")
    )
    plain = dataclasses.replace(config.model, memory=None)
    for method in ("pretraining", "full", "lora", "smf"):
        model = plain if method == "pretraining" else config.model
        make = functools.partial(_training_case, model=model, method=method)
        group = {
            f"{method}, float32": make(exact),
            f"{method}, rounded factors": make(rounded),
        }
        for autocast in (False, True) if torch_cases else ():
            name = f"{method}, PyTorch {'autocast' if autocast else 'float32'}"
            if method == "smf":
                group[name] = torch_cases.step_case(config, model, True, autocast)
            else:
                group[name] = torch_cases.dense_step_case(
                    config, model, method, autocast
                )
        yield group


def _training_case(config: BenchConfig, model: ModelConfig, method: str) -> Case:
    if method == "pretraining":
        return steps.pretraining_case(config, model)
    return steps.step_case(config, model, method)


def _slots(config: BenchConfig, torch_cases: ModuleType | None) -> Groups:
    def step(num_keys: int) -> Case:
        model = steps.with_memory(config.model, num_keys=num_keys)
        return steps.step_case(config, model, "smf")

    smallest = step(TABLE_KEYS[0])
    for num_keys in TABLE_KEYS:
        yield {"smallest table": smallest, f"{num_keys**2:,} slots": step(num_keys)}


def _decoding(config: BenchConfig, torch_cases: ModuleType | None) -> Groups:
    yield {"greedy decoding": steps.decoding_case(config, NEW_TOKENS)}


def _pretrained(config: BenchConfig, torch_cases: ModuleType | None) -> Groups:
    ours = {
        f"smf_jax, {products} products": pretrained.load(config, products)
        for products in ("float32", "bfloat16")
    }
    theirs = {
        f"transformers, {dtype}": torch_cases.load(config.source, dtype)
        for dtype in (("float32", "bfloat16") if torch_cases else ())
    }
    for work in pretrained.WORKS:
        group = {
            f"{work.name}, {name}": pretrained.case(model, work)
            for name, model in ours.items()
        }
        yield group | {
            f"{work.name}, {name}": torch_cases.pretrained_case(model, work)
            for name, model in theirs.items()
        }


PARTS = {
    part.__name__.removeprefix("_"): part
    for part in (
        *(_lookup, _ranking, _methods, _pretraining, _products),
        *(_slots, _decoding, _pretrained),
    )
}
