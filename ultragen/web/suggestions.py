"""What helps with a prompt: phrases to add, a whole one by lot, and what the model makes of it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from html import escape

from ..presets import PROMPTS
from ..runs.loading import Models
from ..runs.request import MAX_PROMPT
from ..sampling.words import STOP_WORDS, WORD
from ..world import captions, grown_captions
from ..world.scene import sample_scene

Phrases = Mapping[str, Sequence[str]]

# What there is none of, among the values of what there may be: a click exchanges one for the other.
GROWN_SKIES: Phrases = {
    **grown_captions.SKIES,
    "stars": grown_captions.STARS,
    "no stars": grown_captions.ABSENT["stars"],
}
LIGHTS: Phrases = {
    "sun": grown_captions.BODIES["sun", "normal"],
    "moon": grown_captions.BODIES["moon", "normal"],
    "huge sun": grown_captions.BODIES["sun", "huge"],
    "huge moon": grown_captions.BODIES["moon", "huge"],
    "none": ("without sun or moon", *grown_captions.HIDDEN["day"], *grown_captions.HIDDEN["night"]),
}
# Of each edition of the world, an attribute of a scene, and the wordings of each of its values: all
# from the grammar that the model's captions were written with. Snowy terrain is one more way to say
# terrain.
ATTRIBUTES: dict[int, dict[str, tuple[Phrases, ...]]] = {
    1: {
        "Time": (captions.TIMES,),
        "Weather": (captions.WEATHERS,),
        "Terrain": (captions.TERRAINS, captions.SNOWY_TERRAINS),
        "Water": (captions.WATERS,),
        "Camera": (captions.CAMERAS,),
    },
    2: {
        "Time": (captions.TIMES,),
        # The word alone, for which the other season's fits in "on a winter night" as well.
        "Season": ({season: (season,) for season in grown_captions.SEASONS},),
        "Weather": (grown_captions.WEATHERS,),
        "Sky": (GROWN_SKIES,),
        "Light": (LIGHTS, captions.LIGHT_ONLY),
        "Terrain": (grown_captions.TERRAINS, grown_captions.SNOWY_TERRAINS),
        "Water": (grown_captions.WATERS,),
        "Trees": (grown_captions.TREES,),
        "Ground": (grown_captions.GROUNDS, grown_captions.SHORES),
        "Mood": (captions.MOODS,),
        "Camera": (captions.CAMERAS,),
    },
}
# What people ask landscapes for in other words, and the value of the grammar that comes closest.
NEAREST: dict[int, dict[str, Sequence[str]]] = {
    1: {
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
    },
    2: {
        "boat": grown_captions.WATERS["sea"],
        "creek": grown_captions.WATERS["river"],
        "waterfall": grown_captions.WATERS["river"],
        "pond": grown_captions.WATERS["lake"],
        "glacier": grown_captions.WATERS["ice"],
        "volcano": grown_captions.TERRAINS["mountains"],
        "cave": grown_captions.TERRAINS["canyon"],
        "farm": grown_captions.TERRAINS["plains"],
        "garden": grown_captions.GROUNDS["flowers"],
        "jungle": grown_captions.TREES["forest"],
        "thunder": grown_captions.WEATHERS["storm"],
        "lightning": grown_captions.WEATHERS["storm"],
        "galaxy": grown_captions.STARS,
        "eagle": grown_captions.BIRDS,
    },
}
SHOWN = 12  # words that are named; more say nothing new
SURPRISES = 2**31


def panel(edition: int) -> str:
    """Phrases to click of an edition of the world, one attribute at a time; `suggestions.js` puts
    them into the prompt."""
    openers = "".join(
        f'<button type="button" class="ug-opener" aria-expanded="false" '
        f'aria-controls="ug-{name.lower()}">+ {name}</button>'
        for name in ATTRIBUTES[edition]
    )
    groups = "".join(_group(name, tables) for name, tables in ATTRIBUTES[edition].items())
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


def surprises(edition: int) -> Callable[[str], str]:
    """What writes a prompt about an edition of the world; pages call it by its name."""

    def surprise(prompt: str) -> str:
        """A whole prompt by lot, as the model's captions were; another one than this."""
        while True:
            seed = random.randrange(SURPRISES)
            found = captions.caption(sample_scene(seed, edition), seed)
            if found != prompt:
                return found

    return surprise


def name_unknown_words(models: Models, prompt: str) -> str:
    """What the model does not read of a prompt, as HTML: words that it does not know, with those
    that come nearest, and what stands beyond its last token. Nothing for most prompts."""
    prompt = prompt[:MAX_PROMPT]
    unknown, notes = models.unknown_words(prompt), ""
    if unknown:
        meant = set(WORD.findall(prompt.lower())) - STOP_WORDS
        near = _nearest(unknown, models.edition)
        some = meant - set(unknown)
        notes = _some_unknown(unknown, near) if some else _nothing_known(unknown, near)
    if rest := models.unread(prompt):
        pieces = "words and commas" if models.preset.vocabulary == "words" else "pieces of words"
        notes += (
            f"<p>The model reads {models.preset.max_sequence_length} {pieces}. It does not see "
            f"the end: <mark>{escape(_ends(rest))}</mark></p>"
        )
    return f'<div class="ug-words" role="status">{notes}</div>' if notes else ""


def _nothing_known(unknown: Sequence[str], near: Sequence[tuple[str, str]]) -> str:
    """For a prompt that the model knows no word of."""
    phrases = dict.fromkeys(phrase for _, phrase in near)
    offers = f" Nearest: {', '.join(map(_use, phrases))}." if phrases else ""
    prompts = "".join(f"<li>{_use(prompt)}</li>" for prompt in PROMPTS[1:4])
    return (
        "<p><b>This model draws landscapes, and knows no word of this prompt</b>: "
        f"{_marked(unknown)}.{offers} Prompts that it knows:</p><ul>{prompts}</ul>"
    )


def _some_unknown(unknown: Sequence[str], near: Sequence[tuple[str, str]]) -> str:
    """For a prompt with some words that the model does not know."""
    verb = "this word" if len(unknown) == 1 else "these words"
    places = [
        # In place of a word, which may have an article already.
        f"{escape(word)} → {_use(re.sub('^(a|the) ', '', phrase), word)}"
        for word, phrase in near
    ]
    offers = f" Nearest: {', '.join(places)}" if places else ""
    return f"<p>The model does not know {verb}: {_marked(unknown)}{offers}</p>"


def _nearest(unknown: Sequence[str], edition: int) -> list[tuple[str, str]]:
    """Unknown words with a phrase of an edition's grammar: one of like meaning, or of like
    spelling."""
    meanings, vocabulary, found = NEAREST[edition], captions.vocabulary(edition), []
    for word in unknown[:SHOWN]:
        alike = get_close_matches(word[:40], vocabulary, n=1, cutoff=0.8)
        meant = meanings.get(word) or meanings.get(word.removesuffix("s"))
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
