"""What the long walks share."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(scope="module", autouse=True)
def quick_compilation(tmp_path_factory):
    # No program here runs long enough to repay its optimization, and the runs that
    # are done twice need not compile it twice.
    folder = str(tmp_path_factory.mktemp("compiled"))
    settings = {  # here, and as they are by default
        "jax_disable_most_optimizations": (True, False),
        "jax_compilation_cache_dir": (folder, None),
        "jax_persistent_cache_min_compile_time_secs": (0.0, 1.0),
        "jax_persistent_cache_min_entry_size_bytes": (-1, 0),
    }
    for name, (here, _) in settings.items():
        jax.config.update(name, here)
    compilation_cache.reset_cache()
    jax.clear_caches()  # what a walk compiles is counted: none starts with another's
    yield
    for name, (_, default) in settings.items():
        jax.config.update(name, default)
    compilation_cache.reset_cache()
