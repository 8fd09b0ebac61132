"""The keys of a `config.json` on which no logit depends."""

import re
from typing import Any

# Names by the reason why they may be set aside; `*` stands for any letters.
_SET_ASIDE = (
    # how a text is generated from logits
    """
    assistant_* bad_words_ids begin_suppress_tokens cache_config cache_implementation
    compile_config constraints continuous_batching_config disable_compile
    diversity_penalty do_sample dola_layers early_stopping encoder_no_repeat_ngram_size
    encoder_repetition_penalty epsilon_cutoff eta_cutoff
    exponential_decay_length_penalty force_words_ids forced_decoder_ids
    generation_kwargs guidance_scale is_assistant length_penalty low_memory
    max_cache_len max_length max_matching_ngram_size max_new_tokens max_time min_length
    min_new_tokens min_p no_repeat_ngram_size num_assistant_* num_beam_groups num_beams
    num_return_sequences penalty_alpha prefill_chunk_size prompt_lookup_num_tokens
    remove_invalid_values renormalize_logits repetition_penalty sequence_bias
    speculation_type stop_strings suppress_tokens target_lookbehind temperature
    token_healing top_h top_k top_p typical_p use_cache use_mtp watermarking_config
    """,
    # what is returned beside logits, and labels, which a language model has none of
    """
    output_attentions output_hidden_states output_logits output_past
    output_router_logits output_scores return_dict return_dict_in_generate
    return_legacy_cache
    finetuning_task id2label label2id num_labels problem_type task_specific_params
    """,
    # where the model is from, and what it is called
    """
    _* *_version unsloth_* auto_map author base_model base_model_name_or_path
    commit_hash custom_pipelines datasets description finetuned framework
    is_llama_config language library_name license model_id model_name name name_or_path
    pipeline_tag revision tags transformers.js_config
    """,
    # which program computes the same numbers, and in which precision
    """
    attn_impl attn_implementation bf16 dtype experts_implementation flash_attention*
    flash_attn* fp16 fp32 pretraining_tp torch_dtype torchscript use_bfloat16
    use_flash_* use_memory_efficient_attention use_sdpa* use_xformers
    """,
    # training and its start
    """
    *dropout* *pdrop drop_path_rate layerdrop
    init_device init_method init_std initializer_* rescale_prenorm_residual
    aux_loss_alpha gradient_checkpointing* ignore_index label_smoothing* loss_type
    neftune_* router_aux_loss_coef tf_legacy_loss use_liger_kernel
    """,
    # texts before they are ids, and how many ids were planned for
    """
    *_token_id *_token_ids add_bos_token add_eos_token bos_token chat_template
    cls_token eos_token mask_token pad_token padding_idx padding_side prefix sep_token
    tokenizer_* unk_token
    context_length max_seq_len max_seq_length max_sequence_length model_max_length
    n_ctx n_positions seq_length
    """,
    # what only models of other kinds have
    """
    add_cross_attention chunk_size_feed_forward cross_attention_hidden_size is_decoder
    is_encoder_decoder tie_encoder_decoder
    """,
)
_PATTERN = re.compile(
    "|".join(map(re.escape, " ".join(_SET_ASIDE).split())).replace(r"\*", r"\w*")
)
# Keys that change logits, with the value that does not.
_NEUTRAL = {
    "embedding_multiplier": 1,
    "is_causal": True,
    "logit_scale": 1,
    "logits_scaling": 1,
    "partial_rotary_factor": 1,
    "residual_multiplier": 1,
    "rope_ratio": 1,
    "rotary_pct": 1,
}
_ABSENT = (None, False, 0, "", [], {})  # values that ask for nothing
# Keys of almost every model, of which nobody needs to hear.
_USUAL = """
    _name_or_path bos_token_id dtype eos_token_id initializer_range pad_token_id
    pretraining_tp torch_dtype transformers_version use_cache
""".split()


def changes_no_logit(name: str, value: Any) -> bool:
    """Returns whether no logit depends on a key, or its value asks for nothing."""
    if name in _NEUTRAL:
        return value is None or value == _NEUTRAL[name]
    return value in _ABSENT or _PATTERN.fullmatch(name) is not None


def set_aside(config: dict[str, Any]) -> list[str]:
    """Returns the keys of a decoder that ask for something on which no logit depends.

    Those of almost every model are left out.
    """
    return [
        name
        for name, value in config.items()
        if _PATTERN.fullmatch(name) and name not in _USUAL and value not in _ABSENT
    ]
