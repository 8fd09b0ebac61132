"""The names of our parameters in Hugging Face models."""

import re

# In layer *, which is `blocks/*` and `model.layers.*`.
_LAYER = {
    "attention_norm/scale": "input_layernorm.weight",
    "attention/query/kernel": "self_attn.q_proj.weight",
    "attention/query/bias": "self_attn.q_proj.bias",
    "attention/query_norm/scale": "self_attn.q_norm.weight",
    "attention/key/kernel": "self_attn.k_proj.weight",
    "attention/key/bias": "self_attn.k_proj.bias",
    "attention/key_norm/scale": "self_attn.k_norm.weight",
    "attention/value/kernel": "self_attn.v_proj.weight",
    "attention/value/bias": "self_attn.v_proj.bias",
    "attention/out/kernel": "self_attn.o_proj.weight",
    "feed_forward_norm/scale": "post_attention_layernorm.weight",
    "feed_forward/gate/kernel": "mlp.gate_proj.weight",
    "feed_forward/up/kernel": "mlp.up_proj.weight",
    "feed_forward/down/kernel": "mlp.down_proj.weight",
    # No such model has memory layers: these names are those of `torch_baseline`.
    "memory/mean": "mlp.memory.mean",
    "memory/projection": "mlp.memory.projection",
    "memory/gain": "mlp.memory.gain",
    "memory/slots": "mlp.memory.slot_ids",
    "memory/query/kernel": "mlp.memory.query.weight",
    "memory/keys": "mlp.memory.keys",
    "memory/query_norm/scale": "mlp.memory.query_norm.weight",
    "memory/key_norm/scale": "mlp.memory.key_norm.weight",
    "memory/gate/kernel": "mlp.memory.gate.weight",
    "memory/out/kernel": "mlp.memory.out.weight",
    "memory/relevance/kernel": "mlp.memory.relevance.weight",
    "memory/relevance/bias": "mlp.memory.relevance.bias",
    "memory_scale": "mlp.memory_scale",
}
_NAMES = {
    "embedding": "model.embed_tokens.weight",
    "norm/scale": "model.norm.weight",
    "head/kernel": "lm_head.weight",
    "values/*": "model.memory_values.*",
} | {f"blocks/*/{name}": f"model.layers.*.{of}" for name, of in _LAYER.items()}


def hf_name(name: str) -> str:
    """Returns the Hugging Face name of our parameter."""
    number = re.search(r"/(\d+)(/|$)", name)
    pattern = re.sub(r"/\d+(?=/|$)", "/*", name)
    return _NAMES[pattern].replace("*", number[1] if number else "*")


def is_transposed(name: str) -> bool:
    """Returns whether our parameter is the transpose of Hugging Face's."""
    return name.endswith("/kernel")
