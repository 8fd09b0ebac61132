"""Teaches new.jsonl by LoRA: copy this file for a model of your own.

The rate is low on purpose: watch the loss on texts (docs/how_to/teach.md).
Command: smf finetune configs/lora_own.py   (after smf import-hf MODEL runs/model)
"""

from smf_jax.config import FinetuneConfig, OptimConfig


def config() -> FinetuneConfig:
    """Returns the configuration."""
    return FinetuneConfig(
        base="runs/model",
        run_dir="runs/model_lora",
        facts="new.jsonl",
        steps=100,
        batch_size=8,
        eval_every=0,  # only before the first step and after the last
        optim=OptimConfig(
            method="lora",
            optimizer="adamw",
            learning_rate=3e-4,
            schedule="linear",
            warmup_steps=10,
        ),
    )
