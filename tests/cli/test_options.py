"""The help of a verb, and the list of its options."""

from typing import Annotated, Literal

import pytest
import tyro

from smf_jax import cli
from smf_jax.cli.commands import VERBS
from smf_jax.cli.options import options_of, parse

CONFIG_VERBS = {
    "pretrain": "configs/world.py",
    "retrofit": "configs/retrofit_world.py",
    "finetune": "configs/smf_world.py",
}


def bake(
    cake: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CAKE")],
    /,
    oven: Literal["gas", "electric"] = "gas",
    minutes: int = 40,
):
    """Bake a cake.

    Args:
      cake: name of the cake
      oven: kind of oven, which has a description of more than one line in the
        docstring
      minutes: time in the oven
    """
    return cake, oven, minutes


def help_of(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        cli.main([*arguments, "--help"])
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_arguments_reach_the_function():
    arguments = ["sponge", "--minutes", "9"]

    assert parse(bake, "bake", arguments) == ("sponge", "gas", 9)


def test_the_usage_names_positional_arguments(capsys):
    with pytest.raises(SystemExit):
        parse(bake, "bake", ["--help"])

    first, *_ = capsys.readouterr().out.splitlines()
    assert first == "usage: smf bake [OPTIONS] CAKE"


def test_a_line_break_in_a_docstring_is_none_in_the_help(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    with pytest.raises(SystemExit):
        parse(bake, "bake", ["--help"])

    out = capsys.readouterr().out
    assert "a description of more than one line in the docstring (default" in out


def test_options_are_listed_with_meanings_and_choices():
    _, oven, minutes = options_of(lambda arguments: parse(bake, "bake", arguments))

    assert oven["flags"] == ["--oven"]
    assert oven["choices"] == ["gas", "electric"]
    assert minutes["meaning"] == "time in the oven"


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_fits_80_columns(capsys, verb):
    assert max(map(len, help_of(capsys, verb).splitlines())) <= 80


@pytest.mark.parametrize("verb", CONFIG_VERBS)
def test_the_most_used_options_come_first(capsys, verb):
    without, given = help_of(capsys, verb), help_of(capsys, verb, CONFIG_VERBS[verb])

    for out in (without, given):
        assert out.startswith(f"usage: smf {verb} CONFIG [OPTIONS]\n")
        words = [line.split()[0] for line in out.splitlines() if "  --" in line]
        assert {"--run-dir", "--steps", "--optim.learning-rate"} <= {*words[:7]}
    assert "--optim.warmup-steps" in given
    assert "--optim.warmup-steps" not in without
