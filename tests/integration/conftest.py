"""The runs and the compiled programs that the walks share."""

import jax
import pytest

from tests import bases
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


@pytest.fixture
def run(commands, capsys):
    """Returns a function that runs a verb and returns its exit code and output."""

    def run(*arguments) -> tuple[int, str]:
        capsys.readouterr()
        code = commands.run("run", *map(str, arguments))
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run
