"""Teaches the paper's 1.3B model 1,000 TriviaQA facts by full finetuning.

Method: arXiv:2510.15103, its baseline: AdamW, decay 0.1; 5e-6 is the highest rate of
its sweep {2e-6, 5e-6, 2e-5, 5e-5} that does not break the model. The paper's has no
memory: `--base` a run of configs/pretrain_1b.py with `--model.memory None`, or, for
its figure 6, the memory model itself.
Command: smf finetune configs/full_triviaqa.py --facts FACTS.jsonl
Machine and result: no run yet.
"""

import dataclasses
import runpy
from pathlib import Path

from smf_jax.config import FinetuneConfig, OptimConfig


def config() -> FinetuneConfig:
    """Returns the run."""
    smf = runpy.run_path(str(Path(__file__).with_name("smf_triviaqa.py")))["config"]()
    return dataclasses.replace(
        smf,
        base="runs/pretrain_1b",
        run_dir="runs/full_triviaqa",
        optim=OptimConfig(
            method="full", optimizer="adamw", learning_rate=5e-6, weight_decay=0.1
        ),
    )
