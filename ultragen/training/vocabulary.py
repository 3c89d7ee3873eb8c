"""The embedded model's text side: a word-level tokenizer and a small T5-type encoder."""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import NFKC, Lowercase, Sequence
from tokenizers.pre_tokenizers import Punctuation, WhitespaceSplit
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, UMT5Config

from ..model.text_encoder import ClauseTextEncoder

SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")
CLAUSE_ENDS = (",", ".")


def build_tokenizer(words: Iterable[str], max_length: int) -> PreTrainedTokenizerFast:
    """A tokenizer that knows these words and the comma; each text ends with `</s>`.

    Args:
        words: Lower-case words, no two alike.
        max_length: Most tokens of a text.
    """
    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *CLAUSE_ENDS, *words))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = Sequence([NFKC(), Lowercase()])
    tokenizer.pre_tokenizer = PreTokenizers([WhitespaceSplit(), Punctuation()])
    tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    return _wrapped(tokenizer, max_length)


def _wrapped(tokenizer: Tokenizer, max_length: int) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=max_length,
    )


def unknown_words(tokenizer: PreTrainedTokenizerBase, words: Iterable[str]) -> list[str]:
    """Those of the words that a tokenizer has no number for, in their order."""
    known = tokenizer.get_vocab()
    return [word for word in words if word not in known]


def extend_vocabulary(
    tokenizer: PreTrainedTokenizerFast, encoder: ClauseTextEncoder, words: Iterable[str]
) -> PreTrainedTokenizerFast:
    """Teaches a tokenizer new words behind its old ones, and gives the encoder rows for them: the
    old ones keep their numbers and rows, so that texts of old words are read as before.

    Args:
        tokenizer: Of the kind that `build_tokenizer` makes; it stays as it is.
        encoder: Its embedding matrix grows, by rows that are spread as the old ones are.
        words: Lower-case words; those that are known already change nothing.

    Returns:
        The tokenizer that knows all of them.

    Raises:
        ValueError: The encoder has not as many rows as the tokenizer has words.
    """
    rows = encoder.get_input_embeddings().num_embeddings
    if rows != len(tokenizer):
        raise ValueError(
            f"The text encoder has {rows} rows and the tokenizer {len(tokenizer)} words: take both "
            "from one folder."
        )
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    for word in words:
        vocabulary.setdefault(word, len(vocabulary))
    grown = _wrapped(Tokenizer.from_str(json.dumps(content)), tokenizer.model_max_length)
    encoder.resize_token_embeddings(len(grown))
    return grown


def build_text_encoder(vocab_size: int, dim: int) -> ClauseTextEncoder:
    """A small encoder of Wan's text encoder's type; gives embeddings of width `dim`."""
    config = UMT5Config(
        vocab_size=vocab_size,
        d_model=dim,
        d_kv=64,
        d_ff=2 * dim,
        num_layers=3,
        num_heads=dim // 64,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        is_encoder_decoder=False,
    )
    return ClauseTextEncoder(config)


def read_by_clauses(encoder: ClauseTextEncoder, tokenizer: PreTrainedTokenizerBase) -> None:
    """Has an encoder read clause by clause from now on; what it gives is other than before, and
    whoever reads it has to be trained on."""
    encoder.config.clause_ends = tokenizer.convert_tokens_to_ids(list(CLAUSE_ENDS))
