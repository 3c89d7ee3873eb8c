"""The words of a prompt, for a model that knows some words and no others.

What such a model does not know is spelt as it knows it, where that is the same to a reader: "hill"
as "hills", "snow-capped" as "snow capped". A word that it knows is never touched.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator
from itertools import pairwise

from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerBase

from ..world.captions import vocabulary
from ..world.scene import EDITIONS

# Soft hyphen, zero-width space, non-joiner and joiner, word joiner, byte order mark: they come with
# text that was copied from elsewhere, and nobody sees them.
INVISIBLE = "[\u00ad\u200b\u200c\u200d\u2060\ufeff]"
HYPHEN = "[\u2010\u2011-]"
LETTERS = r"[^\W_]+"
JOINT = rf"(?:{INVISIBLE}*(?:['’]|{HYPHEN}){INVISIBLE}*|{INVISIBLE}+)"
WORD = re.compile(rf"{INVISIBLE}*{LETTERS}(?:{JOINT}{LETTERS})*{INVISIBLE}*")
POSSESSIVE = re.compile(r"['’]s$")

# Words that say nothing which a picture could show. "down", "out", "no" and "without" do.
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a about across against all along also amid among an and any are around as at be been "
        "being beneath beside besides between both but by can do does each every for from had has "
        "have he her here his i if in inside into is it its just me my near of off on onto or our "
        "over own per quite rather she so some such than that the their them then there these they "
        "this those through to too toward towards upon us very was we were when where which while "
        "who whose will with within you your",
    )
)


def reads_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer knows some words and no others, as the embedded model's does."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and isinstance(backend.model, WordLevel)


def find_edition(tokenizer: PreTrainedTokenizerBase) -> int:
    """The edition of the procedural world, see `world.scene`, that a tokenizer's model belongs to:
    the last one most of whose own words it knows, as weights do that were trained before a word was
    added. The first stands for models that know words of none, and for those that cut any text into
    known pieces: no caption tells them apart."""
    if not reads_words(tokenizer):
        return EDITIONS[0]
    known = tokenizer.get_vocab().keys()
    found = EDITIONS[0]
    for before, edition in pairwise(EDITIONS):
        own = set(vocabulary(edition)) - set(vocabulary(before))
        if 2 * len(own & known) > len(own):
            found = edition
    return found


def spell_as_known(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """A prompt with the words that the tokenizer does not know in a spelling that it knows, as far
    as there is one: without invisible characters and hyphens, in plural or singular.

    Prompts come back as they are from tokenizers that cut any text into known pieces.
    """
    if not reads_words(tokenizer):
        return prompt
    unknown = set(_unknown(tokenizer, WORD.findall(prompt)))
    if not unknown:
        return prompt
    vocabulary = frozenset(tokenizer.get_vocab())
    return WORD.sub(
        lambda found: _spelt(found[0], vocabulary) if found[0] in unknown else found[0], prompt
    )


def find_unknown_words(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[str]:
    """Words of a prompt that mean nothing to the model whose tokenizer this is, in order, once
    each, in lower case; without those that mean nothing to a picture, such as "over"."""
    words = dict.fromkeys(WORD.findall(spell_as_known(tokenizer, prompt).lower()))
    return [word for word in _unknown(tokenizer, list(words)) if word not in STOP_WORDS]


def _unknown(tokenizer: PreTrainedTokenizerBase, words: list[str]) -> list[str]:
    """Those that a tokenizer maps, in whole or in part, to its unknown token."""
    ids = tokenizer(words, add_special_tokens=False).input_ids if words else []
    return [word for word, own in zip(words, ids, strict=True) if tokenizer.unk_token_id in own]


def _spelt(word: str, vocabulary: Collection[str]) -> str:
    """A word that is not in the vocabulary, as words of the vocabulary where that can be done."""
    plain = unicodedata.normalize("NFKC", word).lower()
    visible = re.sub(INVISIBLE, "", plain)
    for whole in (visible, re.sub(HYPHEN, "", visible)):
        if (found := _known(whole, vocabulary)) is not None:
            return found
    for parts in (re.split(HYPHEN, visible), re.split(f"{HYPHEN}|{INVISIBLE}", plain)):
        known = [_known(part, vocabulary) for part in parts]
        if any(known):
            return " ".join(spelt or part for spelt, part in zip(known, parts, strict=True))
    return visible


def _known(word: str, vocabulary: Collection[str]) -> str | None:
    """A word, or its other number, as the vocabulary has it."""
    return next((other for other in _numbers(word) if other in vocabulary), None)


def _numbers(word: str) -> Iterator[str]:
    """A word and what may be its plural or its singular."""
    yield word
    noun = POSSESSIVE.sub("", word)
    yield noun
    for other in (
        f"{noun}s",
        f"{noun}es",
        re.sub("y$", "ies", noun),
        re.sub("ies$", "y", noun),
        re.sub("es$", "", noun),
        re.sub("s$", "", noun),
    ):
        if not {noun, other} & STOP_WORDS:  # "doe" is no singular of "does"
            yield other


def unread(tokenizer: PreTrainedTokenizerBase, prompt: str, length: int) -> str:
    """What stands at a prompt's end beyond the tokens that are read.

    Args:
        tokenizer: The model's.
        prompt: As the tokenizer gets it.
        length: Tokens that the model reads, the one that ends a text among them.
    """
    read = length - tokenizer.num_special_tokens_to_add()
    one_more = {"max_length": read + 1, "truncation": True, "return_offsets_mapping": True}
    offsets = tokenizer(prompt, add_special_tokens=False, **one_more).offset_mapping
    return prompt[offsets[read][0] :] if len(offsets) > read else ""
