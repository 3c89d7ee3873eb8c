"""How many horizons a picture has: what a model without a view of the whole frame gets wrong.

From top to bottom a picture is sky, then land. One whose windows were composed each for itself
comes back to its sky below the land, and has a horizon for each time that it does. The colours at
the upper edge stand for the sky, those at the lower edge for land, and each row of a strip counts
as the one that it is nearer to by far; one in between belongs to what came before.

Of 300 rendered scenes without water, under a sky of `WEATHERS`, half of each edition, 296 have one
horizon and 4 have two. Each reduced to half its height and laid below itself, 296 have two. Of 221
pairs of scenes with all attributes in common, laid below each other, 212 have two and 9 have one:
where the lower sky has other colours than the upper, it is not seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median_high

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .metrics import Frame, to_tensor

WEATHERS = ("clear", "scattered", "overcast")
"""Those in which horizons are counted: fog, rain and snow hide them, an aurora is like none of the
sky around it."""
ROWS, STRIPS, COLUMNS = 72, 8, 16  # a frame is reduced to so many rows, in strips of columns
EDGE = 8  # rows at the upper and the lower edge, which show what is sky and what is land
SKY, LAND = 0.65, 0.35  # a row's place between land, 0, and sky, 1, from where on it is one of them
LEAST = 4  # rows on end that sky or land takes at least
CONTRAST = 0.06  # least distance of the colours of sky and land, of 1 for each channel


def countable(named: Mapping[str, str]) -> bool:
    """Whether horizons can be counted in clips of captions that name these attributes: water
    shows the sky a second time."""
    return named.get("water") == "none" and named.get("weather") in WEATHERS


def horizons(frames: Sequence[Frame] | np.ndarray) -> int | None:
    """Horizons in the middle frame of a clip, uint8, t h w 3: the median over strips of it; None
    where sky and land look alike in most of them.

    Raises:
        ValueError: for frames of another type or shape.
    """
    picture = to_tensor(frames[len(frames) // 2])
    small = functional.adaptive_avg_pool2d(picture, (ROWS, STRIPS * COLUMNS))[0]
    # The middle one of a row's colours: stars, trees and birds do not count.
    strips = small.unflatten(2, (STRIPS, COLUMNS)).median(3).values.permute(2, 1, 0)  # strip row 3
    counts = [count for strip in strips if (count := _count(strip)) is not None]
    return median_high(counts) if 2 * len(counts) >= STRIPS else None


def _count(strip: Tensor) -> int | None:
    """How often sky becomes land in a strip's rows, n 3."""
    sky, land = strip[:EDGE].median(0).values, strip[-EDGE:].median(0).values
    if torch.linalg.vector_norm(sky - land) < CONTRAST:
        return None
    from_sky, from_land = (torch.linalg.vector_norm(strip - x, dim=1) for x in (sky, land))
    place = from_land / (from_sky + from_land)
    in_sky, run, count = True, 0, 0
    for changed_to_land, changed_to_sky in zip(place < LAND, place > SKY, strict=True):
        run = run + 1 if (changed_to_land if in_sky else changed_to_sky) else 0
        if run == LEAST:
            count += in_sky
            in_sky, run = not in_sky, 0
    return count
