"""Completion of the `smf` command, in the shells themselves."""

import os
import shutil
import subprocess

import pytest

from smf_jax.cli.commands import VERBS
from smf_jax.cli.completion import write_script

# What is typed, with some of the completions that it has.
TYPED = {
    "smf fine": {"finetune"},
    "smf ask ru": {"runs"},
    "smf finetune conf": {"config.py"},
    "smf finetune config.py --optim.me": {"--optim.method"},
    "smf finetune config.py --optim.method l": {"lora"},
    "smf finetune config.py --base ru": {"runs"},
    "smf retrofit config.py --data.seq-l": {"--data.seq-len"},
    "smf plan config.py --data.batch": {"--data.batch-size"},
    "smf bench --parts ra": {"ranking"},
    "smf completion z": {"zsh"},
    "smf doctor --deb": {"--debug"},
}
BASH = """
source "$1"
COMP_WORDS=({words}) COMP_CWORD={last}
_shtab_smf
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
# Types the line and Tab on a terminal of its own, and prints the line that results.
ZSH = """
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "fpath=($1:h \\$fpath); autoload -Uz compinit; compinit -u -D
show() {{ zle complete-word; print -r -- \\$BUFFER > line.new; mv line.new line }}
zle -N show; bindkey '^I' show; print READ''Y"
zpty -r shell output '*READY*'
zpty -n -w shell {typed}$'\\t'
until [[ -e line ]] {{ sleep 0.02 }}
cat line
"""


@pytest.fixture(scope="module")
def scripts():
    return {shell: write_script(VERBS, shell) for shell in ("bash", "zsh", "fish")}


@pytest.fixture
def complete(scripts, tmp_path):
    """Returns a function from a shell and its program to what the program prints."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "config.py").touch()

    def run(shell: str, program: str) -> list[str]:
        if shutil.which(shell) is None:
            pytest.skip(f"there is no {shell}")
        script = tmp_path / "scripts" / "_smf"  # where zsh looks for it
        script.parent.mkdir()
        script.write_text(scripts[shell])
        quiet = {"fish": ["--no-config"], "zsh": ["-f"], "bash": ["--norc"]}[shell]
        done = subprocess.run(
            [shell, *quiet, "-c", program, *(shell,) * (shell != "fish"), str(script)],
            cwd=tmp_path,
            env={**os.environ, "HOME": str(tmp_path), "TERM": "dumb"},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return done.stdout.splitlines()

    return run


@pytest.mark.parametrize("typed", TYPED)
def test_bash_completes(complete, typed):
    words = typed.split(" ")

    program = BASH.format(words=typed, last=len(words) - 1)

    assert set(complete("bash", program)) == TYPED[typed]


@pytest.mark.parametrize("typed", TYPED)
def test_fish_completes(complete, typed):
    program = f"source $argv[1]; complete --do-complete '{typed}'"

    lines = complete("fish", program)

    assert {line.split("\t")[0].rstrip("/") for line in lines} == TYPED[typed]


@pytest.mark.parametrize("typed", TYPED)
def test_zsh_completes(complete, typed):
    (line,) = complete("zsh", ZSH.format(typed=f"'{typed}'"))

    assert {line.split()[-1].rstrip("/")} == TYPED[typed]
