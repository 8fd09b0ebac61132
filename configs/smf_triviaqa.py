"""Teaches the paper's 1.3B model 1,000 TriviaQA facts by SMF, one per step.

Method: arXiv:2510.15103: SGD at rate 2, 500 slots per step, 64 paraphrases of a fact.
Data: JSONL(.gz) of facts with 64 `statements` each, `--facts`.
Command: smf plan configs/smf_triviaqa.py --base configs/pretrain_1b.py --texts 64
    --compute.scan-layers --topology v5e-16 v5p-8 h100x8
  smf finetune configs/smf_triviaqa.py --facts FACTS.jsonl   (after smf usage)
Machine and result: compiled for these, see docs/reference/benchmarks.md; not run yet.
"""

from smf_jax.config import ComputeConfig, FinetuneConfig, MeshConfig, OptimConfig


def config() -> FinetuneConfig:
    """Returns the configuration."""
    return FinetuneConfig(
        base="runs/pretrain_1b",
        run_dir="runs/smf_triviaqa",
        facts="facts.jsonl",
        teach="statements",
        seq_len=64,
        loss_on="all",
        steps=1000,
        batch_size=1,
        eval_every=100,
        mesh=MeshConfig(data=1, fsdp=0, model=4),
        compute=ComputeConfig(activations="bfloat16"),
        optim=OptimConfig(method="smf", optimizer="sgd", learning_rate=2.0, top_t=500),
    )
