"""The examples run, and do what they say."""

import runpy
from pathlib import Path

import pytest

import smf_jax

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str) -> dict:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_a_loop_of_ones_own_teaches_an_imported_model(tmp_path):
    example = load("own_loop")

    losses, changed = example["main"](example["make_directory"](tmp_path))

    assert losses[-1] < losses[0] - 1.5
    assert 0 < changed <= example["STEPS"] * 50


@pytest.mark.parametrize("name", smf_jax.__all__)
def test_every_public_name_can_be_imported(name):
    assert getattr(smf_jax, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        smf_jax.nothing  # noqa: B018
