"""The procedural landscape world: endless captioned clips at any resolution.

`sample_scene` and `make_scene` describe a landscape (see `world`), `render` draws it (see
`rendering`), `captions.caption` describes it in words.
"""

from __future__ import annotations

from ultragen.training.rendering import FRAMES_PER_SECOND, compile_renderer, render
from ultragen.training.world import ALLOWED, Scene, SceneAttributes, make_scene, sample_scene

__all__ = [
    "ALLOWED",
    "FRAMES_PER_SECOND",
    "Scene",
    "SceneAttributes",
    "compile_renderer",
    "make_scene",
    "render",
    "sample_scene",
]
