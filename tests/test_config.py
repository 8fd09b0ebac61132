import dataclasses
import json
import typing

import pytest

from smf_jax import config as config_room
from smf_jax.bench.config import BenchConfig
from smf_jax.config import (
    ConfigError,
    DataConfig,
    FinetuneConfig,
    ImportConfig,
    LoraConfig,
    MemoryConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
    RetrofitConfig,
    RopeConfig,
    RopeScalingConfig,
    WorldConfig,
    config_hash,
)
from smf_jax.demo import DemoConfig
from smf_jax.runs.load import load_run
from smf_jax.runs.record import Lineage, lineage_of

RUN = {"run_dir": "r"}
TEACH = RUN | {"base": "b"}
# What is wrong, and what the message must hold: the keys and both values.
CLASHES = [
    (MemoryConfig, {"top_k": 9, "num_keys": 8}, "memory.top_k=9 memory.num_keys=8"),
    (MemoryConfig, {"key_dim": 7}, "memory.key_dim=7 even"),
    (MemoryConfig, {"layers": ()}, "memory.layers=()"),
    (MemoryConfig, {"layers": (2, 1)}, "memory.layers=(2, 1)"),
    (MemoryConfig, {"layers": (1, 1)}, "memory.layers=(1, 1)"),
    (MemoryConfig, {"num_heads": 0}, "memory.num_heads=0"),
    (MemoryConfig, {"value_dim": -3}, "memory.value_dim=-3"),
    (RopeScalingConfig, {"low_freq_factor": 4.0}, "low_freq_factor=4.0 high_freq"),
    (RopeScalingConfig, {"factor": float("inf")}, "rope_scaling.factor=inf"),
    (RopeScalingConfig, {"attention_factor": 0.0}, "rope_scaling.attention_factor=0.0"),
    (RopeScalingConfig, {"beta_slow": 64.0}, "beta_slow=64.0 beta_fast=32.0"),
    (
        RopeConfig,
        {"theta": 1.0, "scaling": RopeScalingConfig(type="yarn")},
        "theta=1.0 type=yarn",
    ),
    (ModelConfig, {"memory": MemoryConfig(layers=(1, 4))}, "(1, 4) num_layers=4"),
    (ModelConfig, {"memory": MemoryConfig(layers=(-1,))}, "memory.layers=(-1,)"),
    (ModelConfig, {"num_heads": 6, "num_kv_heads": 4}, "num_heads=6 num_kv_heads=4"),
    (ModelConfig, {"dim": 10, "num_heads": 4}, "model.dim=10 num_heads=4 head_dim"),
    (ModelConfig, {"head_dim": 5}, "head_dim=5 even"),
    (ModelConfig, {"dim": 0}, "model.dim=0"),
    (
        WorldConfig,
        {"known_people": 5, "new_people": 2, "first_names": 3, "last_names": 4},
        "world.first_names world.last_names 12 7",
    ),
    (WorldConfig, {"known_people": 0}, "world.known_people=0"),
    (DataConfig, {"new_fraction": 1.0}, "data.new_fraction=1.0"),
    (DataConfig, {"new_fraction": -0.1}, "data.new_fraction=-0.1"),
    (DataConfig, {"fact_share": 0.0}, "data.fact_share=0.0"),
    (DataConfig, {"seq_len": 0}, "data.seq_len=0"),
    (MeshConfig, {"data": 0, "fsdp": 0}, "mesh.data=0 mesh.fsdp=0"),
    (LoraConfig, {"rank": 0}, "lora.rank=0"),
    (OptimConfig, {"learning_rate": 1000.0}, "optim.learning_rate=1000.0 adamw"),
    (OptimConfig, {"learning_rate": float("nan")}, "optim.learning_rate=nan"),
    (OptimConfig, {"end_lr_fraction": float("nan")}, "optim.end_lr_fraction=nan"),
    (OptimConfig, {"max_grad_norm": float("nan")}, "optim.max_grad_norm=nan"),
    (OptimConfig, {"max_grad_norm": 0.0}, "optim.max_grad_norm=0.0"),
    (OptimConfig, {"learning_rate": 0.0}, "optim.learning_rate=0.0"),
    (OptimConfig, {"top_t": 0}, "optim.top_t=0"),
    (OptimConfig, {"warmup_steps": -1}, "optim.warmup_steps=-1"),
    (OptimConfig, {"weight_decay": 0.1, "optimizer": "sgd"}, "weight_decay=0.1 =sgd"),
    (OptimConfig, {"method": "smf", "optimizer": "muon"}, "=muon optim.method=smf"),
    (PretrainConfig, RUN | {"optim": OptimConfig(method="smf")}, "=smf method=full"),
    (PretrainConfig, RUN | {"steps": 0}, "steps=0"),
    (PretrainConfig, RUN | {"seed": -1}, "pretrain.seed=-1 0 .. 4294967295"),
    (WorldConfig, {"seed": 2**32}, "world.seed=4294967296"),
    (DemoConfig, {"seed": 2**70}, f"demo.seed={2**70}"),
    (PretrainConfig, RUN | {"balance_weight": -0.1}, "balance_weight=-0.1"),
    (PretrainConfig, RUN | {"values_lr_scale": 0.0}, "values_lr_scale=0.0"),
    (
        PretrainConfig,
        RUN | {"grad_accum_steps": 2, "balance_weight": 0.1},
        "grad_accum_steps=2 balance_weight=0, 0.1",
    ),
    (
        FinetuneConfig,
        TEACH | {"steps": 9, "optim": OptimConfig(warmup_steps=9)},
        "optim.warmup_steps=9 steps=9",
    ),
    (FinetuneConfig, TEACH | {"batch_size": 6, "grad_accum_steps": 4}, "=6 steps=4"),
    (FinetuneConfig, TEACH | {"eval_every": -1}, "eval_every=-1"),
    (FinetuneConfig, TEACH | {"on_nan": "skip"}, "on_nan=skip skip=K"),
]


