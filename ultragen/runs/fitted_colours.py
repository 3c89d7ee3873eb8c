"""The map from latents to colours for a model that ships without one: fitted to its autoencoder.

The 1.3B model's autoencoder is not part of this package, so no matrix can be. What `LatentColours`
needs is found by encoding a few small rendered scenes and least squares, when a preview is wanted
for the first time, and is then kept in a file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import interpolate

from ..dataset.encoders import Autoencoder, encode_clip
from ..dataset.shards import vae_fingerprint
from ..files import first_line, whole_file
from ..sampling.latent_colours import LatentColours
from ..weights.hub import assets_folder
from ..world.renderer import render
from ..world.scene import sample_scene
from .progress import Cancelled

FRAMES = 5  # of a scene: the first, which has latents of its own, and four that share theirs
SHOWN = (3,)  # frames in the middle of the latent frames after the first, which hold four each
CELL = 4  # rows, and columns, of pixels of a frame that become one pixel of a preview
POSITIONS = (8, 12)  # rows and columns of a scene's latents
SCENES = (100, 102, 104, 105, 106, 107)  # seeds, held out from training
CHECKED = 101  # the seed that the fit is judged by
EDITION = 1  # of the world
ORDERS = tuple(permutations(range(3)))  # of the colour channels
LEAST = 0.5
"""Part of a held-out scene's variance that a map must explain to be shown. Autoencoders
with random weights came to at most 0.15, of Wan's true size too, and the embedded model's, whose
map has three times as many unknowns as Wan's, to 0.87."""
RECIPE = 1
"""Another one where the same autoencoder gives another matrix."""


