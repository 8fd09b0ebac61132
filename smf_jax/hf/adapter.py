"""Low-rank additions as an adapter that PEFT loads."""

from pathlib import Path

import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from smf_jax.hf import files
from smf_jax.hf.families import Family, theirs
from smf_jax.model.lora import LoRALinear

ADAPTER = "adapter"  # the folder beside the merged model
_TENSORS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"


def write_adapter(
    model: nnx.Module, family: Family, folder: Path, base_name: str
) -> bool:
    """Writes the low-rank additions of a model, and returns whether it has any.

    Args:
      model: Of which only the additions are written.
      family: That has a name for each linear layer.
      folder: Is made.
      base_name: Of the model without the additions.
    """
    found = {
        theirs("/".join(map(str, path)) + "/kernel", family): module
        for path, module in nnx.iter_modules(model)
        if isinstance(module, LoRALinear)
    }
    if not found:
        return False
    tensors, targets = {}, []
    for name, module in found.items():
        target = name.removesuffix(".weight")
        targets.append(target)
        for part, factor in (("lora_A", module.down), ("lora_B", module.up)):
            array = np.ascontiguousarray(np.asarray(factor[...]).T)
            tensors[f"base_model.model.{target}.{part}.weight"] = array
        rank, scale = module.down.shape[1], module.scale
    folder.mkdir()
    save_file(tensors, folder / _TENSORS, {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": scale * rank,
        "lora_dropout": 0.0,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    files.write_model_json(folder / _CONFIG, config)
    return True
