"""A text encoder that reads clause by clause."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer, UMT5EncoderModel

from ultragen.model.text_encoder import ClauseTextEncoder, within_clauses
from ultragen.presets import EMBEDDED_MODEL
from ultragen.sampling.prompts import embed_prompts
from ultragen.training.vocabulary import build_text_encoder, build_tokenizer, read_by_clauses
from ultragen.world.captions import vocabulary

SUN = "hills, the sun on the right, the camera pans left"
OTHER = "hills, the sun on the right, the camera zooms in"
LENGTH = 24


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(vocabulary(), LENGTH)


@pytest.fixture
def encoder(tokenizer):
    torch.manual_seed(0)
    return build_text_encoder(len(tokenizer), 128).eval()


@torch.no_grad()
def embed(encoder, tokenizer, *prompts):
    return embed_prompts(tokenizer, encoder, list(prompts), LENGTH, torch.device("cpu"))


def test_who_sees_whom():
    """Letters are tokens, 9 ends a clause, 1 the prompt, 0 is padding."""
    ids = torch.tensor([[5, 6, 9, 7, 1, 0]])
    [seen] = within_clauses(ids, ids != 0, [9], last=1)
    assert seen.int().tolist() == [
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 0],
    ]


@pytest.mark.parametrize("ends", [[9], [9, 8]])
def test_every_end_counts(ends):
    ids = torch.tensor([[5, 9, 6, 8, 7, 1]])
    [seen] = within_clauses(ids, ids != 0, ends, last=1)
    assert seen[2].int().tolist() == [0, 0, 1, 1, *([0, 0] if 8 in ends else [1, 1])]


def test_a_clause_does_not_depend_on_the_others(encoder, tokenizer):
    sun, other = embed(encoder, tokenizer, SUN, OTHER)
    clause = slice(2, 8)  # the sun on the right ,
    assert (sun[clause] - other[clause]).abs().max() > 1e-4
    read_by_clauses(encoder, tokenizer)
    sun, other = embed(encoder, tokenizer, SUN, OTHER)
    assert torch.equal(sun[clause], other[clause])
    assert (sun[8:] - other[8:]).abs().max() > 1e-4  # the camera's, and the prompt's end


def test_words_of_a_clause_depend_on_each_other(encoder, tokenizer):
    read_by_clauses(encoder, tokenizer)
    right, left = embed(encoder, tokenizer, SUN, SUN.replace("right", "left"))
    assert (right[3] - left[3]).abs().max() > 1e-4


def test_one_clause_is_read_as_before(encoder, tokenizer):
    prompts = ("a calm lake under mountains at sunset", "")
    before = embed(encoder, tokenizer, *prompts)
    read_by_clauses(encoder, tokenizer)
    torch.testing.assert_close(embed(encoder, tokenizer, *prompts), before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_saved_and_loaded(encoder, tokenizer, tmp_path, dtype):
    read_by_clauses(encoder, tokenizer)
    encoder.save_pretrained(tmp_path)
    loaded = ClauseTextEncoder.from_pretrained(tmp_path, dtype=dtype).eval()
    assert loaded.config.clause_ends == tokenizer.convert_tokens_to_ids([",", "."])
    found, expected = (embed(x, tokenizer, SUN).float() for x in (loaded, encoder))
    assert torch.isfinite(found).all()
    tolerance = 1e-6 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def shipped(kind, **config):
    return kind.from_pretrained(EMBEDDED_MODEL / "text_encoder", **config)


def test_weights_from_before_are_read_as_before():
    """Without ends of clauses the class is the library's."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_MODEL / "tokenizer")
    found = embed(shipped(ClauseTextEncoder, clause_ends=None), tokenizer, SUN)
    assert torch.equal(found, embed(shipped(UMT5EncoderModel), tokenizer, SUN))


def test_the_shipped_encoder_reads_by_clauses():
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_MODEL / "tokenizer")
    sun, other = embed(shipped(ClauseTextEncoder), tokenizer, SUN, OTHER)
    first = len(tokenizer("hills, the sun on the right,").input_ids) - 1  # without the end
    assert torch.equal(sun[:first], other[:first])
    assert not torch.equal(sun[first:], other[first:])
