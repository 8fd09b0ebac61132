"""Looks at versions and devices, and names the combinations that are known to fail."""

import os
import platform
from collections.abc import Iterator
from importlib.metadata import version

import jax

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")
SLOW_SCATTER = ("0.10.2", "0.11.0")  # openxla/xla#46225
WRONG_SCATTER = (0, 11, 2)  # and later, as far as is known, in a scan


def examine() -> Iterator[str]:
    """Yields lines about this machine: what there is, then what to change."""
    yield f"python {platform.python_version()}  {platform.platform()}"
    yield "  ".join(f"{name} {version(name)}" for name in LIBRARIES)
    devices = jax.devices()
    kinds = sorted({device.device_kind for device in devices})
    yield f"{len(devices)} x {', '.join(kinds)} ({jax.default_backend()})"
    yield f"{os.cpu_count()} processor cores"
    problems = list(_problems())
    yield from problems
    if not problems:
        yield "nothing to change"


def _problems() -> Iterator[str]:
    if version("jaxlib") in SLOW_SCATTER:
        yield (
            f"CHANGE jaxlib {version('jaxlib')} adds float32 rows on GPU hundreds of "
            "times too slowly: install jax 0.10.1, or 0.11.1 and later"
        )
    if jax.default_backend() == "tpu" and _release("jax") >= WRONG_SCATTER:
        yield (
            f"CHANGE jax {version('jax')} may add up wrong gradients on TPU "
            "(openxla/xla#49143): install a jax below 0.11.2"
        )
    if version("jax") != version("jaxlib"):
        yield (
            f"CHANGE jax {version('jax')} with jaxlib {version('jaxlib')}: "
            "install both in one version"
        )
    if jax.default_backend() == "cpu" and _has_nvidia_driver():
        yield (
            "CHANGE this host has an NVIDIA GPU that jax does not see: install "
            "smf-jax[cuda]"
        )


def _release(library: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version(library).split(".")[:3])


def _has_nvidia_driver() -> bool:
    return os.path.exists("/proc/driver/nvidia/version")
