"""Adds a memory layer to an imported model: copy this file for a model of your own.

The memory stands beside the feed-forward of layer 10, and only it trains: on
texts.jsonl, and on known.jsonl, facts that the model should keep.
Command: smf retrofit configs/retrofit_own.py   (after smf import-hf MODEL runs/model)
"""

from smf_jax.config import DataConfig, MemoryConfig, OptimConfig, RetrofitConfig


def config() -> RetrofitConfig:
    """Returns the configuration."""
    return RetrofitConfig(
        base="runs/model",
        run_dir="runs/model_memory",
        steps=2000,
        memory=MemoryConfig(
            layers=(10,),
            num_keys=256,  # 65,536 slots
            value_dim=256,
            placement="add",
        ),
        data=DataConfig(
            background="texts.jsonl",
            facts="known.jsonl",
            new_fraction=0.0,  # all of these facts are known
            seq_len=128,
            batch_size=16,
        ),
        optim=OptimConfig(
            method="memory", learning_rate=1e-3, schedule="cosine", warmup_steps=50
        ),
    )
