"""A tokenizer that learns new words, and the text encoder that grows with it."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

from ultragen.presets import EMBEDDED_MODEL
from ultragen.sampling.words import find_edition
from ultragen.training.vocabulary import (
    build_text_encoder,
    build_tokenizer,
    extend_vocabulary,
    unknown_words,
)
from ultragen.world.captions import vocabulary

OLD = ["a", "lake", "under", "mountains"]
NEW = ["river", "-", "capped"]


def test_old_words_keep_their_numbers_and_rows():
    tokenizer = build_tokenizer(OLD, 16)
    encoder = build_text_encoder(len(tokenizer), 64).eval()
    before = encoder.get_input_embeddings().weight.detach().clone()
    text = tokenizer(["a lake under mountains, a"], return_tensors="pt")
    with torch.no_grad():
        read = encoder(**text).last_hidden_state
    grown = extend_vocabulary(tokenizer, encoder, [*OLD[:1], *NEW])
    after = encoder.get_input_embeddings().weight
    assert len(grown) == len(tokenizer) + len(NEW) == len(after) == encoder.config.vocab_size
    assert torch.equal(after[: len(before)], before)
    assert after[len(before) :].std() > 0
    assert {word: grown.get_vocab()[word] for word in tokenizer.get_vocab()} == (
        tokenizer.get_vocab()
    )
    assert grown(["a lake under mountains, a"]).input_ids == text.input_ids.tolist()
    with torch.no_grad():
        assert torch.equal(encoder(**text).last_hidden_state, read)
    assert unknown_words(tokenizer, [*OLD, *NEW]) == NEW
    assert not unknown_words(grown, [*OLD, *NEW])
    assert grown.model_max_length == 16


def test_a_grown_tokenizer_is_saved_and_read(tmp_path):
    tokenizer = build_tokenizer(OLD, 16)
    grown = extend_vocabulary(tokenizer, build_text_encoder(len(tokenizer), 64), NEW)
    grown.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    ids = again(["A river-capped lake"]).input_ids
    assert ids == grown(["a river-capped lake"]).input_ids
    assert again.unk_token_id not in ids


def test_an_encoder_of_other_words_is_refused():
    with pytest.raises(ValueError, match="has 12 rows and the tokenizer 9 words"):
        extend_vocabulary(build_tokenizer(OLD, 16), build_text_encoder(12, 64), NEW)


def test_words_of_the_second_edition_are_missing_in_the_first():
    missing = unknown_words(build_tokenizer(vocabulary(), 64), vocabulary(2))
    assert missing == [word for word in vocabulary(2) if word not in vocabulary()]
    assert {"river", "valley", "huge", "-"} <= set(missing)


@pytest.mark.parametrize(
    "load",
    [
        lambda: build_tokenizer(vocabulary(), 64),
        lambda: AutoTokenizer.from_pretrained(EMBEDDED_MODEL / "tokenizer"),
    ],
    ids=["first edition", "shipped"],
)
def test_a_tokenizer_grows_to_the_second_edition(load):
    tokenizer = load()
    encoder = build_text_encoder(len(tokenizer), 64)
    grown = extend_vocabulary(tokenizer, encoder, unknown_words(tokenizer, vocabulary(2)))
    assert find_edition(grown) == 2
    text = "snow-capped mountains over a frozen river, a huge sun, without clouds"
    assert grown.unk_token_id not in grown([text]).input_ids[0]
    old = "a calm lake under snowy mountains at sunset, the camera pans right"
    assert grown([old]).input_ids == tokenizer([old]).input_ids
