"""The phrases that captions of both editions are made of, and how they are put in order."""

from __future__ import annotations

import random
from typing import TypeVar

Phrases = dict[str, tuple[str, ...]]
Part = TypeVar("Part")

TIMES: Phrases = {
    "dawn": ("at dawn", "at daybreak", "at sunrise", "at first light", "in the early morning",
             "as the day begins", "before the day begins", "at the break of day"),
    "morning": ("in the morning", "on a morning", "in morning light", "in the late morning",
                "on a fresh morning", "in the soft morning light"),
    "noon": ("at noon", "at midday", "in the middle of the day", "in bright daylight",
             "during the day", "in full daylight", "by day"),
    "sunset": ("at sunset", "in the evening sun", "at golden hour", "in the golden hour",
               "in golden light", "as the sun sets", "under a sunset sky",
               "in the glow of the sunset"),
    "dusk": ("at dusk", "at twilight", "in the blue hour", "at nightfall", "in the evening",
             "after sunset", "in the last light"),
    "night": ("at night", "by night", "in the night", "at midnight", "on a dark night",
              "under the night sky", "in the dark"),
}  # fmt: skip

TERRAINS: Phrases = {
    "mountains": ("mountains", "high mountains", "mountain peaks", "a mountain range", "peaks",
                  "rocky mountains", "tall mountains", "alps", "steep mountains",
                  "a range of mountains", "the mountains", "a chain of peaks"),
    "hills": ("hills", "rolling hills", "gentle hills", "green hills", "soft hills",
              "a hilly landscape", "low hills", "the hills", "a hilly countryside"),
    "dunes": ("dunes", "sand dunes", "a desert", "a sandy desert", "desert dunes",
              "a desert with dunes", "golden dunes", "the desert", "hills of sand"),
    "islands": ("islands", "small islands", "rocky islands", "a group of islands", "an island",
                "an archipelago", "scattered islands", "distant islands"),
    "canyon": ("a canyon", "mesas", "a red canyon", "red rocks", "canyon walls", "red cliffs",
               "a rocky canyon", "table mountains of red rock", "a desert with mesas",
               "layered cliffs"),
    "plains": ("plains", "a wide plain", "a meadow", "grassland", "open fields", "a prairie",
               "flat grassland", "a grassy plain", "endless meadows", "the steppe"),
}  # fmt: skip

SNOWY_TERRAINS: Phrases = {
    "mountains": ("snowy mountains", "snow capped mountains", "snowy peaks",
                  "mountains with snow on top", "white peaks", "snow covered mountains",
                  "a snowy mountain range", "mountains covered in snow", "icy mountains"),
    "hills": ("snowy hills", "hills with snow", "snow covered hills", "white hills",
              "hills covered in snow"),
    "dunes": ("snowy dunes", "dunes with snow", "a snowy desert", "snow covered sand dunes"),
    "islands": ("snowy islands", "islands with snow", "snow covered islands",
                "rocky islands covered in snow"),
    "canyon": ("a snowy canyon", "mesas with snow", "snow covered cliffs",
               "a canyon covered in snow"),
    "plains": ("snowy plains", "a snow covered plain", "snowy fields", "a snowy meadow",
               "fields covered in snow"),
}  # fmt: skip

WATERS: Phrases = {
    "lake": ("a lake", "a calm lake", "a still lake", "a quiet lake", "a mirror lake",
             "a wide lake", "calm water", "a clear lake", "the water of a lake", "a smooth lake"),
    "sea": ("the sea", "the ocean", "a wide sea", "the open sea", "waves", "a rippling sea",
            "ocean waves", "the waves of the sea", "a vast ocean"),
}  # fmt: skip

# {w} water, {t} terrain
WET_LAND: Phrases = {
    "lake": ("{w} under {t}", "{w} below {t}", "{w} in front of {t}", "{t} reflected in {w}",
             "{t} above {w}", "{t} behind {w}", "{t} by {w}", "{w} between {t}", "{w} and {t}",
             "{t} mirrored in {w}", "{t} with {w}", "{w} near {t}", "{w} at the foot of {t}"),
    "sea": ("{w} and {t}", "{w} in front of {t}", "{t} by {w}", "{t} above {w}", "{t} near {w}",
            "{t} on the coast of {w}", "{w} with {t}", "{t} at {w}", "{t} along {w}",
            "a coast with {t} and {w}", "{t} behind {w}"),
}  # fmt: skip
ISLAND_LAND = ("{t} in {w}", "{w} with {t}", "{w} and {t}", "{t} surrounded by {w}",
               "{t} rising from {w}", "{t} on {w}")  # fmt: skip

