import dataclasses
import json

import pytest

from smf_jax.config import (
    ConfigError,
    DataConfig,
    FinetuneConfig,
    ImportConfig,
    LoraConfig,
    MemoryConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
    RetrofitConfig,
    RopeConfig,
    RopeScalingConfig,
    WorldConfig,
    config_hash,
)
from smf_jax.runs.load import load_run
from smf_jax.runs.record import Lineage, lineage_of

# What is wrong, and what the message must hold: the keys and both values.
CLASHES = [
    (MemoryConfig, {"top_k": 9, "num_keys": 8}, "memory.top_k=9 memory.num_keys=8"),
    (MemoryConfig, {"key_dim": 7}, "memory.key_dim=7 even"),
    (MemoryConfig, {"layers": ()}, "memory.layers=()"),
    (MemoryConfig, {"layers": (2, 1)}, "memory.layers=(2, 1)"),
    (MemoryConfig, {"layers": (1, 1)}, "memory.layers=(1, 1)"),
    (MemoryConfig, {"num_heads": 0}, "memory.num_heads=0"),
    (MemoryConfig, {"value_dim": -3}, "memory.value_dim=-3"),
    (
        RopeScalingConfig,
        {"low_freq_factor": 4.0, "high_freq_factor": 4.0},
        "rope_scaling.low_freq_factor=4.0 rope_scaling.high_freq_factor=4.0",
    ),
    (
        ModelConfig,
        {"num_layers": 4, "memory": MemoryConfig(layers=(1, 4))},
        "memory.layers=(1, 4) model.num_layers=4",
    ),
    (ModelConfig, {"memory": MemoryConfig(layers=(-1,))}, "memory.layers=(-1,)"),
    (
        ModelConfig,
        {"num_heads": 6, "num_kv_heads": 4},
        "model.num_heads=6 model.num_kv_heads=4",
    ),
    (
        ModelConfig,
        {"dim": 10, "num_heads": 4},
        "model.dim=10 model.num_heads=4 model.head_dim",
    ),
    (ModelConfig, {"head_dim": 5}, "head 5 even"),
    (ModelConfig, {"dim": 0}, "model.dim=0"),
    (
        WorldConfig,
        {"known_people": 5, "new_people": 2, "first_names": 3, "last_names": 4},
        "world.first_names world.last_names 12 7",
    ),
    (WorldConfig, {"known_people": 0}, "world.known_people=0"),
    (DataConfig, {"new_fraction": 1.0}, "data.new_fraction=1.0"),
    (DataConfig, {"new_fraction": -0.1}, "data.new_fraction=-0.1"),
    (OptimConfig, {"learning_rate": 1000.0}, "optim.learning_rate=1000.0 adamw"),
    (DataConfig, {"fact_share": 0.0}, "data.fact_share=0.0"),
    (DataConfig, {"seq_len": 0}, "data.seq_len=0"),
    (LoraConfig, {"rank": 0}, "lora.rank=0"),
    (
        OptimConfig,
        {"momentum": 0.9, "optimizer": "adamw"},
        "optim.momentum=0.9 optim.optimizer adamw",
    ),
    (
        OptimConfig,
        {"weight_decay": 0.1, "optimizer": "sgd"},
        "optim.weight_decay=0.1 optim.optimizer sgd",
    ),
    (OptimConfig, {"max_grad_norm": 0.0}, "optim.max_grad_norm=0.0"),
    (OptimConfig, {"learning_rate": 0.0}, "optim.learning_rate=0.0"),
    (OptimConfig, {"top_t": 0}, "optim.top_t=0"),
    (OptimConfig, {"warmup_steps": -1}, "optim.warmup_steps=-1"),
    (
        PretrainConfig,
        {"run_dir": "r", "optim": OptimConfig(method="smf")},
        "optim.method=smf optim.method=full",
    ),
    (OptimConfig, {"rows": "read", "method": "smf"}, "optim.rows=read smf"),
    (OptimConfig, {"rows": "read", "method": "lora"}, "optim.rows=read lora"),
    (
        PretrainConfig,
        {
            "run_dir": "r",
            "optim": OptimConfig(rows="read"),
            "model": ModelConfig(memory=None),
        },
        "optim.rows=read model.memory",
    ),
    (PretrainConfig, {"run_dir": "r", "steps": 0}, "steps=0"),
    (PretrainConfig, {"run_dir": "r", "balance_weight": -0.1}, "balance_weight=-0.1"),
    (PretrainConfig, {"run_dir": "r", "values_lr_scale": 0.0}, "values_lr_scale=0.0"),
    (
        FinetuneConfig,
        {"base": "b", "run_dir": "r", "steps": 9, "optim": OptimConfig(warmup_steps=9)},
        "optim.warmup_steps=9 steps=9",
    ),
    (
        FinetuneConfig,
        {"base": "b", "run_dir": "r", "batch_size": 6, "grad_accum_steps": 4},
        "batch_size=6 grad_accum_steps=4",
    ),
    (
        FinetuneConfig,
        {"base": "b", "run_dir": "r", "eval_every": -1},
        "eval_every=-1",
    ),
]


