"""Teaches the paper's 1.3B model 1,000 TriviaQA facts by LoRA.

Method: the baseline of arXiv:2510.15103: AdamW, weight decay 0.1, adapters of attention
and feed-forward layers. The paper sweeps the rate {2e-4, 5e-5, 5e-6}, the rank {32,
128, 256} and alpha {1/2, 1, 2, 4} x rank, and does not say which it chose.
Command: smf finetune configs/lora_triviaqa.py --facts FACTS.jsonl
Machine and result: not run yet.
"""

import dataclasses
import runpy
from pathlib import Path

from smf_jax.config import FinetuneConfig, LoraConfig, OptimConfig


def config() -> FinetuneConfig:
    """Returns the configuration."""
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