@pytest.mark.parametrize(("kind", "values", "named"), CLASHES)
def test_a_clash_is_refused_by_keys_and_values(kind, values, named):
    with pytest.raises(ConfigError) as caught:
        kind(**values)

    assert [part for part in named.split(" ") if part not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


CLASSES = [
    *(
        kind
        for kind in vars(config_room).values()
        if isinstance(kind, type) and dataclasses.is_dataclass(kind)
    ),
    *(BenchConfig, DemoConfig),
]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_class_declares_at_most_twelve_settings_beside_its_sections(kind):
    def is_section(annotation) -> bool:
        parts = (annotation, *typing.get_args(annotation))
        return any(dataclasses.is_dataclass(part) for part in parts)

    types = typing.get_type_hints(kind)
    own = vars(kind)["__annotations__"].keys()  # without inherited ones
    settings = [field.name for field in dataclasses.fields(kind) if field.name in own]

    assert len([name for name in settings if not is_section(types[name])]) <= 12


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
    bos_tokens=(1,),
    eos_token=2,
    other_ends=(3,),
    config={"architectures": ["LlamaForCausalLM"], "rope_scaling": {"factor": 2.0}},
    files={"chat_template.jinja": "{{ messages }}"},
    data=None,
)
RETROFIT = RetrofitConfig(
    base="runs/imported", run_dir="runs/retrofit", data=DataConfig()
)
LINEAGES = {
    "dense": Lineage(PretrainConfig(run_dir="r", model=ModelConfig(memory=None))),
    "long": Lineage(pretrain=LONG),
    "retrofitted": Lineage(imported=IMPORTED, retrofit=RETROFIT),
    "taught": Lineage(PLAIN, finetune=FinetuneConfig(base="runs/plain", run_dir="r")),
    "by lora": Lineage(
        imported=IMPORTED,
        finetune=FinetuneConfig(
            base="r", run_dir="x", facts="f.jsonl", teach="statements", optim=LORA
        ),
    ),
}


@pytest.mark.parametrize("want", LINEAGES.values(), ids=LINEAGES)
def test_a_lineage_survives_json(want):
    parts = zip(Lineage._fields, want, strict=True)
    record = {name: part and dataclasses.asdict(part) for name, part in parts}

    got = lineage_of(json.loads(json.dumps(record)))

    assert got == want
    assert config_hash(got.own) == config_hash(want.own)


