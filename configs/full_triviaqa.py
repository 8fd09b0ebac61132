"""Teaches the paper's 1.3B model 1,000 TriviaQA facts by full finetuning.

Method: the baseline of arXiv:2510.15103: AdamW, weight decay 0.1; 5e-6 is the highest
rate of its sweep {2e-6, 5e-6, 2e-5, 5e-5} that does not break the model. The paper's
base has no memory layers: `--base` is a run of configs/pretrain_1b.py with
`--model.memory None`, or the memory model itself, as in figure 6.
Command: smf finetune configs/full_triviaqa.py --facts FACTS.jsonl
Machine and result: not run yet.
"""

import dataclasses
import runpy
from pathlib import Path

from smf_jax.config import FinetuneConfig, OptimConfig


def config() -> FinetuneConfig:
    """Returns the configuration."""
    smf = runpy.run_path(str(Path(__file__).with_name("smf_triviaqa.py")))["config"]()
    return dataclasses.replace(
        smf,
        base="runs/pretrain_1b",
        run_dir="runs/full_triviaqa",
        optim=OptimConfig(
            method="full", optimizer="adamw", learning_rate=5e-6, weight_decay=0.1
        ),
    )
