"""Teaches new.jsonl by SMF: copy this file for a model of your own.

Command: smf finetune configs/smf_own.py   (after configs/retrofit_own.py and its usage)
"""

from smf_jax.config import FinetuneConfig, OptimConfig


def config() -> FinetuneConfig:
    """Returns the configuration."""
    return FinetuneConfig(
        base="runs/model_memory",
        run_dir="runs/model_taught",
        facts="new.jsonl",
        steps=300,
        batch_size=16,
        eval_every=100,
        optim=OptimConfig(
            method="smf",
            optimizer="sgd",
            learning_rate=10_000.0,  # depends on the base: sweep it by factors of 2
            schedule="linear",
            warmup_steps=100,
            end_lr_fraction=0.1,
            top_t=2000,
        ),
    )
