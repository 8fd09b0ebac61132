"""Sets up jax for all tests: eight devices, and no implicit rank promotion."""

import gc
import os
from pathlib import Path

import hypothesis
import jax
import pytest

# Another platform is for tests of kernels alone. Child processes get it, too: jax
# would look for the devices of every compiler that is installed.
PLATFORM = os.environ.get("SMF_TEST_PLATFORM", "cpu")
os.environ["JAX_PLATFORMS"] = PLATFORM
# Tests compute little, so most of their time is compilation: machine code is not
# optimized, and comes from the older emitters of XLA, a program in one piece. On a busy
# machine, devices may wait long for each other.
FLAGS = [
    "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_cpu_collective_call_terminate_timeout_seconds=300",
]
if jax.__version_info__ < (0, 11):  # later ones have no older emitters
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
if PLATFORM == "cpu":
    flags = [os.environ.get("XLA_FLAGS", ""), *FLAGS]
    os.environ["XLA_FLAGS"] = " ".join(flags).strip()
# Tracing allocates many objects and frees most: the default thresholds of garbage
# collection took a tenth of the time.
gc.set_threshold(200_000, 50, 100)
# The source lines of operations took a twentieth of the time.
jax.config.update("jax_traceback_in_locations_limit", 0)
jax.config.update("jax_platforms", PLATFORM)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# No deadline, as the first example of a test compiles; the same examples in each run.
hypothesis.settings.register_profile(
    "tests", deadline=None, derandomize=True, max_examples=50
)
hypothesis.settings.load_profile("tests")

# The longest files first, as `make test` gives out whole files in this order: at the
# end no worker is left with a long one.
LONGEST = """
    faults/test_kill faults/test_processes plan/test_paper quality/test_forgetting
    train/test_mesh plan/test_abstract_step faults/test_multihost train/test_step
    train/test_prefix_cache integration/test_mesh_walk integration/test_retrofit
    integration/test_teach integration/test_walk real/test_questions real/test_model
    integration/test_demo integration/test_resume integration/test_budget test_examples
""".split()


@pytest.fixture(scope="session", autouse=True)
def same_products():
    """Gives every CPU the same products, where a test names none."""
    from smf_jax import sharding

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "has_amx", lambda: False)
        yield


def pytest_collection_modifyitems(items):
    order = {Path(__file__).parent / f"{n}.py": at for at, n in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))
