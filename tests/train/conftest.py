"""What tests of steps share."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

SETTINGS = {  # here, and as they are by default
    "jax_persistent_cache_min_compile_time_secs": (0.1, 1.0),
    "jax_persistent_cache_min_entry_size_bytes": (-1, 0),
}


@pytest.fixture(scope="package", autouse=True)
def one_compilation_of_each_program(tmp_path_factory):
    # Many tests make the same step anew, which jax takes for another function.
    folder = tmp_path_factory.getbasetemp() / "compiled-steps"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    for name, (here, _) in SETTINGS.items():
        jax.config.update(name, here)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    for name, (_, default) in SETTINGS.items():
        jax.config.update(name, default)
    compilation_cache.reset_cache()
