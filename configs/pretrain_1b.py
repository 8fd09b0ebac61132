"""The paper's 1.3B model with one memory layer of 1,048,576 slots, from scratch.

Method: arXiv:2510.15103, with the pretraining recipe of arXiv:2412.09764; attention
heads, context and tokenizer, which neither states, are those of Llama 2.
Data: JSONL(.gz) of texts, `--data.background`; the paper trains on 1T tokens.
Command: smf plan configs/pretrain_1b.py --topology v5e-16 v5p-8 h100x8
  smf pretrain configs/pretrain_1b.py --data.background TEXTS.jsonl.gz
Machine and result: compiled for these, see docs/reference/benchmarks.md; not run yet.
"""

from smf_jax.config import (
    ComputeConfig,
    DataConfig,
    MemoryConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
    RopeConfig,
)


def config() -> PretrainConfig:
    """Returns the configuration."""
    return PretrainConfig(
        run_dir="runs/pretrain_1b",
        steps=128_000,
        grad_accum_steps=8,
        balance_weight=0.0,
        values_lr_scale=10.0,
        mesh=MeshConfig(data=1, fsdp=0, model=4),
        compute=ComputeConfig(activations="bfloat16", remat=True),
        model=ModelConfig(
            vocab_size=32_000,
            dim=2048,
            num_layers=22,
            num_heads=16,
            num_kv_heads=16,
            hidden_dim=5632,
            rope=RopeConfig(theta=500_000.0),
            tie_embeddings=False,
            memory=MemoryConfig(
                layers=(12,),
                num_keys=1024,
                num_heads=4,
                top_k=32,
                key_dim=512,
                value_dim=1024,
            ),
        ),
        data=DataConfig(
            background="texts.jsonl.gz",
            loss_on="all",
            tokenizer="bpe",
            vocab_size=32_000,
            seq_len=2048,
            batch_size=256,
        ),
        optim=OptimConfig(
            optimizer="adamw",
            learning_rate=1e-4,
            schedule="linear",
            warmup_steps=4000,
            end_lr_fraction=0.01,
            weight_decay=0.1,
            max_grad_norm=1.0,
        ),
    )
