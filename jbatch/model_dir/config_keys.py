"""Which keys of a config.json change the mathematics, and at which values they do not.

Every key is read, harmless, neutral at some values, a restatement of another key, or unknown. An unknown one
whose name sounds like mathematics is refused, any other ignored with a warning.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from jbatch.config import ModelConfig
from jbatch.errors import stacklevel_of_caller
from jbatch.model_dir.strict_json import refuse, same, shown_key


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_READ = _names(
    """model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
    num_key_value_heads head_dim max_position_embeddings rms_norm_eps tie_word_embeddings dtype torch_dtype
    rope_theta rope_scaling rope_parameters original_max_position_embeddings
    sliding_window layer_types max_window_layers attention_bias mlp_bias use_sliding_window
    bos_token_id eos_token_id"""
)
_HARMLESS = _names(
    """architectures auto_map transformers_version _name_or_path name_or_path _commit_hash use_cache
    pad_token_id unk_token_id sep_token_id decoder_start_token_id pretraining_tp
    _attn_implementation_autoset _experts_implementation_internal experts_implementation
    output_attentions output_hidden_states
    output_scores return_dict return_dict_in_generate torchscript gradient_checkpointing is_decoder
    chunk_size_feed_forward tie_encoder_decoder id2label label2id num_labels problem_type task_specific_params
    finetuning_task prefix tokenizer_class suppress_tokens begin_suppress_tokens bad_words_ids
    forced_bos_token_id forced_eos_token_id do_sample temperature top_k top_p typical_p min_p max_length
    max_new_tokens min_length length_penalty repetition_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size diversity_penalty early_stopping num_beams num_beam_groups
    num_return_sequences exponential_decay_length_penalty remove_invalid_values
    unsloth_version unsloth_fixed unsloth_training_mode model_max_length neftune_noise_alpha
    max_sequence_length bos_token eos_token pad_token is_llama_config transformers.js_config
    softmax_in_fp32 attention_softmax_in_fp32 attn_softmax_in_fp32 reorder_and_upcast_attn
    grouped_query_attention group_query_attention use_grouped_query_attention
    num_experts_per_tok num_experts_per_token num_selected_experts norm_topk_prob"""
)
# Keys of training (regularisation, initial values), and of which kernel computes the same.
_HARMLESS_KIND = re.compile(
    r"dropout|pdrop|layerdrop|drop_path|(^|(?<!rope)(?<!rotary)_)init(ializer|ialization|ialize)?(_|$)"
    r"|flash_attn|flash_attention|sdpa|xformers|fused_(rms|norm|rope|rotary|attn|attention|mlp|swiglu)"
    r"|(attn|attention)_(impl|implementation|backend|kernel)(_|$)"
)


def _each(names: str, *values: Any) -> dict[str, tuple[Any, ...]]:
    return dict.fromkeys(names.split(), values)


# Keys that change the mathematics, with the values at which they do not. Words may be spelled in any way.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    **_each(
        """hidden_activation activation activation_function activation_fn act_fn hidden_act_fn mlp_hidden_act
        mlp_activation mlp_act ffn_activation ffn_act ffn_act_fn activation_type gated_activation""",
        None,
        *("silu", "swish", "swiglu"),
    ),
    **_each(
        """norm_type normalization normalization_type normalisation norm norm_layer norm_class layer_norm_type
        layernorm_type normalization_layer_type""",
        None,
        *("rms", "rmsnorm", "llamarmsnorm", "rmslayernorm"),
    ),
    **_each("norm_position norm_placement", None, "pre", "prenorm"),
    **_each(
        """use_rms_norm use_rmsnorm rms_norm rmsnorm pre_norm use_pre_norm prenorm norm_first pre_layernorm
        pre_layer_norm use_rope use_rotary use_rotary_emb use_rotary_embedding use_rotary_embeddings
        use_rotary_position_embeddings apply_rotary rotary scale_attn_weights scale_attn scale_attention
        causal_attention use_causal_attention tie_last_hidden_states""",
        None,
        True,
    ),
    **_each(
        "rope rotary_embedding rotary_type rope_style rope_implementation",
        None,
        *(True, "rope", "rotary", "default", "neox", "llama"),
    ),
    **_each(
        "attention_type attn_type attention attention_mode attn_mode attention_variant self_attention_type",
        None,
        *("full", "fullattention", "global", "causal", "dense", "softmax", "standard", "default"),
        *("selfattention", "mha", "gqa", "mqa", "multihead", "multiheadattention"),
        *("groupedquery", "groupedqueryattention", "multiquery", "multiqueryattention"),
    ),
    **_each(
        """partial_rotary_factor rotary_pct rotary_percent rotary_percentage rotary_fraction
        rotary_emb_fraction rotary_embedding_fraction rope_pct rope_percent rope_fraction
        embedding_multiplier residual_multiplier logits_scaling logit_scale logits_scale output_scale
        embedding_scale emb_scale scale_emb residual_scale lm_head_multiplier output_multiplier rope_ratio
        rope_scale""",
        None,
        1,
    ),
    **_each("quantization_config compression_config quantization per_layer_config pruned_heads", None, {}),
    **_each(
        """is_encoder_decoder add_cross_attention use_mrope rope_interleaved rotary_interleaved
        rotary_emb_interleaved use_bias bias use_qk_norm qk_layernorm""",
        None,
        False,
    ),
    "cross_attention_hidden_size": (None,),
    **_each("num_local_experts num_experts num_nextn_predict_layers", None, 0),
}
_QUANTISED = ("quantization_config", "compression_config", "quantization")

# Keys that say again what another key says, or its default: names, what they restate, and its value.
_RESTATED: tuple[tuple[frozenset[str], str, Callable[[ModelConfig], Any]], ...] = (
    (
        _names("rotary_emb_base rotary_base rotary_embedding_base rope_base rope_freq_base rope_emb_base"),
        "rope_theta",
        lambda config: config.rope.theta,
    ),
    (_names("rope_type rope_scaling_type"), "rope_scaling", lambda config: config.rope.kind),
    (
        _names("rope_scaling_factor rope_factor rotary_scaling_factor linear_rope_scaling_factor"),
        "rope_scaling",
        lambda config: config.rope.factor,
    ),
    (
        _names(
            """rotary_dim rotary_emb_dim rotary_embedding_dim rotary_ndims rope_dim rope_head_dim
            attention_head_size attention_head_dim attn_head_dim attn_head_size query_pre_attn_scalar"""
        ),
        "head_dim",
        lambda config: config.head_dim,
    ),
    (
        _names(
            "attention_multiplier attention_scale attention_scaling attn_scale attn_scaling softmax_scale"
        ),
        "1 / sqrt(head_dim)",
        lambda config: config.head_dim**-0.5,
    ),
    (
        _names(
            """norm_eps norm_epsilon rms_norm_epsilon rmsnorm_eps rmsnorm_epsilon rms_eps
            layer_norm_eps layer_norm_epsilon layernorm_eps layernorm_epsilon"""
        ),
        "rms_norm_eps",
        lambda config: config.rms_norm_eps,
    ),
    (_names("attention_heads num_attn_heads"), "num_attention_heads", lambda config: config.num_heads),
    (
        _names("num_attention_kv_heads num_kv_attention_heads attention_kv_heads num_attention_groups"),
        "num_key_value_heads",
        lambda config: config.num_kv_heads,
    ),
    (
        _names("sliding_window_size attention_window attention_window_size attn_window_size window_size"),
        "sliding_window",
        lambda config: config.sliding_window or -1,
    ),
    (
        _names(
            """qkv_bias use_qkv_bias add_qkv_bias qkv_proj_bias attn_qkv_bias attention_qkv_bias
            attention_in_bias"""
        ),
        "attention_bias",
        lambda config: config.qkv_bias,
    ),
    (
        _names(
            """o_bias o_proj_bias out_proj_bias attn_out_bias attention_out_bias attention_o_bias attn_bias
            use_attention_bias use_attn_bias add_attention_bias"""
        ),
        "attention_bias",
        lambda config: config.o_bias,
    ),
    (_names("ffn_bias use_mlp_bias mlp_use_bias use_ffn_bias"), "mlp_bias", lambda config: config.mlp_bias),
    (
        _names("no_bias bias_free"),
        "the model's biases",
        lambda config: not (config.qkv_bias or config.o_bias or config.mlp_bias),
    ),
)
_IS_RESTATED = frozenset[str]().union(*(names for names, _, _ in _RESTATED))

# An unknown key with one of these in its name is refused unless it is null, false, zero or empty.
_SUSPECT = _names(
    """rope rotary attn attention norm scal bias expert moe softcap soft_cap clip multiplier window quant
    sparse alibi act_fn activation _act parallel residual sink interleave adapter lora layer_pattern
    layers_pattern"""
)


def check_keys(raw: Mapping[str, Any]) -> None:
    """Raise ConfigError for a key that changes the mathematics and is not implemented. Warns once, naming
    them, of unknown keys that look harmless."""
    unknown = []
    for key, value in raw.items():
        if key in _READ or key in _HARMLESS or key in _IS_RESTATED:
            continue
        if key in _NEUTRAL:
            if not any(_same(value, neutral) for neutral in _NEUTRAL[key]):
                _refuse_value(key, value)
        elif _HARMLESS_KIND.search(key.lower()):
            continue
        elif value and any(word in key.lower() for word in _SUSPECT):
            reason = "unknown to jbatch, and by its name it may change what the model computes"
            refuse(shown_key(key), value, reason)
        else:
            unknown.append(key)
    if unknown:
        names = ", ".join(shown_key(key) for key in unknown[:8]) + (", ..." if len(unknown) > 8 else "")
        warnings.warn(
            f"config.json: ignored {len(unknown)} unknown keys: {names}", stacklevel=stacklevel_of_caller()
        )


def check_restated(raw: Mapping[str, Any], config: ModelConfig) -> None:
    """Raise ConfigError for a key that says again what another one says, and says something else: then one
    of the two is not what the model was trained with. Null, false and zero say nothing."""
    for names, of_what, value_of in _RESTATED:
        for key in names & raw.keys():
            value, expected = raw[key], value_of(config)
            if value and not _same(value, expected):
                refuse(key, value, f"restates {of_what}, and disagrees: that is {expected!r}")


def _refuse_value(key: str, value: Any) -> NoReturn:
    if key in _QUANTISED:
        settings = value if isinstance(value, dict) else {}
        what = next((name for name in ("quant_method", "mode", "bits") if name in settings), None)
        method = "quantised weights are" if what is None else f"{what}={str(settings[what])[:40]!r} is"
        refuse(key, value, f"{method} not implemented: take the model's bfloat16, float16 or float32 weights")
    refuse(key, value, f"not implemented; jbatch supports {_or(_NEUTRAL[key])}")


def _same(value: Any, other: Any) -> bool:
    """Whether two values are equal in JSON; words however they are spelled, and numbers to six digits."""
    if isinstance(value, str) and isinstance(other, str):
        return _plain(value) == _plain(other)
    if isinstance(value, float) and isinstance(other, float):
        return math.isclose(value, other, rel_tol=1e-6)
    return same(value, other)


def _plain(word: str) -> str:
    return word[:80].lower().replace("_", "").replace("-", "").replace(" ", "")


def _or(values: tuple[Any, ...]) -> str:
    return " or ".join(dict.fromkeys("null" if v is None else f"{v!r}" for v in values))
