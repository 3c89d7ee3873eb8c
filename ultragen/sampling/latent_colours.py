"""What a clip will look like, while it denoises: a linear map from latents to colours.

An autoencoder's latents are so nearly linear in the pixels' mean colours that a matrix shows the
composition, in the thousandth part of a step's time. It is fitted once, by least squares, to the
encoded frames of rendered scenes: by `scripts/fit_latent_colours.py` for the embedded model, and
when it is first needed for others (`runs/fitted_colours.py`).
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ..pictures import to_image

FILE = "latent_colours.npy"
"""In a model's folder: the map's matrix."""
LARGEST = 480  # rows and columns in pixels of a preview
QUALITY = 78  # of its JPEG, 1 to 95


class LatentColours:
    """The map: each latent position becomes `cells` × `cells` pixels.

    Args:
        matrix: Channels and a constant 1 → the pixels' colours, (c + 1) × (cells · cells · 3), rows
            before columns before colours in [0, 1].
    """

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self.cells = round((matrix.shape[1] / 3) ** 0.5)

    @classmethod
    def load(cls, folder: Path, channels: int) -> LatentColours | None:
        """The map of a model's folder; None where it has none.

        Args:
            folder: The model's.
            channels: Channels of its latents.

        Raises:
            OSError: The file is damaged, or another model's.
        """
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            matrix = np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise OSError(f"{path} is damaged: fetch it again, or remove it.") from error
        if matrix.ndim != 2 or len(matrix) != channels + 1:
            raise OSError(
                f"{path} is of shape {matrix.shape}, and latents of {channels} channels need "
                f"{channels + 1} rows: it is another model's; remove it."
            )
        return cls(torch.from_numpy(matrix).float())

    def frame(self, latents: Tensor) -> Tensor:
        """A latent frame c h w of unit variance → its colours 3 (h · cells) (w · cells)."""
        rows, columns = latents.shape[1:]
        pixels = rearrange(latents.float().cpu(), "c h w -> (h w) c") @ self.matrix[:-1]
        pixels += self.matrix[-1]
        return rearrange(
            pixels,
            "(h w) (y x c) -> c (h y) (w x)",
            h=rows, w=columns, y=self.cells, x=self.cells,
        )  # fmt: skip


class DenoisingPreview:
    """Previews of one clip as it denoises.

    Args:
        colours: The map.
    """

    def __init__(self, colours: LatentColours) -> None:
        self.colours = colours
        self._before: Tensor | None = None

    def after_step(self, step: int, latents: Tensor, sigmas: Tensor) -> bytes | None:
        """The clip's middle as a JPEG file; None after the first step, when it is not known yet.

        Args:
            step: Which step was taken, from 0.
            latents: What it led to, b c t h w; the first clip is shown.
            sigmas: Noise levels, one more than steps.
        """
        now = latents[0, :, latents.shape[2] // 2].float().cpu()
        before, self._before = self._before, now
        if before is None:
            return None
        level, next_level = float(sigmas[step]), float(sigmas[step + 1])
        # The step went along the velocity towards what the model takes for clean (`flow.py`).
        clean = now - next_level * (now - before) / (next_level - level)
        picture = to_image(self.colours.frame(clean))
        picture.thumbnail((LARGEST, LARGEST))
        file = BytesIO()
        picture.save(file, "JPEG", quality=QUALITY)
        return file.getvalue()
