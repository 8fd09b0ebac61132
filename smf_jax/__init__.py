"""Sparse Memory Finetuning in JAX: teach a language model new facts, forget few.

A transformer gets a product-key memory layer: a table of value slots of which each
token reads a few. To teach a batch of facts, TF-IDF of its slot reads against a
background corpus selects the few slots that may change, and only those rows are
updated (Lin et al. 2025, arXiv:2510.15103).

The public names below are imported on first use. `smf --help` is the command line;
`docs/tutorials/own_flax_model.ipynb` shows the layer in a model of your own, and
`examples/own_loop.py` the step in a loop of your own.
"""

import importlib
from typing import Any

_PUBLIC = {
    "Background": "slots.document_frequency",
    "Batch": "data.batches",
    "ComputeConfig": "config",
    "LoraConfig": "config",
    "MemoryConfig": "config",
    "MemoryLayer": "model.memory",
    "MemoryValues": "model.memory",
    "MeshConfig": "config",
    "MeshLayout": "sharding",
    "ModelConfig": "config",
    "OptimConfig": "config",
    "Reads": "model.memory",
    "Transformer": "model.transformer",
    "count_reads": "slots.select",
    "init_state": "train.state",
    "init_values": "model.memory",
    "load": "runs.load",
    "make_layout": "sharding",
    "make_method": "optim.methods",
    "make_read_counter": "verbs.usage",
    "make_step": "train.step",
    "only_rows": "optim.rows",
    "product_key_top_k": "kernels.product_key",
    "Taught": "verbs.taught",
    "teach": "verbs.taught",
    "tfidf": "slots.select",
    "top_slots": "slots.select",
    "weighted_rows": "kernels.row_sums",
}
_MODULES = {"hf": "hf", "patch": "slots.patch"}

__all__ = sorted([*_PUBLIC, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        module = importlib.import_module(f"smf_jax.{_PUBLIC[name]}")
        return getattr(module, {"load": "load_run"}.get(name, name))
    if name in _MODULES:
        return importlib.import_module(f"smf_jax.{_MODULES[name]}")
    raise AttributeError(f"module 'smf_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
