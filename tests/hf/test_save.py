"""Exports are complete, correct, and what other programs expect."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from smf_jax import hf
from smf_jax.config import ConfigError, LoraConfig
from smf_jax.hf import save
from smf_jax.hf.save import ADAPTER
from smf_jax.model.lora import add_lora
from tests import tiny
from tests.integration.files import read_json
from tests.tiny import (
    calibrated_config,
    make_model,
    memory_config,
    model_config,
    named,
)


@pytest.fixture
def model():
    return make_model(model_config(memory=None))


@pytest.fixture
def export(tokenizer, tmp_path):
    """Returns a function that exports a model to the directory `out`."""

    def export(model, **options):
        hf.export_model(model, tokenizer, tmp_path / "out", **options)
        return tmp_path / "out"

    return export


def test_a_directory_that_is_not_empty_is_left_alone(model, export, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")

    with pytest.raises(ConfigError, match="is not empty"):
        export(model)

    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_every_file_may_be_read_by_those_who_may_read_the_configuration(
    model, export, tmp_path
):
    export(model)

    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert len(modes) == 1


def test_a_configuration_of_another_model_leaves_nothing(model, export, tmp_path):
    config = save.write_config(model.config) | {"rope_theta": 7.0}

    with pytest.raises(hf.ExportError, match="logits differ"):
        export(model, config=config)

    assert list(tmp_path.iterdir()) == []


def test_an_empty_directory_is_filled_and_others_left_alone(model, export, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "notes.txt").write_text("mine")

    out = export(model)

    assert (out / "config.json").is_file()
    assert not (out / ADAPTER).exists()  # there is no LoRA
    assert (tmp_path / "out.partial" / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.partial"]


def test_no_file_is_written_outside(model, export, tmp_path):
    with pytest.raises(ConfigError, match="are not files of a model"):
        export(model, carried={"../escaped.txt": "x"})

    assert list(tmp_path.iterdir()) == []


def test_a_key_that_was_ignored_is_exported(model, export):
    config = save.write_config(model.config) | {"window_pattern": 3}

    with pytest.raises(ConfigError, match="window_pattern=3"):
        export(model, config=config)
    out = export(model, config=config, ignore=("window_pattern",))

    assert read_json(out / "config.json")["window_pattern"] == 3


@pytest.mark.parametrize("name", ["model.norm.weight", "model.memory_values.0"])
def test_a_changed_parameter_leaves_nothing(export, tmp_path, monkeypatch, name):
    model = make_model(model_config(memory=memory_config(layers=(0,))))

    def spoil(tensors, path, metadata):
        tensors[name] = tensors[name].copy()
        tensors[name].flat[-1] *= 1 + 1e-6  # the last bit, and no logit may show it
        save_file(tensors, path, metadata)

    monkeypatch.setattr(save, "save_file", spoil)

    with pytest.raises(hf.ExportError, match="parameters differ from the model's"):
        export(model)

    assert list(tmp_path.iterdir()) == []


def test_carried_files_are_exported_as_they_were_imported(model, export):
    carried = {"chat_template.jinja": "{{ messages }}\n", "tokenizer_config.json": "{}"}
    config = save.write_config(model.config) | {"torch_dtype": "bfloat16", "other": 0}

    out = export(model, config=config, carried=carried)

    assert {name: (out / name).read_text() for name in carried} == carried
    written = read_json(out / "config.json")
    assert written == config | {"torch_dtype": "float32", "eos_token_id": 1}


def test_a_model_with_memory_layers_is_of_its_own_type_also_in_bfloat16(export):
    model = make_model(model_config())

    out = export(model, dtype="bfloat16")

    config = read_json(out / "config.json")
    assert config["model_type"] == "smf_memory"
    assert config["decoder"]["model_type"] == "llama"
    expected = json.loads(json.dumps(dataclasses.asdict(memory_config())))
    assert config["memory"] == expected
    loaded = named(hf.import_model(out))
    for name, array in named(model).items():
        rounded = array.astype(jnp.bfloat16).astype(jnp.float32)
        np.testing.assert_array_equal(loaded[name], rounded)
    tensors = load_file(out / "model.safetensors").values()
    assert {str(tensor.dtype) for tensor in tensors} == {"bfloat16"}


# --- a calibrated memory ---


@pytest.fixture
def calibrated():
    return make_model(model_config(memory=calibrated_config(num_rows=7)))


def test_slots_of_a_calibrated_memory_stay_integers_in_bfloat16(calibrated, export):
    out = export(calibrated, dtype="bfloat16")

    tensors = load_file(out / "model.safetensors")
    types = {name: str(tensor.dtype) for name, tensor in tensors.items()}
    assert types.pop("model.layers.1.mlp.memory.slot_ids") == "int32"
    assert set(types.values()) == {"bfloat16"}
    slots = named(hf.import_model(out))["blocks/1/memory/slots"]
    np.testing.assert_array_equal(slots, named(calibrated)["blocks/1/memory/slots"])


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda slots: slots[::-1], "does not name 7 slots in order"),
        (lambda slots: slots + 1, "does not name 7 slots in order"),
        (lambda slots: np.where(slots == 25, 24, slots), "then 25 for each row"),
        (lambda slots: slots.astype(np.float32), "slot_ids is F32, not one of I32"),
    ],
)
def test_slots_that_are_not_those_of_rows_are_refused(calibrated, export, edit, words):
    out = export(calibrated)
    tensors = load_file(out / "model.safetensors")
    name = "model.layers.1.mlp.memory.slot_ids"
    tensors[name] = np.ascontiguousarray(edit(tensors[name]))
    save_file(tensors, out / "model.safetensors", {"format": "pt"})

    with pytest.raises(ConfigError, match=words):
        hf.import_model(out)


# --- LoRA ---

LORA = LoraConfig(rank=3, alpha=5.0, targets=r".*/attention/(query|value)|.*/down")


@pytest.fixture
def taught():
    """Returns a model with LoRA weights that are not 0."""

    def make():
        model = make_model(model_config(memory=None))
        add_lora(model, LORA, rngs=nnx.Rngs(0))
        return model

    return tiny.fill(make, seed=3)


def test_lora_is_merged_and_its_adapter_names_its_layers_and_base(taught, export):
    tokens = np.arange(10, dtype=np.int32).reshape(2, 5)
    want = np.asarray(tiny.call(taught, tokens)[0])

    out = export(taught, base_name="somebody/model")

    got = np.asarray(tiny.call(hf.import_model(out), tokens)[0])
    # One rounding of each kernel, float32.
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
    config = read_json(out / ADAPTER / "adapter_config.json")
    assert (config["r"], config["lora_alpha"]) == (3, pytest.approx(5.0))
    assert config["base_model_name_or_path"] == "somebody/model"
    assert config["revision"] is None
    assert sorted(config["target_modules"]) == sorted(
        f"model.layers.{layer}.{part}"
        for layer in (0, 1)
        for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
    )
    assert len(load_file(out / ADAPTER / "adapter_model.safetensors")) == 2 * 6


def test_a_merge_that_changes_logits_leaves_nothing(
    taught, export, tmp_path, monkeypatch
):
    def spoil(model):
        merge(model)
        model.norm.scale[...] += 0.1

    merge = save.merge_lora
    monkeypatch.setattr(save, "merge_lora", spoil)

    with pytest.raises(hf.ExportError, match="merging LoRA changes logits"):
        export(taught)

    assert list(tmp_path.iterdir()) == []
