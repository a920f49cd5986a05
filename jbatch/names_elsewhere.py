"""What options, commands and attributes are called elsewhere: their name here, or what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

CLOSE = 0.75  # likeness of two names, at least, for one to be a slip of the pen

# Names here, and what vLLM's older versions, SGLang, TensorRT-LLM, llama.cpp, OpenAI and transformers call
# the same. A name elsewhere may mean one thing of a request and another of an engine.
_ALSO_CALLED = {
    # of a request
    "max_tokens": """max_completion_tokens max_new_tokens max_output_tokens max_gen_toks max_gen_len
        max_gen_tokens max_length max_tokens_to_sample n_predict num_predict output_len""",
    "min_tokens": "min_new_tokens min_completion_tokens min_output_tokens",
    "seed": "sampling_seed random_seed rng_seed",
    "stop": "stop_strings stop_sequences stop_words until",
    "stop_token_ids": "eos_token_id eos_token_ids stop_tokens stop_ids stop_token_id end_id",
    "ignore_eos": "ignore_eos_token",
    "n": "num_return_sequences num_samples n_samples num_completions num_choices num_outputs",
    "logprobs": "top_logprobs num_logprobs return_logprob return_logprobs n_probs output_logprobs",
    "prompt_logprobs": "input_logprobs return_prompt_logprobs context_logprobs",
    "repetition_penalty": "repeat_penalty rep_pen",
    "temperature": "temp",
    "include_stop_str_in_output": "no_stop_trim include_stop_string",
    "bad_words": "bad_words_ids banned_words",
    "allowed_token_ids": "allowed_tokens",
    "prompt": "messages input inputs text input_text prompts",
    "messages": "prompt input inputs conversation conversations chat",
    "prompt_token_ids": "input_ids prompt_ids token_ids prompt_tokens input_token_ids",
    "custom_id": "id request_id",
    # of an engine
    "page_size": "block_size tokens_per_block kv_block_size",
    "num_pages": "num_gpu_blocks_override num_gpu_blocks num_blocks num_kv_blocks max_total_tokens",
    "kv_cache_memory_bytes": "kv_cache_memory kv_cache_bytes kv_cache_size",
    "gpu_memory_utilization": """mem_fraction_static gpu_memory_fraction kv_cache_free_gpu_memory_fraction
        gpu_memory""",
    "max_num_seqs": """max_running_requests max_batch_size batch_size max_concurrency max_num_sequences
        max_seqs""",
    "max_num_batched_tokens": """chunked_prefill_size max_prefill_tokens max_batch_tokens
        max_batched_tokens max_num_tokens""",
    "max_model_len": """max_seq_len max_context_len context_length context_len ctx_size n_ctx max_length
        max_len max_sequence_length max_position_embeddings""",
    "tensor_parallel_size": "tp_size tp tensor_parallel tensor_parallel_degree num_gpus",
    "dtype": "torch_dtype precision",
    "policy": "scheduling_policy schedule_policy scheduler_policy",
    "mode": "batching batching_mode",
    "attention_backend": "attn_backend attn_implementation attention_impl backend",
    "decode_buckets": "cuda_graph_sizes cuda_graph_bs cudagraph_capture_sizes precompile_bs_paddings",
    "token_buckets": "precompile_token_paddings prefill_buckets",
    "overlap": "async_scheduling overlap_schedule",
    "compilation_cache_dir": "compile_cache_dir cache_dir",
    "show_progress": "use_tqdm progress",
    "generation_config": "override_generation_config generation_config_path",
    "load_format": "weights_format",
    # of a job
    "input_file": "input in",
    "output_file": "output out",
    # of a benchmark
    "num_prompts": "num_requests n_requests n_prompts num_queries",
    "input_len": "random_input_len input_length prompt_len isl",
    "output_len": "random_output_len output_length osl",
    "prefix_len": "random_prefix_len prefix_length",
    "request_rate": "rate qps rps",
    "repeats": "num_repeats num_runs runs trials",
    "num_iters_warmup": "num_warmups warmup warmup_iters",
    "goodput": "slo",
    "dataset_name": "dataset workload",
    "dataset_path": "dataset_file trace_file",
    "output_json": "output output_file json save_result result_filename",
    "output_dir": "result_dir",
}

_NO_BEAM_SEARCH = "there is no beam search: draw n samples and take that of the largest cumulative_logprob"

# What there is not here, and what to do instead of each option that asks for it elsewhere.
_INSTEAD = {
    "one model runs within one host. Spread it over the GPUs of this one (tensor_parallel_size), or run "
    "one replica on each host: jbatch generate --ray, jbatch.integrations.ray_data, or --shard i/n": """
        pipeline_parallel_size pipeline_parallel pp_size distributed_executor_backend nnodes
        num_nodes node_rank master_addr master_port dist_init_addr data_parallel_address
        data_parallel_rpc_port data_parallel_backend ray_workers_use_nsight""",
    "weights are used as they are, in bfloat16, float16 or float32 (dtype): nothing is quantised": """
        quantization quantization_param_path load_in_4bit load_in_8bit kv_cache_dtype quantize
        calculate_kv_scales""",
    "every step is a program that is compiled at the start: leave it out": """enforce_eager
        compilation_config max_seq_len_to_capture disable_cuda_graph enable_torch_compile torch_compile
        cudagraph_mode use_cudagraph""",
    "no code that comes with a model is run: leave it out": "trust_remote_code allow_remote_code",
    "tokenizer.json is what is read, and prompts may be token ids, too: leave it out": """tokenizer_mode
        skip_tokenizer_init tokenizer_revision use_fast""",
    "nothing is downloaded: hf download MODEL --local-dir DIR, then give DIR": """revision code_revision
        download_dir hf_token hf_config_path hf_overrides local_files_only cache_folder""",
    "adapters are merged first (peft: merge_and_unload, then save_pretrained)": """enable_lora max_loras
        max_lora_rank lora_request lora_modules lora_path peft""",
    "there is no speculative decoding: leave it out": """speculative_config speculative_model
        num_speculative_tokens draft_model speculative_algorithm num_draft_tokens""",
    "a sequence that finds no page is computed again later: leave it out": """swap_space cpu_offload_gb
        preemption_mode kv_offloading_size""",
    "prompts are always read in chunks, of max_num_batched_tokens at most: leave it out": """
        enable_chunked_prefill max_num_partial_prefills long_prefill_token_threshold""",
    "temperature=0 takes the likeliest token each time, and any other draws": """do_sample greedy
        use_greedy""",
    _NO_BEAM_SEARCH: """best_of
        use_beam_search beam_width num_beams length_penalty early_stopping beam_search""",
    "there are no structured outputs yet: allowed_token_ids and logits_fn are what rules tokens out": """
        guided_decoding guided_json guided_regex guided_choice guided_grammar structured_outputs
        structured_outputs_config guided_decoding_backend json_schema grammar regex response_format""",
    "a function of yours is compiled into every step: LLM(model, logits_fn=f)": """logits_processors
        logits_processor custom_logit_processor logit_processors""",
    "texts are all that a model is given here: leave it out": """limit_mm_per_prompt multi_modal_data
        mm_processor_kwargs mm_encoder_tp_mode images disable_mm_preprocessor_cache""",
    "sequence, context and expert parallelism are not built: tensor_parallel_size spreads a model": """
        sequence_parallel_size enable_sequence_parallel enable_sp context_parallel_size enable_expert_parallel
        decode_context_parallel_size prefill_context_parallel_size expert_parallel_size ep_size""",
    "engines are as many as data_parallel_size says, each step by step: leave it out": """
        data_parallel_rank data_parallel_size_local data_parallel_start_rank""",
    "logs are what summary, get_metrics and trace_to give: leave it out": """disable_log_stats
        disable_log_requests enable_metrics log_stats""",
}

# What LLM has elsewhere under a name that is none here, and what to do instead.
_ATTRIBUTES = {
    _NO_BEAM_SEARCH: "beam_search",
    "it is llm.engine": "llm_engine",
    "requests are added to llm.engine, which has add_request, step and abort": """add_request abort_request
        enqueue wait_for_completion step has_unfinished_requests""",
    "there is llm.agenerate, and llm.astream": "async_generate generate_async",
    "models only write texts here. llm.score gives the log-probabilities of texts, and "
    "llm.get_tokenizer().encode their token ids": "embed encode classify reward",
    "llm.close() frees the device's memory, and another LLM takes it again": """sleep wake_up is_sleeping
        release_memory_occupation resume_memory_occupation shutdown""",
    "the model is in this process: llm.weights() gives its parameters, llm.update_weights(tree) changes "
    "them, and LLM(model, logits_fn=f) compiles a function into every step": """apply_model collective_rpc
        model params load_weights update_weights_from_tensor update_weights_from_disk""",
    "llm.get_tokenizer() gives it, and LLM(model, tokenizer=DIR) takes another": "tokenizer set_tokenizer",
    "llm.reset_prefix_cache() forgets what is cached": "flush_cache clear_cache",
}

# Commands elsewhere, and what to do here.
_COMMANDS = {
    "there is no HTTP server: jbatch generate MODEL answers prompts (-p), or a file of them (-i and -o)": """
        serve server api_server launch""",
    "jbatch generate MODEL -i in.jsonl -o out.jsonl answers a file of requests": "run_batch batch run",
    "jbatch generate MODEL -p TEXT completes a prompt, and with --chat answers a message": """chat complete
        completion ask""",
}


def command_instead_of(name: str) -> str | None:
    """What to do where a command elsewhere asks for what has another name here, or is not here."""
    return _look_up(name, _COMMANDS)


def attribute_instead_of(name: str) -> str | None:
    """What to do where code asks an LLM for what it has elsewhere; None for any other name."""
    return _look_up(name, _ATTRIBUTES)


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """The name in `known` that is meant by `name`: by what it means elsewhere, or by its spelling; or None.

    A name that only looks alike is none: a wrong hint misleads more than a list of what there is.
    """
    known = list(known)
    plain = _plain(name)
    meant = [ours for ours in known if plain in _ALSO_CALLED.get(ours, "").split()]
    same = [ours for ours in known if _plain(ours).replace("_", "") == plain.replace("_", "")]
    close = difflib.get_close_matches(plain, known, n=1, cutoff=CLOSE)
    return next(iter([*same, *meant, *close]), None)


def instead_of(name: str) -> str | None:
    """What to do where an option elsewhere asks for what there is not here; None for any other name."""
    return _look_up(name, _INSTEAD)


def _look_up(name: str, texts: dict[str, str]) -> str | None:
    """The text of a name."""
    return next((text for text, names in texts.items() if _plain(name) in names.split()), None)


def _plain(name: str) -> str:
    return name.lower().replace("-", "_").strip("_")
