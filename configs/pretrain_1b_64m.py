"""The paper's 1.3B model with 67,108,864 slots, 64 times as many, from scratch.

Method: the largest table of arXiv:2412.09764: 275 GB of float32 values.
Command: smf plan configs/pretrain_1b_64m.py --topology v5p-128
  smf pretrain configs/pretrain_1b_64m.py --data.background TEXTS.jsonl.gz
Machine and result: compiled for it, see docs/reference/benchmarks.md; not run yet.
"""

import dataclasses
import runpy
from pathlib import Path

from smf_jax.config import MeshConfig, PretrainConfig


def config() -> PretrainConfig:
    """Returns the configuration."""
    base = runpy.run_path(str(Path(__file__).with_name("pretrain_1b.py")))["config"]()
    memory = dataclasses.replace(base.model.memory, num_keys=8192)
    return dataclasses.replace(
        base,
        run_dir="runs/pretrain_1b_64m",
        grad_accum_steps=2,
        # Slots are split, as shards of a row would have few columns.
        mesh=MeshConfig(data=1, fsdp=0, model=4, values="everywhere"),
        model=dataclasses.replace(base.model, memory=memory),
    )
