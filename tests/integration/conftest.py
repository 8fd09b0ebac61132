"""What the long walks share."""

import jax
import pytest

from tests.compiled import configured, keep_in


@pytest.fixture(scope="module", autouse=True)
def quick_compilation(tmp_path_factory):
    # No program here runs long enough to repay its optimization, and the runs that
    # are done twice need not compile it twice.
    folder = str(tmp_path_factory.mktemp("compiled"))
    jax.config.update("jax_disable_most_optimizations", True)
    with configured(keep_in(folder)):
        jax.clear_caches()  # what a walk compiles is counted: none has another's
        yield
    jax.config.update("jax_disable_most_optimizations", False)
