"""The runs and the compiled programs that walks share."""

import json

import jax
import pytest

from smf_jax.config import SaveConfig
from tests import bases, tiny
from tests.compiled import configured, quick
from tests.integration.commands import Commands


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    return bases.shared_folder(tmp_path_factory)


@pytest.fixture(scope="session")
def base(shared):
    """Returns the pretrained run with its usage, which must not be written to."""
    return bases.make_once(shared / "base", bases.make_base)


@pytest.fixture(scope="session")
def plain(shared):
    """Returns the pretrained run without a memory, which must not be written to."""
    return bases.make_once(shared / "plain", bases.make_plain)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation(shared):
    with configured(quick(str(shared / "compiled"))):
        jax.clear_caches()  # tests count what is compiled
        yield


@pytest.fixture(scope="module")
def commands(tmp_path_factory, request):
    return Commands(tmp_path_factory.mktemp(request.module.__name__.split(".")[-1]))


@pytest.fixture(scope="module")
def taught(commands, base):
    """Returns a run taught by SMF, evaluated at 4 and 6, with checkpoints 2, 4, 6."""
    run_dir, save = commands.folder / "smf", SaveConfig(every=2, keep=9, best="known")
    schedule = {"steps": 6, "eval_every": 4, "save": save}
    config = tiny.finetune_config(base, run_dir, teach="statements", **schedule)
    assert commands.run_config("smf", config) == 0
    return run_dir


@pytest.fixture(scope="module")
def exported(commands, plain):
    folder = commands.folder / "exported"
    assert commands.run("export", "export-hf", str(plain), str(folder)) == 0
    return folder


@pytest.fixture(scope="module")
def imported(commands, exported):
    run_dir = commands.folder / "imported"
    assert commands.run("import", "import-hf", str(exported), str(run_dir)) == 0
    return run_dir


@pytest.fixture
def facts(tmp_path):
    """Returns a file of twenty facts."""
    facts = [{"question": f"who is {n} ?", "answers": ["nobody"]} for n in range(20)]
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(fact) + "\n" for fact in facts))
    return path


@pytest.fixture
def run(commands, capsys):
    """Returns a function that runs a verb or a configuration: its code and output."""

    def run(verb, *arguments) -> tuple[int, str]:
        capsys.readouterr()
        if isinstance(verb, str):
            code = commands.run("run", verb, *map(str, arguments))
        else:  # a configuration
            code = commands.run_config("run", verb, *map(str, arguments))
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run