@pytest.mark.parametrize(("kind", "values", "named"), CLASHES)
def test_a_clash_is_refused_by_keys_and_values(kind, values, named):
    with pytest.raises(ConfigError) as caught:
        kind(**values)

    assert [part for part in named.split(" ") if part not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["learning_rate", "end_lr_fraction", "max_grad_norm"])
def test_not_a_number_is_refused(name):
    with pytest.raises(ConfigError, match=name):
        OptimConfig(**{name: float("nan")})


def test_the_largest_top_k_reads_every_key():
    assert MemoryConfig(top_k=8, num_keys=8).num_slots == 64


def test_layers_that_share_values_have_one_table():
    assert MemoryConfig(layers=(1, 3), share_values=True).num_tables == 1
    assert MemoryConfig(layers=(1, 3), share_values=False).num_tables == 2


PLAIN = PretrainConfig(run_dir="runs/plain")
LONG = PretrainConfig(
    run_dir="runs/long",
    model=ModelConfig(
        head_dim=16,
        rope=RopeConfig(scaling=RopeScalingConfig(factor=4.0), skip_layers=(1, 3)),
        memory=MemoryConfig(layers=(0, 2, 3), placement="add"),
    ),
    data=DataConfig(facts="facts.jsonl", background="texts.jsonl.gz"),
    optim=OptimConfig(max_grad_norm=1.0),
)
LORA = OptimConfig(method="lora", lora=LoraConfig(rank=3, targets="x"))
IMPORTED = ImportConfig(
    source="somebody/model",
    revision="abc",
    ignore=("sliding_window",),
    model=ModelConfig(vocab_size=9, memory=None),
    eos_token=2,
    config={"architectures": ["LlamaForCausalLM"], "rope_scaling": {"factor": 2.0}},
    files={"chat_template.jinja": "{{ messages }}"},
    data=None,
)
RETROFIT = RetrofitConfig(
    base="runs/imported", run_dir="runs/retrofit", data=DataConfig()
)
MADE = {
    "plain": Lineage(pretrain=PLAIN),
    "dense": Lineage(PretrainConfig(run_dir="r", model=ModelConfig(memory=None))),
    "long": Lineage(pretrain=LONG),
    "imported": Lineage(imported=IMPORTED),
    "retrofitted": Lineage(imported=IMPORTED, retrofit=RETROFIT),
    "taught": Lineage(PLAIN, finetune=FinetuneConfig(base="runs/plain", run_dir="r")),
    "by lora": Lineage(
        imported=IMPORTED,
        finetune=FinetuneConfig(
            base="r", run_dir="x", facts="f.jsonl", teach="statements", optim=LORA
        ),
    ),
}


@pytest.mark.parametrize("want", MADE.values(), ids=MADE)
def test_how_a_model_came_to_be_comes_back_from_json_as_it_was(want):
    parts = zip(Lineage._fields, want, strict=True)
    record = {name: part and dataclasses.asdict(part) for name, part in parts}

    got = lineage_of(json.loads(json.dumps(record)))

    assert got == want
    assert config_hash(got.own) == config_hash(want.own)


def test_configs_that_differ_in_one_value_have_other_hashes():
    one, other = (PretrainConfig(run_dir="r", seed=seed) for seed in (0, 1))

    assert config_hash(one) != config_hash(other)


def write_config(run_dir, **changes):
    record = {
        "pretrain": dataclasses.asdict(PretrainConfig(run_dir="r")),
        "finetune": None,
        "tokenizer_hash": "0" * 16,
    }
    (run_dir / "config.json").write_text(json.dumps(record | changes))


def test_a_record_with_an_unknown_key_is_refused_by_name(tmp_path):
    pretrain = dataclasses.asdict(PretrainConfig(run_dir="r"))
    pretrain["model"]["colour"] = "green"
    write_config(tmp_path, pretrain=pretrain)

    with pytest.raises(ConfigError, match=r"config\.json.*colour"):
        load_run(tmp_path)


@pytest.mark.parametrize(
    "pretrain",
    [None, "text", [], {}, {"run_dir": 5}, {"run_dir": "r", "steps": "many"}],
    ids=str,
)
def test_a_record_that_describes_no_run_is_refused(tmp_path, pretrain):
    write_config(tmp_path, pretrain=pretrain)

    with pytest.raises(ConfigError, match=r"config\.json"):
        load_run(tmp_path)


def test_a_record_that_is_no_object_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("[]")

    with pytest.raises(ConfigError, match=r"config\.json"):
        load_run(tmp_path)


def test_a_record_whose_values_clash_is_refused(tmp_path):
    pretrain = dataclasses.asdict(PretrainConfig(run_dir="r"))
    pretrain["model"]["memory"]["key_dim"] = 7
    write_config(tmp_path, pretrain=pretrain)

    with pytest.raises(ConfigError, match=r"memory\.key_dim=7"):
        load_run(tmp_path)
