"""Teaches the paper's 1.3B model 1,000 TriviaQA facts by LoRA.

Method: arXiv:2510.15103, its baseline: AdamW, decay 0.1, attention and feed-forwards;
sweep the rate {2e-4, 5e-5, 5e-6}, the rank {32, 128, 256} and alpha {1/2, 1, 2, 4} x
rank, as the paper did: which it chose it does not say.
Command: smf finetune configs/lora_triviaqa.py --facts FACTS.jsonl
Machine and result: no run yet.
"""

import dataclasses
import runpy
from pathlib import Path

from smf_jax.config import FinetuneConfig, LoraConfig, OptimConfig


def config() -> FinetuneConfig:
    """Returns the run."""
    smf = runpy.run_path(str(Path(__file__).with_name("smf_triviaqa.py")))["config"]()
    return dataclasses.replace(
        smf,
        base="runs/pretrain_1b",
        run_dir="runs/lora_triviaqa",
        optim=OptimConfig(
            method="lora",
            optimizer="adamw",
            learning_rate=2e-4,
            weight_decay=0.1,
            lora=LoraConfig(rank=128, alpha=256.0),
        ),
    )
