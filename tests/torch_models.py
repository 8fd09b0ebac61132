"""Helpers of tests against PyTorch, which are skipped, or fail, without it."""

import importlib.util
import os
from pathlib import Path

import pytest

MISSING = [
    name
    for name in ("torch", "transformers", "peft")
    if importlib.util.find_spec(name) is None
]


def require_torch() -> None:
    """Skips the calling module if the extra `torch` is not installed.

    Raises:
      RuntimeError: It is not, and SMF_REQUIRE_TORCH=1 demands it.
    """
    if not MISSING:
        return
    reason = f"the extra `torch` is not installed: {', '.join(MISSING)} missing"
    if os.environ.get("SMF_REQUIRE_TORCH") == "1":
        raise RuntimeError(reason)
    pytest.skip(reason, allow_module_level=True)


def save(model, folder: Path, **options) -> Path:
    """Saves a `transformers` model with random parameters, and returns where."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for param in model.parameters():  # a bias of 0 or a norm of 1 proves nothing
            noise = torch.empty(param.shape).normal_(0, 0.05, generator=generator)
            param.add_(noise.to(param.dtype))
    model.save_pretrained(folder, **options)
    return folder
