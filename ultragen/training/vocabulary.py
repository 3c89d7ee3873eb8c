"""The embedded model's text side: a word-level tokenizer and a small T5-type encoder."""

from __future__ import annotations

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
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=max_length,
    )


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
