"""Flow matching on the straight path x_σ = (1 − σ)x + σε: noise levels, what a transformer's output
means, and the solver's second order.

The sampler needs the velocity v = ε − x. Wan predicts it as it is. To do so, a network has to carry
the whole noise from its input to its output, and a small one has little room left for the picture:
at high noise levels, where the composition is decided, it fails first (Li and He, "Back to Basics:
Let Denoising Generative Models Denoise", 2025). The embedded model's output therefore goes through
a preconditioning like that of Karras et al. ("Elucidating the Design Space of Diffusion-Based
Generative Models", 2022): their c_skip for this path, and a c_out that is 1 at full noise. It asks
nearly for the clean latents where there is much noise and nearly for the noise where there is
little, and keeps the velocity's error within about a factor of two over all noise levels.
"""

from __future__ import annotations

from math import log
from typing import Literal, TypeVar

import numpy as np
from torch import Tensor

ArrayOrTensor = TypeVar("ArrayOrTensor", np.ndarray, Tensor)
Prediction = Literal["velocity", "preconditioned"]


def to_velocity(
    output: Tensor, noisy: Tensor, sigma: Tensor, prediction: Prediction, data_std: float
) -> Tensor:
    """The velocity v = ε − x that a transformer's output stands for, in float32.

    Args:
        output: What the transformer gave, b c t h w.
        noisy: The latents x_σ that it got, b c t h w.
        sigma: Noise levels above 0 and up to 1, b or one for all.
        prediction: What the output means: the velocity itself, or, with d = `data_std`,
            a = 1 − σ and r² = d²a² + σ², the clean latents as (d²a/r²)·x_σ + (σ/r)·output.
        data_std: Standard deviation of the data in the preconditioning. The smaller it is, the
            wider the range of noise levels at which the clean latents are predicted.
    """
    output = output.float()
    if prediction == "velocity":
        return output
    sigma = sigma.to(output).view(-1, *(1,) * (output.ndim - 1))
    signal = data_std**2 * (1 - sigma)
    square = signal * (1 - sigma) + sigma.square()
    return (sigma - signal) / square * noisy - output * square.rsqrt()


def noised(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x_σ = (1 − σ)x + σε: clean latents x and noise ε b c t h w at noise levels σ, b."""
    sigma = sigma.to(clean).view(-1, *(1,) * (clean.ndim - 1))
    return (1 - sigma) * clean + sigma * noise


def shifted(sigma: ArrayOrTensor, shift: ArrayOrTensor | float) -> ArrayOrTensor:
    """Noise levels in [0, 1] moved towards more noise: odds σ/(1 − σ) times `shift`."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def falling_shift(u: Tensor, log_shift: float) -> Tensor:
    """The noise level at u in [0, 1], shifted by s^u.

    A large frame needs many steps where there is much noise, because its composition is decided
    there; with the same shift at all levels none would be left for its detail.
    """
    return shifted(u, (log_shift * u).exp())


def second_order(velocity: Tensor, clean: list[Tensor], sigmas: list[float]) -> Tensor:
    """The velocity of a step of DPM-Solver++(2M) (Lu et al., 2022, algorithm 2).

    Where a first-order step keeps the predicted clean latents constant, this one lets them go on
    changing with the logarithm of the signal-to-noise ratio as they did in the step before. The
    first step from pure noise, whose ratio is zero, teaches nothing about the change, and the last
    one, to no noise, ends at the clean latents: steps after and at these are of first order.

    Args:
        velocity: At the step's start, b c t h w.
        clean: The clean latents predicted at the step before, if there was one, and at this one.
        sigmas: Noise levels of the step before, if there was one, of this one, and after it.
    """
    if len(clean) < 2 or sigmas[0] >= 1 or sigmas[-1] <= 0:
        return velocity
    before, now, after = (log((1 - sigma) / sigma) for sigma in sigmas)
    change = (clean[1] - clean[0]) * (after - now) / (2 * (now - before))
    return velocity - change / sigmas[1]
