"""What helps with a prompt: phrases to add, a whole one by lot, and what the model makes of it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from html import escape

from ..presets import PROMPTS
from ..runs.loading import Models
from ..runs.request import MAX_PROMPT
from ..sampling.words import STOP_WORDS, WORD
from ..world import captions
from ..world.scene import sample_scene

Phrases = Mapping[str, Sequence[str]]

# An attribute of a scene, and the wordings of each of its values: all from the grammar that the
# model's captions were written with. Snowy terrain is one more way to say terrain.
ATTRIBUTES: dict[str, tuple[Phrases, ...]] = {
    "Time": (captions.TIMES,),
    "Weather": (captions.WEATHERS,),
    "Terrain": (captions.TERRAINS, captions.SNOWY_TERRAINS),
    "Water": (captions.WATERS,),
    "Camera": (captions.CAMERAS,),
}
# What people ask landscapes for in other words, and the value of the grammar that comes closest.
NEAREST = {
    "beach": captions.WATERS["sea"],
    "boat": captions.WATERS["sea"],
    "shore": captions.WATERS["sea"],
    "river": captions.WATERS["lake"],
    "waterfall": captions.WATERS["lake"],
    "pond": captions.WATERS["lake"],
    "valley": captions.TERRAINS["hills"],
    "volcano": captions.TERRAINS["mountains"],
    "cave": captions.TERRAINS["canyon"],
    "garden": captions.TERRAINS["plains"],
    "farm": captions.TERRAINS["plains"],
    "jungle": captions.TREES["broadleaf"],
    "storm": captions.WEATHERS["rain"],
    "winter": captions.WEATHERS["snowfall"],
    "stars": captions.TIMES["night"],
    "eagle": captions.BIRDS,
}
SHOWN = 12  # words that are named; more say nothing new
SURPRISES = 2**31


def panel() -> str:
    """Phrases to click, one attribute at a time; `suggestions.js` puts them into the prompt."""
    openers = "".join(
        f'<button type="button" class="ug-opener" aria-expanded="false" '
        f'aria-controls="ug-{name.lower()}">+ {name}</button>'
        for name in ATTRIBUTES
    )
    groups = "".join(_group(name, tables) for name, tables in ATTRIBUTES.items())
    return (
        '<div class="ug-suggest"><div class="ug-openers" role="group" '
        f'aria-label="Add to the prompt">{openers}'
        '<button type="button" class="ug-surprise">Surprise me</button></div>'
        f"{groups}</div>"
    )


def _group(name: str, tables: tuple[Phrases, ...]) -> str:
    """One attribute: a button for each value, with every wording of it."""
    buttons = ""
    for value, phrases in tables[0].items():
        wordings = [phrase for table in tables for phrase in table.get(value, ())]
        buttons += (
            '<button type="button" class="ug-chip" aria-pressed="false" '
            f'data-wordings="{escape(json.dumps(wordings))}">'
            f"{escape(phrases[0].removeprefix('the camera '))}</button>"
        )
    return (
        f'<fieldset id="ug-{name.lower()}" data-attribute="{name}" hidden>'
        f"<legend>{name}</legend>{buttons}</fieldset>"
    )


def surprise(prompt: str) -> str:
    """A whole prompt by lot, as the model's captions were; another one than this."""
    while True:
        seed = random.randrange(SURPRISES)
        found = captions.caption(sample_scene(seed), seed)
        if found != prompt:
            return found


def name_unknown_words(models: Models, prompt: str) -> str:
    """What the model does not read of a prompt, as HTML: words that it does not know, with those
    that come nearest, and what stands beyond its last token. Nothing for most prompts."""
    prompt = prompt[:MAX_PROMPT]
    unknown, notes = models.unknown_words(prompt), ""
    if unknown:
        meant = set(WORD.findall(prompt.lower())) - STOP_WORDS
        notes = _some_unknown(unknown) if meant - set(unknown) else _nothing_known(unknown)
    if rest := models.unread(prompt):
        pieces = "words and commas" if models.preset.vocabulary == "words" else "pieces of words"
        notes += (
            f"<p>The model reads {models.preset.max_sequence_length} {pieces}. It does not see "
            f"the end: <mark>{escape(_ends(rest))}</mark></p>"
        )
    return f'<div class="ug-words" role="status">{notes}</div>' if notes else ""


def _nothing_known(unknown: Sequence[str]) -> str:
    """For a prompt that the model knows no word of."""
    near = dict.fromkeys(phrase for _, phrase in _nearest(unknown))
    offers = f" Nearest: {', '.join(map(_use, near))}." if near else ""
    prompts = "".join(f"<li>{_use(prompt)}</li>" for prompt in PROMPTS[1:4])
    return (
        "<p><b>This model draws landscapes, and knows no word of this prompt</b>: "
        f"{_marked(unknown)}.{offers} Prompts that it knows:</p><ul>{prompts}</ul>"
    )


def _some_unknown(unknown: Sequence[str]) -> str:
    """For a prompt with some words that the model does not know."""
    verb = "this word" if len(unknown) == 1 else "these words"
    near = [
        # In place of a word, which may have an article already.
        f"{escape(word)} → {_use(re.sub('^(a|the) ', '', phrase), word)}"
        for word, phrase in _nearest(unknown)
    ]
    offers = f" Nearest: {', '.join(near)}" if near else ""
    return f"<p>The model does not know {verb}: {_marked(unknown)}{offers}</p>"


def _nearest(unknown: Sequence[str]) -> list[tuple[str, str]]:
    """Unknown words with a phrase of the grammar: one of like meaning, or of like spelling."""
    vocabulary, found = captions.vocabulary(), []
    for word in unknown[:SHOWN]:
        alike = get_close_matches(word[:40], vocabulary, n=1, cutoff=0.8)
        meant = NEAREST.get(word) or NEAREST.get(word.removesuffix("s"))
        if meant or alike:
            found.append((word, meant[0] if meant else alike[0]))
    return found


def _marked(words: Sequence[str]) -> str:
    marks = " ".join(f"<mark>{escape(word[:40])}</mark>" for word in words[:SHOWN])
    return marks + (f" and {len(words) - SHOWN} more" if len(words) > SHOWN else "")


def _use(phrase: str, word: str = "") -> str:
    """A phrase that a click puts into the prompt, in place of a word or of the whole."""
    return (
        f'<button type="button" class="ug-use" data-word="{escape(word)}">{escape(phrase)}</button>'
    )


def _ends(text: str, most: int = 12) -> str:
    """The first and the last words of a text, if it is long."""
    words = text.strip(" ,.").split()
    return " ".join(words if len(words) <= most else [*words[: most - 4], "…", *words[-4:]])