def test_configs_that_differ_in_one_value_have_other_hashes():
    one, other = (PretrainConfig(run_dir="r", seed=seed) for seed in (0, 1))

    assert config_hash(one) != config_hash(other)


def with_memory(**settings) -> dict:
    record = dataclasses.asdict(PretrainConfig(run_dir="r"))
    record["model"]["memory"] |= settings
    return record


BAD_RECORDS = {
    "none": (None, "config.json"),
    "text": ("text", "config.json"),
    "empty": ({}, "config.json"),
    "type": ({"run_dir": "r", "steps": "many"}, "config.json"),
    "unknown key": (with_memory(colour="green"), "config.json.*colour"),
    "clash": (with_memory(key_dim=7), "memory.key_dim=7"),
}


@pytest.mark.parametrize(("pretrain", "named"), BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_a_record_that_describes_no_run_is_refused(tmp_path, pretrain, named):
    record = {"pretrain": pretrain, "finetune": None, "tokenizer_hash": "0" * 16}
    (tmp_path / "config.json").write_text(json.dumps(record))

    with pytest.raises(ConfigError, match=named):
        load_run(tmp_path)


def test_a_record_that_is_no_object_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("[]")

    with pytest.raises(ConfigError, match=r"config\.json"):
        load_run(tmp_path)


# --- the names of facts and texts ---


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("squad", ("squad", None, None, None)),
        ("squad/v2.0:3.0.0:train[:10%]", ("squad/v2.0", "3.0.0", None, "train[:10%]")),
        ("wikipedia/20230601.en:train", ("wikipedia/20230601.en", None, None, "train")),
        ("my_facts:1.0.0", ("my_facts", "1.0.0", None, None)),
        ("a:b+c[5:]", ("a", None, None, "b+c[5:]")),
        ("/d:e/my/1.0.0", (None, None, "/d:e/my/1.0.0", None)),
        ("./my:new[-5:]", (None, None, "./my", "new[-5:]")),
        ("sets/my/1.0.0:new", (None, None, "sets/my/1.0.0", "new")),
        ("my/1.0.0", (None, None, "my/1.0.0", None)),
    ],
)
def test_a_data_set_is_a_name_or_a_folder_with_a_split(source, parts):
    assert config_room.parse_data_set(f"tfds:{source}") == parts


@pytest.mark.parametrize(
    "source", ["", "a b", "squad:train[", "a/b/c", "squad:", "a:b:c"]
)
def test_another_form_of_a_data_set_is_refused(source):
    with pytest.raises(ConfigError, match="not of the form tfds:NAME"):
        config_room.parse_data_set(f"tfds:{source}")


def test_folders_of_data_sets_are_recorded_as_absolute_and_names_as_they_are(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    data = DataConfig(facts="tfds:sets/my/1.0.0:new", background="tfds:lm1b:train[:1%]")

    data = config_room.with_absolute_paths(data)

    assert data.facts == f"tfds:{tmp_path}/sets/my/1.0.0:new"
    assert data.background == "tfds:lm1b:train[:1%]"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("d/facts.jsonl.gz", "facts"),
        ("tfds:squad/v1.1:train[:10%]", "squad-v1-1-train-10"),
        ("tfds:/d/my/1.0.0", "my-1-0-0"),
    ],
)
def test_a_source_gives_a_file_its_name(source, name):
    assert config_room.short_name(source) == name


@pytest.mark.parametrize(
    "fields", ["question", "question=", "=a", "a=b", "text=a,text=b", "", "text=a,"]
)
def test_fields_of_another_form_are_refused(fields):
    with pytest.raises(ConfigError, match="is not KEY=FIELD"):
        DataConfig(background="tfds:lm1b", fields=fields)


def test_fields_of_a_file_are_refused():
    with pytest.raises(ConfigError, match="a file has keys of its own"):
        DataConfig(facts="facts.jsonl", fields="text=a")
    with pytest.raises(ConfigError, match="a file has keys of its own"):
        FinetuneConfig(**TEACH, fields="question=a,answers=b")