WEATHERS: Phrases = {
    "clear": ("clear sky", "a clear sky", "cloudless sky", "clear weather", "clear air",
              "an open sky", "hardly any clouds", "no clouds"),
    "scattered": ("scattered clouds", "drifting clouds", "some clouds", "a few clouds",
                  "partly cloudy", "clouds in the sky", "clouds drift by", "a cloudy sky",
                  "broken clouds"),
    "overcast": ("overcast", "overcast sky", "a grey sky", "heavy clouds", "thick clouds",
                 "an overcast sky", "a gray sky", "covered by clouds", "gloomy weather"),
    "rain": ("rain", "falling rain", "in the rain", "it rains", "rainy weather", "a rain shower",
             "rain is falling", "heavy rain", "rainy"),
    "snowfall": ("snowfall", "snow is falling", "falling snow", "it snows", "snowflakes",
                 "a snowstorm", "drifting snowflakes", "snowing"),
    "fog": ("fog", "mist", "in thick fog", "foggy", "misty", "fog banks", "hazy air",
            "mist in the air", "drifting fog", "covered in mist"),
    "aurora": ("aurora", "northern lights", "an aurora in the sky", "green aurora",
               "polar lights", "the northern lights glow", "dancing northern lights"),
}  # fmt: skip

BODIES: Phrases = {
    "sun": ("the sun", "the sun", "a bright sun", "sun", "a glowing sun"),
    "moon": ("the moon", "a full moon", "moon", "a bright moon", "the full moon"),
}
ALTITUDES: Phrases = {
    "low": ("low", "low in the sky", "near the horizon", "just above the horizon",
            "low above the horizon", "close to the horizon"),
    "high": ("high", "high in the sky", "high up", "high above"),
}  # fmt: skip
SIDES: Phrases = {
    "left": ("on the left", "to the left", "at the left", "on the left side"),
    "centre": ("in the middle", "in the centre", "in the center", "straight ahead"),
    "right": ("on the right", "to the right", "at the right", "on the right side"),
}
LIGHT_ONLY: Phrases = {
    "sun": ("sunlight", "sunshine", "sunny", "the sun shines"),
    "moon": ("moonlight", "moonlit", "the moon shines"),
}

TREES: Phrases = {
    "pines": ("pine trees", "pines", "fir trees", "a pine forest", "conifers", "spruce trees",
              "dark firs"),
    "broadleaf": ("trees", "a forest", "woods", "leafy trees", "green trees", "round trees",
                  "bushes and trees"),
}  # fmt: skip
BIRDS = ("birds", "flying birds", "birds fly by", "a flock of birds", "birds in the sky",
         "a few birds", "birds are flying", "seagulls")  # fmt: skip

CAMERAS: Phrases = {
    "static": ("static camera", "the camera is still", "a still camera", "fixed camera",
               "the camera does not move", "static shot", "the camera stands still"),
    "pan left": ("the camera pans left", "camera pans to the left", "pan left",
                 "the camera turns left", "panning left", "slow pan to the left",
                 "the camera moves to the left"),
    "pan right": ("the camera pans right", "camera pans to the right", "pan right",
                  "the camera turns right", "panning right", "slow pan to the right",
                  "the camera moves to the right"),
    "rise": ("the camera rises", "camera rising", "the camera moves up", "the camera goes up",
             "rising camera", "the camera lifts", "a rising drone shot", "the camera climbs"),
    "zoom in": ("the camera zooms in", "zoom in", "slow zoom in", "zooming in",
                "the camera moves forward", "the camera moves closer", "the camera flies forward",
                "push in"),
}  # fmt: skip

MOODS: Phrases = {
    "neutral": ("natural colors", "natural colours", "natural light", "realistic"),
    "warm": ("warm colors", "warm colours", "warm light", "a warm mood", "warm tones", "warm"),
    "cool": ("cool colors", "cool colours", "cold light", "a cool mood", "cool tones",
             "bluish tones", "cold"),
    "pastel": ("pastel colors", "pastel colours", "soft colors", "pale colours", "a dreamy mood",
               "pastel tones", "pastel", "faded colors"),
}  # fmt: skip

OPENINGS = ("", "", "", "", "", "a view of ", "a landscape with ", "a video of ", "a shot of ",
            "a scene with ", "a photo of ", "scenery with ", "a beautiful view of ", "cinematic, ",
            "a peaceful landscape with ", "a wide shot of ", "looking at ")  # fmt: skip


def arranged(
    chance: random.Random, style: float, head: str, time: str, details: list[str], camera: list[str]
) -> str:
    if style < 0.6:
        parts = [f"{head} {time}", *details, *camera]
    elif style < 0.75:
        parts = [time, head, *details, *camera]
    elif style < 0.9:
        parts = [head, *shuffled(chance, [time, *details, *camera])]
    else:
        parts = [*camera, f"{head} {time}", *details]
    return ", ".join(parts)


def often(chance: random.Random, share: float, phrase: str) -> list[str]:
    return [phrase] if chance.random() < share else []


def shuffled(chance: random.Random, parts: list[Part]) -> list[Part]:
    return chance.sample(parts, len(parts))
