"""Prompts → text embeddings: paired with negative ones, tokenised, encoded, padded with zeros."""

from __future__ import annotations

import warnings

import torch
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Tensor
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from .sampler import GenerationError
from .words import spell_as_known, unread

Texts = dict[str, list[str] | Tensor]


def check_prompts(prompt: object) -> None:
    """Checks that every prompt says something.

    Raises:
        ValueError: if one is empty or no text.
    """
    prompts = prompt if isinstance(prompt, list | tuple) else [prompt]
    if not prompts or not all(isinstance(p, str) and p.strip() for p in prompts):
        raise ValueError("The prompt is empty: describe a scene in a few words.")


def pair_texts(
    prompt: str | list[str] | None,
    negative_prompt: str | list[str] | None,
    prompt_embeds: Tensor | None = None,
    negative_prompt_embeds: Tensor | None = None,
    width: int | None = None,
) -> Texts:
    """Prompts and as many negative ones, each typed or encoded already (b n d, with d = `width`),
    by the name that they have encoded; a single negative prompt is for all.

    Raises:
        ValueError: if a text is missing, given twice or no text, or the numbers differ.
    """
    for name, typed, embeds in (
        ("prompt", prompt, prompt_embeds),
        ("negative_prompt", negative_prompt, negative_prompt_embeds),
    ):
        if embeds is None:
            continue
        if typed:
            raise ValueError(f"Give either {name} or {name}_embeds, not both.")
        if embeds.ndim != 3 or width not in (None, embeds.shape[-1]):
            raise ValueError(
                f"{name}_embeds must be b × n × {width or 'd'}, as `encode_prompt` gives them, "
                f"not {' × '.join(map(str, embeds.shape))}."
            )
    positives: list[str] | Tensor
    if prompt_embeds is None:
        check_prompts(prompt)
        positives = [prompt] if isinstance(prompt, str) else list(prompt or ())
    else:
        positives = prompt_embeds
    negatives: list[str] | Tensor
    if negative_prompt_embeds is not None:
        negatives = negative_prompt_embeds
    elif isinstance(negative_prompt, list | tuple):
        negatives = list(negative_prompt)
    else:
        negatives = [negative_prompt or ""] * len(positives)
    if not torch.is_tensor(negatives) and not all(isinstance(text, str) for text in negatives):
        raise ValueError(
            f"negative_prompt must be a text or a list of texts, not {negative_prompt!r}: "
            "arguments without a name come as prompt, negative_prompt, height, width, num_frames."
        )
    if len(negatives) != len(positives):
        raise ValueError(
            f"{len(positives)} prompts need as many negative prompts, not {len(negatives)}."
        )
    return {"prompt_embeds": positives, "negative_prompt_embeds": negatives}


def as_read(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """A prompt as its tokenizer gets it: clean, and spelt as the tokenizer knows its words."""
    return spell_as_known(tokenizer, prompt_clean(prompt))


def find_unread(tokenizer: PreTrainedTokenizerBase, prompt: str, length: int) -> str:
    """What of a prompt, as it is read, stands beyond the `length` tokens that the model reads."""
    return unread(tokenizer, as_read(tokenizer, prompt), length)


def embed_prompts(
    tokenizer: PreTrainedTokenizerBase,
    text_encoder: UMT5EncoderModel,
    prompts: list[str],
    length: int,
    device: torch.device,
) -> Tensor:
    """Prompts → text embeddings b n d, cut or padded to `length`; padding is zero, as Wan was
    trained."""
    tokens = tokenizer(
        [as_read(tokenizer, p) for p in prompts],
        padding="max_length",
        max_length=length,
        truncation=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    ids, mask = tokens.input_ids.to(device), tokens.attention_mask.to(device)
    embeddings = text_encoder(ids, mask).last_hidden_state
    return embeddings * mask[..., None]


def check_embeddings(embeddings: Tensor) -> None:
    """Checks that a text encoder gave numbers.

    Raises:
        GenerationError: if some are not finite.
    """
    if not torch.isfinite(embeddings).all():
        raise GenerationError(
            "The text encoder's output is not finite. Load the model again, in float32 instead of "
            "half precision; if that does not help, its weights are damaged: download them again."
        )


def warn_of_cuts(tokenizer: PreTrainedTokenizerBase, prompts: list[str], length: int) -> None:
    """Warns of each prompt that has more tokens than the model reads."""
    for prompt in prompts:
        text = as_read(tokenizer, prompt)
        # Twice as many tell enough of a text that may be very long.
        tokens = tokenizer(text, max_length=2 * length, truncation=True).input_ids
        if len(tokens) > length:
            number = f"{len(tokens)}" if len(tokens) < 2 * length else f"{2 * length} or more"
            warnings.warn(
                f"The prompt {prompt[:40]!r} has {number} tokens, and the model reads the first "
                f"{length}: make it shorter, or what stands at its end is not seen.",
                stacklevel=2,
            )


def count_tokens(tokenizer: PreTrainedTokenizerBase, prompts: list[str], length: int) -> list[int]:
    """Tokens of each prompt that are no padding, as `embed_prompts` cuts them to `length`."""
    cleaned = [as_read(tokenizer, p) for p in prompts]
    return [len(ids) for ids in tokenizer(cleaned, max_length=length, truncation=True).input_ids]
