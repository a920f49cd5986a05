"""jbatch as a model of EleutherAI's lm-evaluation-harness (the extra `lm-eval`).

    python -m jbatch.lm_eval run --model jbatch --model_args pretrained=DIR --tasks arc_easy

is the harness's own command line with "jbatch" registered; in Python, `import jbatch.lm_eval` does that,
before `lm_eval.simple_evaluate(model="jbatch", ...)`. All requests of a task go through one engine together:
the harness's batch size does not matter.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import transformers
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from jbatch.engine.scoring import Score
from jbatch.errors import ConfigError, JBatchError
from jbatch.llm import LLM
from jbatch.outputs import RequestOutput
from jbatch.sampling_params import MAX_STOP_STRING_LEN, MAX_STOP_STRINGS, SamplingParams

WAVE = 64  # contexts whose pages are in use at once
Scored = tuple[tuple[str, str] | None, list[int], list[int]]  # (context, continuation), and their token ids


@register_model("jbatch")
class JBatchLM(TemplateLM):
    """A model of the harness, with the tokens, truncation and scores of its `hf` model on the same weights.

    Args:
      pretrained: a model directory.
      tokenizer: another directory to take transformers' tokenizer from.
      max_length: tokens of context and continuation together, the last one not counted (as in `hf`). It must
        be less than the model's context, which is the default less one: jbatch computes the last token too.
      max_gen_toks: of `generate_until`, where the task sets no limit.
      add_bos_token: whether texts get a begin-of-sequence token; None: as the tokenizer is set up.
      prefix_token_id: stands for an empty context; None: begin-of-sequence, or else end-of-sequence.
      device: "cpu" or "cuda"; None: "auto".
      batch_size, max_batch_size: of no meaning; the harness always passes them.
      options: the fields of EngineConfig, by name.

    Raises:
      ConfigError: for a model or an option that jbatch refuses, naming it.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        tokenizer: str | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        device: str | None = None,
        **options: Any,
    ):
        super().__init__()
        for name in ("batch_size", "max_batch_size"):
            options.pop(name, None)
        if max_length is not None:
            if "max_model_len" in options:
                raise ConfigError("max_length", max_length, "set this or max_model_len, not both")
            options["max_model_len"] = max_length + 1
        options["device"] = (device or "auto").split(":")[0]
        self.llm = LLM(pretrained, **options)
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
            tokenizer or pretrained, local_files_only=True, trust_remote_code=False
        )
        self.max_length = self.llm.max_model_len - 1
        self.max_gen_toks = max_gen_toks
        self._generation_len = max_length or self.llm.max_model_len
        self._add_bos_token, self._prefix_token_id = add_bos_token, prefix_token_id

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        ids = (self._prefix_token_id, self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        return next(token_id for token_id in ids if token_id is not None)

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.name_or_path.replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation, by the model's own template."""
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The token ids of a text; one that begins with the begin-of-sequence token gets no second one."""
        add = add_special_tokens if add_special_tokens is not None else self._add_bos_token
        if add_special_tokens is None and string.startswith(self.tokenizer.decode(self.prefix_token_id)):
            add = False
        return self.tokenizer.encode(string, **({} if add is None else {"add_special_tokens": add}))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each whole text, by windows of `max_length` tokens that do not overlap."""
        windows = [self._windows(request.args[0]) for request in requests]
        scores = iter(self._loglikelihood_tokens(list(itertools.chain.from_iterable(windows)), disable_tqdm))
        totals = [sum(next(scores)[0] for _ in of_text) for of_text in windows]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _windows(self, text: str) -> list[Scored]:
        windows = get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )
        return [(None, *make_disjoint_window(window)) for window in windows]

    def _loglikelihood_tokens(
        self, requests: Sequence[Scored], disable_tqdm: bool = False, **unused: Any
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether greedy decoding would give it."""
        prompts = [
            (context + continuation)[-(self.max_length + 1) :] for _, context, continuation in requests
        ]
        for (_, _, continuation), prompt in zip(requests, prompts, strict=True):
            if len(continuation) >= len(prompt):
                raise JBatchError(f"a continuation of {len(continuation)} tokens: at most {self.max_length}")
        if not prompts:
            return []
        firsts = [len(prompt) - len(request[2]) for request, prompt in zip(requests, prompts, strict=True)]
        order = _sharing_order([tuple(prompt[:first]) for prompt, first in zip(prompts, firsts, strict=True)])
        in_order = self.llm.score(
            [prompts[idx] for idx in order],
            first_scored=[firsts[idx] for idx in order],
            use_tqdm=not disable_tqdm,
        )
        of_request = dict(zip(order, in_order, strict=True))
        scores = []
        for idx, (texts, _, continuation) in enumerate(requests):
            if (error := of_request[idx].error) is not None:
                raise JBatchError(f"request {idx}: {error}")
            scores.append(_score(of_request[idx], len(continuation)))
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, scores[-1])
        return scores

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Complete each context up to the first of its stop strings."""
        eos = self.tokenizer.decode(self.eot_token_id)
        prompts, params, stops = [], [], []
        for request in requests:
            context, given = request.args
            options: dict[str, Any] = dict(normalize_gen_kwargs(given, self.max_gen_toks))
            stop = handle_stop_sequences(options.pop("until"), eos=eos)
            num_context = self._generation_len - options["max_gen_toks"]
            if num_context < 1:
                reason = f"must be less than max_length={self._generation_len}"
                raise ConfigError("max_gen_toks", options["max_gen_toks"], reason)
            prompts.append(self.tok_encode(context)[-num_context:])
            params.append(_sampling_params(options, [text for text in stop if text != eos]))
            stops.append(stop)
        outputs = self._generate(prompts, params, disable_tqdm)
        texts = []
        for request, output, stop in zip(requests, outputs, stops, strict=True):
            texts.append(postprocess_generated_text(output.outputs[0].text, stop, None))
            self.cache_hook.add_partial("generate_until", request.args, texts[-1])
        return texts

    def _generate(
        self, prompts: list[list[int]], params: list[SamplingParams], disable_tqdm: bool
    ) -> list[RequestOutput]:
        """The outputs of all prompts. Raises JBatchError where one is missing: the harness needs all."""
        outputs = self.llm.generate(prompts, params, use_tqdm=not disable_tqdm) if prompts else []
        for number, output in enumerate(outputs):
            if output.error is not None:
                raise JBatchError(f"request {number}: {output.error}")
        return outputs


def _sharing_order(contexts: list[tuple[int, ...]]) -> list[int]:
    """Places of requests, so that those of one context are close, and not in one step: what the first of them
    computes is in the cache for the others. Contexts are as they come, WAVE of them at a time."""
    places: dict[tuple[int, ...], list[int]] = {}
    for place, context in enumerate(contexts):
        places.setdefault(context, []).append(place)
    groups = list(places.values())
    waves = (itertools.zip_longest(*groups[at : at + WAVE]) for at in range(0, len(groups), WAVE))
    return [place for of_wave in waves for turn in of_wave for place in turn if place is not None]


def _score(score: Score, num_tokens: int) -> tuple[float, bool]:
    """The log-probability of the last tokens of a prompt, and whether each of them is the likeliest."""
    logprobs = score.logprobs[len(score.logprobs) - num_tokens :]
    ranks = score.ranks[len(score.ranks) - num_tokens :]
    total = sum((logprob for logprob in logprobs if logprob is not None), 0.0)
    return total, all(rank == 1 for rank in ranks)


def _sampling_params(options: dict[str, Any], stop: list[str]) -> SamplingParams:
    """Sampling parameters from the harness's words. Raises TypeError for a word that SamplingParams lacks."""
    max_tokens, do_sample = options.pop("max_gen_toks"), options.pop("do_sample")
    if not do_sample:
        options["temperature"] = 0.0
    if options.get("num_beams") == 1:
        del options["num_beams"]
    searched = [text for text in stop if 0 < len(text) <= MAX_STOP_STRING_LEN][:MAX_STOP_STRINGS]
    return SamplingParams(max_tokens=max_tokens, stop=searched, **options)  # the rest is cut off afterwards


def main() -> None:
    """Run the harness's command line."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
