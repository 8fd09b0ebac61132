"""Reports versions, devices and extras, and what has known problems."""

import os
import platform
from collections.abc import Iterator
from importlib.metadata import version

import jax

from smf_jax.extras import EXTRAS, install_command, is_installed

LIBRARIES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain"),
    "tensorflow-datasets",
)
SLOW_SCATTER = ("0.10.2", "0.11.0")  # openxla/xla#46225
WRONG_SCATTER = (0, 11, 2)  # first version with openxla/xla#49143, in a scan


def examine() -> Iterator[str]:
    """Yields lines about versions, devices and extras, then about what to change."""
    python = f"python {platform.python_version()}  {platform.platform()}"
    yield f"smf_jax {version('smf-jax')}  {python}"
    yield "  ".join(f"{name} {version(name)}" for name in LIBRARIES)
    devices = jax.devices()
    kinds = sorted({device.device_kind for device in devices})
    yield f"{len(devices)} x {', '.join(kinds)} ({jax.default_backend()})"
    yield f"{os.cpu_count()} CPU cores"
    for extra, (purpose, _) in EXTRAS.items():
        missing = f"not installed: {install_command(extra)}"
        state = "installed" if is_installed(extra) else missing
        yield f"extra {extra} ({purpose}): {state}"
    yield from list(_problems()) or ["no known problems"]


def _problems() -> Iterator[str]:
    jax_version, jaxlib_version = version("jax"), version("jaxlib")
    release = tuple(int(part) for part in jax_version.split(".")[:3])
    if jaxlib_version in SLOW_SCATTER:
        yield (
            f"CHANGE jaxlib {jaxlib_version}: float32 scatter-add on GPU is hundreds "
            "of times too slow; install jax 0.10.1, or 0.11.1 or later"
        )
    if jax.default_backend() == "tpu" and release >= WRONG_SCATTER:
        yield (
            f"CHANGE jax {jax_version}: gradients may be wrong on TPU "
            "(openxla/xla#49143); install jax below 0.11.2"
        )
    if jax_version != jaxlib_version:
        yield (
            f"CHANGE jax {jax_version} with jaxlib {jaxlib_version}: install the same "
            "version of both"
        )
    has_driver = os.path.exists("/proc/driver/nvidia/version")
    if jax.default_backend() == "cpu" and has_driver:
        command = install_command("cuda")
        yield f"CHANGE jax does not see this host's NVIDIA GPU: {command}"
