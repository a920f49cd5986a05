"""What can only be checked of sampling parameters where the model is known."""

from __future__ import annotations

from collections.abc import Iterable

from jbatch.errors import RequestError
from jbatch.sampling_params import MAX_BAD_WORD_LEN, Sampler, SamplingParams
from jbatch.text.tokenizer import Tokenizer

ID_FIELDS = ("stop_token_ids", "logprob_token_ids", "allowed_token_ids", "logit_bias")


def check_params(params: SamplingParams, vocab_size: int, compiled: Iterable[Sampler]) -> None:
    """Raise RequestError for ids of no token, and for a way of drawing that is not compiled."""
    for field in ID_FIELDS:
        for token_id in getattr(params, field) or ():
            if token_id >= vocab_size:
                raise RequestError(field, token_id, f"must be from 0 to {vocab_size - 1}, the vocabulary")
    if params.sampler.choose(compiled) is None:
        name = params.sampler.name.lower()
        raise RequestError(
            "sampling_params",
            name,
            "this way of drawing tokens is not compiled: name it in LLM(samplers=...), or call llm.prepare "
            "with these parameters",
        )


def bad_word_ids(params: SamplingParams, tokenizer: Tokenizer | None) -> tuple[tuple[int, ...], ...]:
    """The token ids of bad words: each as it is written with and without a space in front.

    Raises:
      RequestError: for a word of too many tokens, or of none, and where there is no tokenizer.
    """
    if not params.bad_words:
        return ()
    if tokenizer is None:
        raise RequestError("bad_words", list(params.bad_words), "this model has no tokenizer")
    found: dict[tuple[int, ...], None] = {}
    for word in params.bad_words:
        spelled = [
            tuple(tokenizer.encode(text, add_special_tokens=False))
            for text in (word.lstrip(), f" {word.lstrip()}")
        ]
        longest = max(map(len, spelled))
        if not 0 < longest <= MAX_BAD_WORD_LEN:
            raise RequestError("bad_words", word, f"is {longest} tokens: must be 1 to {MAX_BAD_WORD_LEN}")
        found |= dict.fromkeys(ids for ids in spelled if ids)
    return tuple(found)
