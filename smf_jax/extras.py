"""The optional dependencies of the package, and how to install them."""

import json
from importlib.metadata import PackageNotFoundError, distribution

# What each extra is for, and distributions that it installs.
EXTRAS = {
    "cuda": ("NVIDIA GPUs", ("jax-cuda13-plugin", "nvidia-cudnn-cu13")),
    "tpu": ("TPUs", ("libtpu",)),
    "plan": (
        "smf plan: compilers for TPUs and GPUs",
        ("libtpu", "jax-cuda13-plugin", "nvidia-cuda-nvcc"),
    ),
    "torch": (
        "comparison with PyTorch, in smf bench and smf_jax.torch_baseline",
        ("torch", "transformers", "peft"),
    ),
}


def is_installed(extra: str) -> bool:
    """Reports whether all distributions of an extra are installed."""
    try:
        for name in EXTRAS[extra][1]:
            distribution(name)
    except PackageNotFoundError:
        return False
    return True


def install_command(extra: str) -> str:
    """Returns the command that adds an extra to this installation of the package."""
    origin = json.loads(distribution("smf-jax").read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable", False):
        return f'pip install --constraint constraints.txt --editable ".[{extra}]"'
    return f'pip install "smf-jax[{extra}]"'
