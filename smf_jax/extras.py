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
    "gguf": ("models in GGUF files", ("gguf",)),
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
    """Returns the command that adds an extra to this installation of the package.

    It installs from where the package came: a clone, a directory, a file, a repository
    or an index.

    Source: the "Direct URL Data Structure" of packaging.python.org.
    """
    origin = json.loads(distribution("smf-jax").read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable", False):
        return f'pip install --constraint constraints.txt --editable ".[{extra}]"'
    name, url = f"smf-jax[{extra}]", origin.get("url")
    if url is None:
        return f'pip install "{name}"'
    if repository := origin.get("vcs_info"):
        url = f"{repository['vcs']}+{url}@{repository['commit_id']}"
    return f'pip install "{name} @ {url}"'
