"""The hard setting is the normal one: eight devices, no ranks matched in silence."""

import gc
import os
from pathlib import Path

import hypothesis
import jax

# Another one is for tests of kernels alone. It is named for the processes that tests
# start, too: jax would look for the devices of every compiler that is installed.
PLATFORM = os.environ.get("SMF_TEST_PLATFORM", "cpu")
os.environ["JAX_PLATFORMS"] = PLATFORM
# With so few numbers the time goes into compiling, so the machine code may be slow: it
# is not optimized, comes of XLA's older emitters, and of a program in one piece.
# Devices that wait for one another are given time where the machine is busy.
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
# To trace makes many objects and leaves few; to look through all that lives as often as
# Python does took a tenth of the time.
gc.set_threshold(200_000, 50, 100)
# Nobody looks up the lines that a program comes of, which cost a twentieth.
jax.config.update("jax_traceback_in_locations_limit", 0)
jax.config.update("jax_platforms", PLATFORM)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# No deadline: the first example of a test compiles. The same examples every time.
hypothesis.settings.register_profile(
    "tests", deadline=None, derandomize=True, max_examples=50
)
hypothesis.settings.load_profile("tests")

# The longest first, so that at the end no worker is alone with one of them:
# `make test` gives out whole files in this order.
LONGEST = """
    faults/test_kill faults/test_processes plan/test_paper quality/test_forgetting
    train/test_mesh plan/test_abstract_step faults/test_multihost train/test_step
    train/test_prefix_cache integration/test_mesh_walk integration/test_retrofit
    integration/test_walk integration/test_demo integration/test_resume test_examples
""".split()


def pytest_collection_modifyitems(items):
    places = {Path(__file__).parent / f"{n}.py": at for at, n in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
