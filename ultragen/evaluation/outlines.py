"""Whether the line between sky and land is one, and unbroken: what is wrong with soft pictures.

The skyline is the best path from the left to the right edge of a frame: along strong gradients,
with little fine texture above it, because land has some and a sky has none. A column of it holds
where most of the step between the colours around it happens within two pixels. Numbers were chosen
on 60 rendered clips of mountains and canyons under a clear sky, `HOLDING` on 120 others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .metrics import Frame, to_tensor

TERRAINS = ("mountains", "canyon")
"""Those whose skyline is judged."""
WEATHERS = ("clear",)
"""Those in which it is: clouds, rain and snow have edges of their own."""
ROWS = 270  # a frame is made so small: what is broken there is seen in any size
REACH = 4  # pixels around the line in which a step between sky and land counts as one
ECHO = 0.25  # a line beside the first one that has so much of its step doubles it
CRISP = 0.55  # part of the step that two pixels have, where the line is sharp
ECHO_REACH = 9  # rows to each side in which a second line makes a doubled one
GAP = 0.10  # of the width: a longer hole breaks the line
HOLDING = 0.65  # part of the columns that must hold
TEXTURE = 0.35  # price of fine texture above the line, against the gradient on it
STEEP = 0.02  # price of a row that the line climbs
MOST = 0.50  # a stronger gradient, as of the sun, counts no more than that
CLIMB = 12  # most rows that it climbs from one column to the next


@dataclass(frozen=True)
class Skyline:
    """The line between sky and land in a frame.

    Attributes:
        rows: Row of each column in the reduced frame, w.
        step: How far apart colours close to it are, w.
        crisp: Part of that step within two pixels, w.
        echo: Strength of a second line beside it, as a part of it.
    """

    rows: Tensor
    step: Tensor
    crisp: Tensor
    echo: float


def skyline(frame: Frame) -> Skyline:
    """Finds the line in a frame, uint8, h w 3.

    Raises:
        ValueError: for another type or shape.
    """
    picture = to_tensor(frame)
    scale = ROWS / picture.shape[2]
    if scale < 1:
        size = (ROWS, max(8, round(picture.shape[3] * scale)))
        picture = functional.interpolate(picture, size, mode="area")
    gradient = _gradient(picture)
    # Stars, birds and twigs are no part of the line.
    plain = _without_specks(picture)
    grey = plain.mean(1)
    fine = grey - functional.avg_pool2d(grey, 3, 1, 1, count_include_pad=False)
    above = fine[0].abs().clamp(max=0.02).cumsum(0)
    above = functional.pad(above, (0, 0, REACH, 0))[:-REACH]  # the line itself is not above it
    rows = _best_path(_gradient(plain).clamp(max=MOST) - TEXTURE * above)
    highest, lowest = (
        functional.max_pool2d(x, 2 * REACH + 1, 1, REACH) for x in (picture, -picture)
    )
    step = (highest + lowest)[0].square().sum(0).sqrt()
    sharpest = functional.max_pool2d(gradient[None, None], 5, 1, 2)[0, 0]
    columns = torch.arange(len(rows))
    step = step[rows, columns]
    crisp = sharpest[rows, columns] / step.clamp(min=1e-6)
    return Skyline(rows, step, crisp, _echo(picture, rows))


def _gradient(picture: Tensor) -> Tensor:
    """Length of the colours' change over two pixels, h w, for 1 3 h w."""
    padded = functional.pad(picture, (1, 1, 1, 1), mode="replicate")[0]
    down = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    across = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    return (down.square() + across.square()).sum(0).sqrt()


def _without_specks(picture: Tensor) -> Tensor:
    """Opening and closing by five pixels: what is narrower and bright, then what is narrower and
    dark, is gone; 1 3 h w."""
    for sign in (-1, 1):
        for turn in (sign, -sign):
            picture = turn * functional.max_pool2d(turn * picture, 5, 1, 2)
    return picture


def _echo(picture: Tensor, rows: Tensor) -> float:
    """How strong a second line is that runs beside the first one, as a part of it.

    Around each column's line the steps from row to row are compared with the line's own; the
    median over the columns is about nothing for what lies there by chance.
    """
    reach = range(-ECHO_REACH, ECHO_REACH + 1)
    places = rows + torch.tensor(reach)[:, None]
    columns = torch.arange(len(rows))
    height = picture.shape[2]
    upper = picture[0][:, (places - 1).clamp(0, height - 1), columns]
    lower = picture[0][:, (places + 1).clamp(0, height - 1), columns]
    steps = lower - upper  # 3 offset w
    strongest = steps[:, ECHO_REACH - 1 : ECHO_REACH + 2].square().sum(0).argmax(0)
    own = steps[:, ECHO_REACH - 1 + strongest, columns]
    alike = (steps * own[:, None]).sum(0) / own.square().sum(0).clamp(min=1e-6)
    beside = torch.tensor([abs(offset) > 3 for offset in reach])
    return float(alike.median(dim=1).values[beside].max())


def _best_path(gain: Tensor) -> Tensor:
    """The row of each column on the path with the most gain, h w → w (dynamic programming)."""
    rows, columns = gain.shape
    total = gain[:, 0]
    steps = torch.arange(-CLIMB, CLIMB + 1)
    price = STEEP * steps.abs().float()
    came = []
    for column in range(1, columns):
        padded = functional.pad(total, (CLIMB, CLIMB), value=-1e9)
        best, index = (padded.unfold(0, 2 * CLIMB + 1, 1) - price).max(dim=1)
        came.append(index - CLIMB)
        total = best + gain[:, column]
    path = [int(total.argmax())]
    for index in reversed(came):
        path.append(min(max(path[-1] + int(index[path[-1]]), 0), rows - 1))
    return torch.tensor(path[::-1])


def unbroken(frames: Sequence[Frame] | np.ndarray) -> bool:
    """Whether the skyline of a clip's middle frame, t h w 3, is one unbroken line.

    It is for clips of `TERRAINS` in `WEATHERS`.
    """
    line = skyline(frames[len(frames) // 2])
    holds = line.crisp > CRISP
    whole = holds.float().mean() >= HOLDING and _longest(~holds) <= GAP * len(holds)
    return bool(whole and line.echo < ECHO)


def _longest(flags: Tensor) -> int:
    """Length of the longest run of true values."""
    longest = run = 0
    for flag in flags.tolist():
        run = run + 1 if flag else 0
        longest = max(longest, run)
    return longest
