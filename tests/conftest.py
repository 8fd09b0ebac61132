"""The hard setting is the normal one: eight devices, no ranks matched in silence."""

import os

import hypothesis
import jax

# For the processes that tests start, too: jax would look for the devices of every
# compiler that is installed, and print what it does not find.
os.environ["JAX_PLATFORMS"] = "cpu"
# With so few numbers the time goes into compiling, so the machine code may be slow.
flags = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{flags} --xla_backend_optimization_level=0".strip()
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# No deadline: the first example of a test compiles. The same examples every time.
hypothesis.settings.register_profile(
    "tests", deadline=None, derandomize=True, max_examples=50
)
hypothesis.settings.load_profile("tests")
