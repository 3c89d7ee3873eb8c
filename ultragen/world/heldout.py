"""Held-out scenes as an evaluation needs them: a caption, what it names, and the real clip."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ..pictures import to_frames
from .captions import ALTITUDES, BIRDS, BODIES, CAMERAS, LIGHT_ONLY, MOODS, SIDES, TREES, caption
from .grown_captions import describe
from .renderer import render
from .scene import (
    GROWN_VERSION,
    HELD_OUT_SEEDS,
    VERSION,
    Scene,
    SceneAttributes,
    sample_scene,
)

EVALUATED = range(600_000, 700_000)
"""Seeds of the scenes whose captions are prompts."""
REFERENCE = range(700_000, 800_000)
"""Seeds of the scenes that HD-FVD compares with: other ones, so that real clips have a distance
to them too."""
STRIP = 272  # rows that are rendered at once: a whole 4K clip would take gigabytes as floats


@dataclass(frozen=True)
class HeldOutClip:
    """A scene that nothing was trained on.

    Attributes:
        scene: What is shown.
    """

    scene: Scene

    @property
    def seed(self) -> int:
        """The scene's."""
        return self.scene.seed

    @property
    def world(self) -> int | str:
        """Which one it is drawn in, see `scene.VERSION`."""
        if self.scene.edition == 1:
            return VERSION
        return f"{GROWN_VERSION} of edition {self.scene.edition}"

    @cached_property
    def caption(self) -> str:
        """The prompt."""
        return caption(self.scene, seed=self.scene.seed)

    @cached_property
    def named(self) -> dict[str, str]:
        """The attributes that the caption names, with their values."""
        if self.scene.edition == 1:
            return named_attributes(self.scene.attributes, self.caption)
        names = describe(self.scene, self.scene.seed).names
        return {name: getattr(self.scene.attributes, name) for name in sorted(names)}

    def frames(
        self, height: int, width: int, num_frames: int, device: torch.device | str = "cpu"
    ) -> np.ndarray:
        """The real clip: uint8, t h w 3."""
        clip = np.empty((num_frames, height, width, 3), np.uint8)
        for top in range(0, height, STRIP):
            rows = min(STRIP, height - top)
            region = (top, 0, rows, width)
            strip = render([self.scene], height, width, num_frames, region=region, device=device)
            clip[:, top : top + rows] = to_frames(strip[0])
        return clip


def held_out_clips(number: int, seeds: range = EVALUATED, edition: int = 1) -> list[HeldOutClip]:
    """The first scenes of a range of held-out seeds, in an edition of the world.

    Raises:
        ValueError: The range has fewer, or is not held out.
    """
    if not 1 <= number <= len(seeds) or seeds[0] < 0 or seeds[-1] not in HELD_OUT_SEEDS:
        raise ValueError(f"clips must be from 1 to {len(seeds)}, not {number}.")
    return [HeldOutClip(sample_scene(seed, edition)) for seed in seeds[:number]]


def named_attributes(attributes: SceneAttributes, text: str) -> dict[str, str]:
    """What a caption of the first edition's grammar says about its scene.

    Time of day, terrain, weather and water are always said, "no water" by silence. Of the other
    attributes a caption says nothing where there is nothing, and sometimes where there is.
    """
    clauses = text.split(", ")

    def said(phrases: tuple[str, ...]) -> bool:
        return any(clause in phrases for clause in clauses)

    names = ["time_of_day", "terrain", "weather", "water"]
    names += ["snow_caps"] if attributes.snow_caps == "yes" else []
    names += ["trees"] if attributes.trees != "none" and said(TREES[attributes.trees]) else []
    names += ["birds"] if attributes.birds == "yes" and said(BIRDS) else []
    names += ["camera"] if said(CAMERAS[attributes.camera]) else []
    names += ["mood"] if said(MOODS[attributes.mood]) else []
    if attributes.celestial != "none":
        names += _named_place(attributes, clauses)
    return {name: getattr(attributes, name) for name in names}


def _named_place(attributes: SceneAttributes, clauses: list[str]) -> list[str]:
    """Whether sun or moon are named, and where they are."""
    body = attributes.celestial
    for clause in clauses:
        if clause in LIGHT_ONLY[body]:
            return ["celestial"]
        subject = max((x for x in BODIES[body] if clause.startswith(x)), key=len, default=None)
        if subject is None:
            continue
        place = clause.removeprefix(subject).strip()
        orders = _orders(ALTITUDES[attributes.celestial_altitude], SIDES[attributes.celestial_side])
        if place in orders:
            return ["celestial", *orders[place]]
    return []


def _orders(altitudes: tuple[str, ...], sides: tuple[str, ...]) -> dict[str, list[str]]:
    """Every way to say a place, with what it names."""
    high, side = "celestial_altitude", "celestial_side"
    orders: dict[str, list[str]] = {"": []}
    orders |= {text: [high] for text in altitudes} | {text: [side] for text in sides}
    for one in altitudes:
        for other in sides:
            orders |= {f"{one} {other}": [high, side], f"{other} {one}": [high, side]}
    return orders
