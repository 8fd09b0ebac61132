"""What goes out is whole, is what it should be, and is what other programs expect."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from smf_jax import hf
from smf_jax.config import ConfigError, LoraConfig
from smf_jax.data.tokenizer import train_tokenizer
from smf_jax.hf import save
from smf_jax.hf.adapter import ADAPTER
from smf_jax.model.lora import add_lora
from tests import tiny
from tests.tiny import make_model, memory_config, model_config, named

TOKENIZER = train_tokenizer(["a b c"], "word", 9)


def export(model, folder, **options):
    hf.export_model(model, TOKENIZER, folder, **options)
    return folder


def test_a_directory_that_holds_something_is_left_as_it_is(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")

    with pytest.raises(ConfigError, match="is not empty"):
        export(make_model(model_config(memory=None)), tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_configuration_that_means_another_model_leaves_nothing(tmp_path):
    model = make_model(model_config(memory=None))
    config = save.write_config(model.config) | {"rope_theta": 7.0}

    with pytest.raises(hf.ExportError, match="other logits"):
        export(model, tmp_path / "out", config=config)

    assert list(tmp_path.iterdir()) == []


def test_what_lies_beside_is_left_as_it_is(tmp_path):
    beside = tmp_path / "out.partial"
    beside.mkdir()
    (beside / "notes.txt").write_text("mine")

    export(make_model(model_config(memory=None)), tmp_path / "out")

    assert (beside / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.partial"]


def test_no_file_is_written_outside(tmp_path):
    model = make_model(model_config(memory=None))

    with pytest.raises(ConfigError, match="do not belong to a model"):
        export(model, tmp_path / "out", carried={"../escaped.txt": "x"})

    assert list(tmp_path.iterdir()) == []


def test_a_key_that_was_set_aside_goes_out_with_the_rest(tmp_path):
    model = make_model(model_config(memory=None))
    config = save.write_config(model.config) | {"window_pattern": 3}

    with pytest.raises(ConfigError, match="window_pattern=3"):
        export(model, tmp_path / "out", config=config)
    export(model, tmp_path / "out", config=config, ignore=("window_pattern",))

    assert hf.read_model_json(tmp_path / "out", "config.json")["window_pattern"] == 3


def test_an_empty_directory_is_filled(tmp_path):
    export(make_model(model_config(memory=None)), tmp_path)

    assert (tmp_path / "config.json").is_file()


@pytest.mark.parametrize("name", ["model.norm.weight", "model.memory_values.0"])
def test_a_file_that_is_not_the_model_leaves_nothing(tmp_path, monkeypatch, name):
    model = make_model(model_config(memory=memory_config(layers=(0,))))

    def spoil(tensors, path, metadata):
        tensors[name] = tensors[name].copy()
        tensors[name].flat[-1] *= 1 + 1e-6  # the last bit, and no logit may show it
        save_file(tensors, path, metadata)

    monkeypatch.setattr(save, "save_file", spoil)

    with pytest.raises(hf.ExportError, match="is not the model, in"):
        export(model, tmp_path / "out")

    assert list(tmp_path.iterdir()) == []


def test_a_model_with_a_memory_is_no_plain_llama(tmp_path):
    export(make_model(model_config()), tmp_path / "out")

    config = hf.read_model_json(tmp_path / "out", "config.json")

    assert config["model_type"] == "smf_memory"
    assert config["memory"] == json.loads(
        json.dumps(dataclasses.asdict(memory_config()))
    )
    assert config["decoder"]["model_type"] == "llama"


def test_files_that_a_model_came_with_go_out_as_they_came(tmp_path):
    model = make_model(model_config(memory=None))
    came = {"chat_template.jinja": "{{ messages }}\n", "tokenizer_config.json": "{}"}
    config = save.write_config(model.config) | {"torch_dtype": "bfloat16", "other": 0}

    out = export(model, tmp_path / "out", config=config, carried=came)

    assert {name: (out / name).read_text() for name in came} == came
    written = hf.read_model_json(out, "config.json")
    assert written == config | {"torch_dtype": "float32", "eos_token_id": 1}


def test_bfloat16_is_the_model_rounded(tmp_path):
    model = make_model(model_config())

    out = export(model, tmp_path / "out", dtype="bfloat16")

    again = named(hf.import_model(out))
    for name, array in named(model).items():
        rounded = array.astype(jnp.bfloat16).astype(jnp.float32)
        np.testing.assert_array_equal(again[name], rounded)
    kinds = {
        str(tensor.dtype) for tensor in load_file(out / "model.safetensors").values()
    }
    assert kinds == {"bfloat16"}


# --- low-rank additions ---


@pytest.fixture
def taught():
    """Returns a model with low-rank additions that are not 0."""

    def make():
        model = tiny.make_model(model_config(memory=None))
        add_lora(model, LORA, rngs=nnx.Rngs(0))
        return model

    return tiny.fill(make, seed=3)


LORA = LoraConfig(rank=3, alpha=5.0, targets=r".*/attention/(query|value)|.*/down")


def logits(model, tokens):
    graph, params = nnx.split(model)
    return jax.jit(lambda p: nnx.merge(graph, p)(jnp.asarray(tokens))[0])(params)


def test_low_rank_additions_are_merged(taught, tmp_path):
    tokens = np.arange(10, dtype=np.int32).reshape(2, 5)
    want = np.asarray(logits(taught, tokens))

    out = export(taught, tmp_path / "out")

    got = np.asarray(logits(hf.import_model(out), tokens))
    # One rounding of each kernel, float32.
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def test_an_adapter_names_all_its_layers_and_its_base(taught, tmp_path):
    out = export(taught, tmp_path / "out", base_name="somebody/model")

    config = hf.read_model_json(out / ADAPTER, "adapter_config.json")

    assert (config["r"], config["lora_alpha"]) == (3, pytest.approx(5.0))
    assert config["base_model_name_or_path"] == "somebody/model"
    assert sorted(config["target_modules"]) == sorted(
        f"model.layers.{layer}.{part}"
        for layer in (0, 1)
        for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
    )
    assert len(load_file(out / ADAPTER / "adapter_model.safetensors")) == 2 * 6


def test_a_model_without_additions_has_no_adapter(tmp_path):
    out = export(make_model(model_config(memory=None)), tmp_path / "out")

    assert not (out / ADAPTER).exists()
