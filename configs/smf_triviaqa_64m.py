"""Teaches the paper's 1.3B model with 67,108,864 slots 1,000 TriviaQA facts by SMF.

Command: smf plan configs/smf_triviaqa_64m.py --base configs/pretrain_1b_64m.py
    --texts 64 --topology v5p-128
  smf finetune configs/smf_triviaqa_64m.py --facts FACTS.jsonl   (after smf usage)
Machine and result: compiled for it, see docs/reference/benchmarks.md; not run yet.
"""

import dataclasses
import runpy
from pathlib import Path

from smf_jax.config import FinetuneConfig, MeshConfig


def config() -> FinetuneConfig:
    """Returns the configuration."""
    smf = runpy.run_path(str(Path(__file__).with_name("smf_triviaqa.py")))["config"]()
    return dataclasses.replace(
        smf,
        base="runs/pretrain_1b_64m",
        run_dir="runs/smf_triviaqa_64m",
        mesh=MeshConfig(data=1, fsdp=0, model=4, values="everywhere"),
    )
