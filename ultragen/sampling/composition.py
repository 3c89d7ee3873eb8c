"""A large clip that takes its composition from a small one.

Frames larger than a model was trained at repeat what there is once: moons, horizons. A smaller clip
of the same prompt decides where things are; enlarged and noised to where the large frame's own
steps would be by then, it is denoised at the full size. The steps that are left out are those in
which the composition is decided. It is what SDEdit does with a picture (Meng et al., 2022), with
latents, and needs no training.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .flow import noised
from .spectral_noise import cosines


def enlarged(latents: Tensor, height: int, width: int) -> Tensor:
    """Latents with more rows and columns, b c t h w: the frequencies of their orthonormal cosine
    transform become the lowest ones of the larger grid, as those of `spectral_noise`, and what is
    even stays as it is.

    Args:
        latents: b c t h w.
        height: Rows, as many as there are or more.
        width: Columns, likewise.

    Raises:
        ValueError: if there are fewer.
    """
    rows, columns = latents.shape[-2:]
    if height < rows or width < columns:
        raise ValueError(
            f"The composition's latents have {rows} × {columns} positions, more than the clip's "
            f"{height} × {width}: take that of a smaller clip."
        )
    down, right = (
        (cosines(large)[:, :small] @ cosines(small).T * (large / small) ** 0.5).to(latents)
        for small, large in ((rows, height), (columns, width))
    )
    return torch.einsum("Hh,bcthw,Ww->bctHW", down, latents, right)


def composed(composition: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """What a clip with a composition starts from, b c t h w.

    Args:
        composition: Clean latents of a smaller clip, b c t h w, or one for all clips.
        noise: Noise b c t h w.
        sigma: The noise level to start at, a scalar.

    Raises:
        ValueError: if the clips differ in more than their size.
    """
    small, large = tuple(composition.shape), tuple(noise.shape)
    if len(small) != 5 or small[1:3] != large[1:3] or small[0] not in (1, large[0]):
        needed = " × ".join(map(str, large[:3]))
        raise ValueError(
            f"composition must be the latents of a clip of as many frames, {needed} × rows × "
            f"columns, not {' × '.join(map(str, small))}: make it with output_type='latent'."
        )
    clean = enlarged(composition.to(noise), *large[3:]).expand(large)
    return noised(clean, noise, sigma.to(noise).reshape(1))