def cells_of(vae: Autoencoder) -> int:
    """Rows, and columns, of preview pixels for one latent position: 4 for the embedded model's
    autoencoder, 2 for Wan's."""
    return max(1, vae.config.scale_factor_spatial // CELL)


def examples(vae: Autoencoder, clip: Tensor) -> tuple[Tensor, Tensor]:
    """What a fit learns from.

    Args:
        vae: The autoencoder, where it computes or offloaded with hooks.
        clip: 3 t h w in [0, 1], of `FRAMES` frames.

    Returns:
        Latents of unit variance, as they are while a clip denoises, with a constant 1,
        n (c + 1), and the colours at their positions, n (y x 3).
    """
    latents = encode_clip(vae, [clip * 2 - 1])[:, 1:].float()
    positions = rearrange(latents, "c t h w -> (t h w) c")
    cells = cells_of(vae)
    sides = tuple(cells * length for length in latents.shape[2:])
    frames = interpolate(clip[:, SHOWN].transpose(0, 1), sides, mode="area")
    colours = rearrange(frames, "t c (h y) (w x) -> (t h w) (y x c)", y=cells, x=cells)
    return torch.cat([positions, torch.ones(len(positions), 1)], dim=1), colours


def least_squares(fitted: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The matrix of `LatentColours` that fits `examples` best, (c + 1) (y x 3)."""
    inputs, colours = (torch.cat(parts) for parts in zip(*fitted, strict=True))
    # This driver takes latents that depend on each other, too.
    found = torch.linalg.lstsq(inputs.double(), colours.double(), driver="gelsd")
    return found.solution.float()


def explained(matrix: Tensor, example: tuple[Tensor, Tensor]) -> float:
    """R²: the part of the variance of an example's colours that a map explains, 1 at best."""
    inputs, colours = example
    rest = (inputs @ matrix - colours).square().sum()
    pixels = colours.view(-1, 3)
    return float(1 - rest / (pixels - pixels.mean(0)).square().sum())


def scenes(vae: Autoencoder) -> Iterator[Tensor]:
    """Clips 3 t h w in [0, 1] in which all colours occur, then the one that the fit is judged by.

    Landscapes lack colours, so each of the scenes has its channels in another order, and every
    second one is a negative. To draw less, one wider picture is made of each, over which the frames
    move by a pixel each.
    """
    height, width = (length * vae.config.scale_factor_spatial for length in POSITIONS)
    drawn = [sample_scene(seed, EDITION) for seed in (*SCENES, CHECKED)]
    pictures = render(drawn, height, width + FRAMES - 1, 1)[:, :, 0]
    *clips, checked = pictures.unfold(3, width, 1).movedim(3, 2)
    for number, clip in enumerate(clips):
        clip = clip[list(ORDERS[number % len(ORDERS)])]
        yield 1 - clip if number % 2 else clip
    yield checked


def fit(vae: Autoencoder, check: Callable[[], None] = lambda: None) -> tuple[Tensor, float]:
    """Fits the map to an autoencoder.

    Args:
        vae: As in `examples`.
        check: Called before each scene; what it raises ends the fit.

    Returns:
        The matrix, and the part of the held-out scene's variance that it explains.
    """
    found = []
    for clip in scenes(vae):
        check()
        found.append(examples(vae, clip))
    *fitted, checked = found
    matrix = least_squares(fitted)
    return matrix, explained(matrix, checked)


class FittedColours:
    """The map of a model without one of its own, made when it is first asked for.

    It is kept in memory and in a file, which a later process, such as the next worker on ZeroGPU,
    reads. A map that explains less than `LEAST` of a held-out scene shows no picture, so there is
    none.

    Args:
        pipe: The pipeline whose autoencoder it is.
        source: The folder that the weights came from, with the autoencoder in `vae`.
        folder: Where the file is kept; None takes huggingface_hub's folder for such things.
    """

    def __init__(self, pipe: Any, source: Path, folder: Path | None = None) -> None:
        self.pipe, self.source = pipe, source
        self.folder = folder or assets_folder("latent_colours")
        self._found: LatentColours | None = None
        self._sought = False

    def find(self, check: Callable[[], None] = lambda: None) -> LatentColours | None:
        """The map; None where there is none that shows anything, or it could not be made.

        Args:
            check: As in `fit`.

        Raises:
            Cancelled: if the run was stopped; the next one begins anew.
        """
        if not self._sought:
            try:
                self._found = self._find(check)
            except Cancelled:
                raise
            except Exception as error:  # a clip without previews is worth more than none
                print(f"There are no previews: {first_line(error)}", file=sys.stderr)
            self._sought = True
        return self._found

    def _find(self, check: Callable[[], None]) -> LatentColours | None:
        vae = self.pipe.vae
        key = sha256(f"{RECIPE} {vae_fingerprint(self.source)}".encode()).hexdigest()
        path = self.folder / f"{key[:32]}.npz"
        shape = (vae.config.z_dim + 1, 3 * cells_of(vae) ** 2)
        kept = _read(path, key, shape)
        if kept is None:
            try:
                kept = fit(vae, check)
            finally:
                self.pipe.maybe_free_model_hooks()  # an offloaded autoencoder goes back
            _write(path, key, *kept)
        matrix, part = kept
        return LatentColours(matrix) if part >= LEAST else None


def _read(path: Path, key: str, shape: tuple[int, int]) -> tuple[Tensor, float] | None:
    """What `_write` has kept; None where it is not there, damaged, or something else."""
    try:
        with np.load(path, allow_pickle=False) as file:
            matrix, part, of = file["matrix"], file["explained"], file["key"]
    except Exception:  # the readers of a damaged file raise whatever they like
        return None
    if of.shape or str(of) != key or part.shape or part.dtype != np.float64:
        return None
    if matrix.shape != shape or matrix.dtype != np.float32 or not np.isfinite(matrix).all():
        return None
    return torch.from_numpy(matrix), float(part)


def _write(path: Path, key: str, matrix: Tensor, part: float) -> None:
    """Keeps a map; where that can't be done, the next process fits it again."""
    with suppress(OSError), whole_file(path) as partial:
        np.savez(partial, matrix=matrix.numpy(), explained=np.float64(part), key=np.array(key))
