"""Sparse Memory Finetuning in plain PyTorch, for comparison.

The layers and the step follow the papers' formulas, in a `transformers` model. The
gradient of a table is masked to the selected rows, or sparse and filtered to them. It
is as fast as plain PyTorch allows: `embedding_bag` instead of a gather, no gradients of
frozen parameters. Needs the extra `torch`.

layers.py   memory layers, added to a decoder or loaded from an export
step.py     the training step

Source: Lample et al. 2019, arXiv:1907.05242; Berges et al. 2024, arXiv:2412.09764; Lin
et al. 2025, arXiv:2510.15103.
"""

from smf_jax.torch_baseline.layers import (
    CalibratedMemory,
    MemoryLayer,
    add_memory,
    load,
    memory_layers,
    product_key_top_k,
)
from smf_jax.torch_baseline.step import smf_step, tfidf, top_slots, train_only_values

__all__ = [
    "CalibratedMemory",
    "MemoryLayer",
    "add_memory",
    "load",
    "memory_layers",
    "product_key_top_k",
    "smf_step",
    "tfidf",
    "top_slots",
    "train_only_values",
]
