"""What is installed, and how to install what is not."""

import json
import subprocess
import sys
from importlib import metadata

import pytest

from smf_jax import doctor, extras
from smf_jax.extras import EXTRAS, install_command, is_installed


class Installed:
    """A distribution that was installed from a place."""

    def __init__(self, origin):
        self.origin = origin

    def read_text(self, name):
        assert name == "direct_url.json"
        return self.origin and json.dumps(self.origin)


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, 'pip install "smf-jax[plan]"'),
        (
            {"url": "file:///a.whl", "archive_info": {}},
            'pip install "smf-jax[plan] @ file:///a.whl"',
        ),
        (
            {"url": "file:///a", "dir_info": {}},
            'pip install "smf-jax[plan] @ file:///a"',
        ),
        (
            {
                "url": "https://host/a.git",
                "vcs_info": {"vcs": "git", "commit_id": "12ab"},
            },
            'pip install "smf-jax[plan] @ git+https://host/a.git@12ab"',
        ),
        (
            {"url": "file:///a", "dir_info": {"editable": True}},
            'pip install --constraint constraints.txt --editable ".[plan]"',
        ),
    ],
)
def test_the_command_is_that_of_this_installation(monkeypatch, origin, command):
    monkeypatch.setattr(extras, "distribution", lambda name: Installed(origin))

    assert install_command("plan") == command


def test_the_extras_are_those_of_the_package():
    of_package = set(metadata.metadata("smf-jax").get_all("Provides-Extra"))

    for_developers = {extra for extra in of_package if extra.startswith("test")}
    assert of_package - for_developers - {"docs"} == EXTRAS.keys()


def test_an_extra_is_there_if_all_of_it_is(monkeypatch):
    monkeypatch.setitem(EXTRAS, "one", ("", ("numpy",)))
    monkeypatch.setitem(EXTRAS, "both", ("", ("numpy", "no-such-distribution")))

    assert is_installed("one")
    assert not is_installed("both")


def test_the_doctor_says_how_to_install_each_missing_extra(monkeypatch):
    monkeypatch.setattr(doctor, "is_installed", lambda extra: extra == "torch")

    lines = list(doctor.examine())

    assert lines[0].startswith(f"smf_jax {metadata.version('smf-jax')}  python ")
    states = {line.split()[1]: line for line in lines if line.startswith("extra ")}
    assert states.keys() == EXTRAS.keys()
    assert states["torch"].endswith(": installed")
    assert states["cuda"].endswith(f": not installed: {install_command('cuda')}")


def test_the_version_is_printed_without_jax():
    program = (
        "import sys; from smf_jax import cli; cli.main(['--version']); "
        "sys.exit('jax' in sys.modules)"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout == f"smf_jax {metadata.version('smf-jax')}\n"
