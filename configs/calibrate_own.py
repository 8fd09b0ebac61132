"""Adds a calibrated memory to an imported model: copy this file for a model of yours.

Queries and keys come from statistics of texts.jsonl, at a third of the depth; nothing
is trained, and no answer changes until facts are taught.
Command: smf retrofit configs/calibrate_own.py   (after smf import-hf MODEL runs/model)
"""

from smf_jax.config import DataConfig, RetrofitConfig


def config() -> RetrofitConfig:
    """Returns the configuration."""
    return RetrofitConfig(
        base="runs/model",
        run_dir="runs/model_memory",
        data=DataConfig(background="texts.jsonl", seq_len=128, batch_size=4),
    )
