"""The sampling loop: noise levels, the guided velocity, and the steps of the solver along it."""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from .coordinates import with_coordinates
from .flow import second_order, shifted, to_velocity


class GenerationError(RuntimeError):
    """The model gave something that is no picture: NaN, infinite or black."""


class FlowSampler(DiffusionPipeline):
    """What a flow-matching pipeline does between its inputs and its decoder.

    It needs a `transformer`, a `scheduler`, and in its configuration `prediction`, `data_std` and
    `solver_order`, see `UltraGenPipeline`.

    Attributes:
        interrupt: Set during a run, ends the sampling after the step.
    """

    interrupt = False

    def log_shift(self, tokens_per_frame: int) -> float:
        """log s of the dynamic shift: s grows with the square root of the tokens in a frame."""
        config = self.scheduler.config
        return config.base_shift + 0.5 * log(tokens_per_frame / config.base_image_seq_len)

    def prepare_schedule(
        self, steps: int, tokens_per_frame: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Sets the scheduler's sigmas: u_i = 1 − i/steps, shifted to su / (1 + (s − 1)u).

        With dynamic shifting s falls from its full value at u = 1 to 1 at u = 0, see
        `falling_shift`.

        Returns:
            Timesteps in 0..1000 and sigmas, on `device`.
        """
        sigmas = np.linspace(1.0, 0.0, steps, endpoint=False)
        if self.scheduler.config.use_dynamic_shifting:
            mu = self.log_shift(tokens_per_frame)
            # The scheduler multiplies its own shift, the full one, into what it is given.
            sigmas = shifted(sigmas, np.exp(mu * (sigmas - 1)))
            self.scheduler.set_timesteps(sigmas=sigmas, device=device, mu=mu)
        else:
            self.scheduler.set_timesteps(sigmas=sigmas, device=device)
        return self.scheduler.timesteps, self.scheduler.sigmas

    def denoise(
        self,
        latents: Tensor,
        timesteps: Tensor,
        sigmas: Tensor,
        embeds: dict[str, Tensor],
        guidance_scale: float,
        extra: dict[str, Any],
        after_step: Callable[[int, Tensor, dict[str, Tensor]], dict[str, Tensor]],
    ) -> Tensor:
        """The flow-matching ODE dx/dσ = v from noise (σ = 1) to data (σ = 0).

        Args:
            latents: Noise, b c t h w in float32.
            timesteps: 0..1000, one for each step.
            sigmas: Noise levels, one more than steps.
            embeds: `prompt_embeds` and, for guidance, `negative_prompt_embeds`, b n d.
            guidance_scale: Classifier-free guidance.
            extra: Other inputs of the transformer.
            after_step: Gets the step, the timestep and the tensors; returns them, changed or not.

        Raises:
            GenerationError: if the result is not finite.
        """
        levels = sigmas.tolist()  # read once: asking a GPU in every step would wait for it
        clean: list[Tensor] = []
        with self.progress_bar(total=len(timesteps)) as progress_bar:
            for step, timestep in enumerate(timesteps):
                velocity = self.velocity(
                    latents,
                    timestep,
                    embeds["prompt_embeds"],
                    embeds.get("negative_prompt_embeds"),
                    guidance_scale,
                    extra,
                )
                if self.config.solver_order == 2:
                    clean = [*clean[-1:], latents - levels[step] * velocity]
                    velocity = second_order(velocity, clean, levels[max(step - 1, 0) : step + 2])
                latents = latents + (levels[step + 1] - levels[step]) * velocity
                embeds = after_step(step, timestep, {"latents": latents, **embeds})
                latents = embeds.pop("latents")
                progress_bar.update()
                if self.interrupt:
                    break
        if not torch.isfinite(latents).all():
            raise GenerationError(
                "The model's output is not finite. Use another seed, a lower guidance scale, "
                "or float32 instead of half precision."
            )
        return latents

    def velocity(
        self,
        latents: Tensor,
        timestep: Tensor,
        prompt_embeds: Tensor,
        negative_prompt_embeds: Tensor | None,
        guidance_scale: float,
        extra: dict[str, Any],
    ) -> Tensor:
        """The guided velocity, b c t h w in float32: v_neg + scale · (v_pos − v_neg)."""
        x = with_coordinates(latents, self.transformer.config.in_channels)
        x = x.to(self.transformer.dtype)
        time = timestep.expand(x.shape[0])
        sigma = timestep / self.scheduler.config.num_train_timesteps

        def predict(embeds: Tensor, context: str) -> Tensor:
            with self.transformer.cache_context(context):
                out = self.transformer(
                    hidden_states=x,
                    timestep=time,
                    encoder_hidden_states=embeds,
                    return_dict=False,
                    **extra,
                )
            return to_velocity(out[0], latents, sigma, self.config.prediction, self.config.data_std)

        positive = predict(prompt_embeds, "cond")
        if negative_prompt_embeds is None or guidance_scale <= 1:
            return positive
        negative = predict(negative_prompt_embeds, "uncond")
        return negative + guidance_scale * (positive - negative)
