"""The sampling loop: noise levels, the guided velocity, and the steps of the solver along it."""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ..model.coordinates import with_coordinates
from .flow import second_order, shifted, to_velocity
from .guidance import Guidance, TransformerCopy, check_device, check_unhooked, without_cache


class GenerationError(RuntimeError):
    """The model gave something that is no picture: NaN, infinite or black."""


class FlowSampler(DiffusionPipeline):
    """What a flow-matching pipeline does between its inputs and its decoder.

    It needs a `transformer`, a `scheduler`, and in its configuration `prediction`, `data_std`,
    `solver_order` and `window_motion`, see `UltraGenPipeline`.

    Attributes:
        interrupt: Set during a run, ends the sampling after the step.
        current_timestep: Of the step on its way, 0..1000, for caches that ask for it.
        guidance_device: Where guidance's second pass runs; None where both run on one device.
    """

    interrupt = False
    current_timestep: float | None = None
    guidance_device: torch.device | None = None

    def enable_parallel_guidance(self, device: torch.device | str) -> None:
        """Runs the two passes of a guided step at the same time, the unconditional one on a second
        device.

        Each run with guidance begins with a copy of the transformer as it is then, with its
        adapters and its cache, but not compiled; the copy ends with the run. Caches that decide by
        a value on the device let the passes wait for each other a little. `base_pipeline` has a
        transformer of its own, and does not take this setting over.

        Args:
            device: Such as `cuda:1`; it needs room for a second transformer.

        Raises:
            ValueError: if there is no such device, or the transformer is offloaded or hooked; also
                in a run, if it is by then.
        """
        place = check_device(device)
        with without_cache(self.transformer):
            check_unhooked(self.transformer)
        self.guidance_device = place

    def disable_parallel_guidance(self) -> None:
        """Runs both passes on one device again."""
        self.guidance_device = None

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
        guidance: Guidance,
        extra: dict[str, Any],
        after_step: Callable[[int, Tensor, dict[str, Tensor]], dict[str, Tensor]],
    ) -> Tensor:
        """The flow-matching ODE dx/dσ = v from noise (σ = 1) to data (σ = 0).

        Args:
            latents: Noise, b c t h w in float32.
            timesteps: 0..1000, one for each step.
            sigmas: Noise levels, one more than steps.
            embeds: `prompt_embeds` and, for guidance, `negative_prompt_embeds`, b n d.
            guidance: Classifier-free guidance.
            extra: Other inputs of the transformer.
            after_step: Gets the step, the timestep and the tensors; returns them, changed or not.

        Raises:
            GenerationError: if the result is not finite.
        """
        levels = sigmas.tolist()  # read once: asking a GPU in every step would wait for it
        scales = [guidance.scale_at(level) for level in levels[:-1]]
        second = None
        if self.guidance_device is not None and max(scales) > 1:
            second = TransformerCopy(self.transformer, self.guidance_device)
        moves = "windows" in extra and self.config.window_motion == "alternate"
        clean: list[Tensor] = []
        steps = len(timesteps)
        with self.progress_bar(total=steps) as progress_bar:
            for step, timestep in enumerate(timesteps):
                self.current_timestep = self.scheduler.config.num_train_timesteps * levels[step]
                where = {"step_index": step, "num_inference_steps": steps, "sigma": levels[step]}
                inputs = {**extra, "moved": step % 2 == 1} if moves else extra
                velocity = self.velocity(
                    latents, timestep, embeds, scales[step], inputs, second, where
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
        return finite(latents)

    def velocity(
        self,
        latents: Tensor,
        timestep: Tensor,
        embeds: dict[str, Tensor],
        scale: float,
        extra: dict[str, Any],
        second: TransformerCopy | None,
        where: dict[str, Any],
    ) -> Tensor:
        """The guided velocity, b c t h w in float32: v_neg + scale · (v_pos − v_neg).

        Args:
            latents: b c t h w in float32.
            timestep: 0..1000.
            embeds: As in `denoise`.
            scale: Of the guidance; 1 runs the model once.
            extra: Other inputs of the transformer.
            second: Runs the pass that guidance adds, at the same time; None to run it before.
            where: The step, for diffusers' caches.
        """
        x = with_coordinates(latents, self.transformer.config.in_channels)
        x = x.to(self.transformer.dtype)
        inputs = {"hidden_states": x, "timestep": timestep.expand(x.shape[0]), **extra}
        sigma = timestep / self.scheduler.config.num_train_timesteps

        def predict(text: Tensor, context: str) -> Tensor:
            with self.transformer.cache_context(context, **where):
                return self.transformer(encoder_hidden_states=text, return_dict=False, **inputs)[0]

        def velocity_of(output: Tensor) -> Tensor:
            return to_velocity(output, latents, sigma, self.config.prediction, self.config.data_std)

        prompt = embeds["prompt_embeds"]
        if scale <= 1:
            return velocity_of(predict(prompt, "cond"))
        negative_prompt = embeds["negative_prompt_embeds"]
        if second is None:
            negative = velocity_of(predict(negative_prompt, "uncond"))
            positive = velocity_of(predict(prompt, "cond"))
        else:
            output = second.start("uncond", where, encoder_hidden_states=negative_prompt, **inputs)
            positive = velocity_of(predict(prompt, "cond"))
            negative = velocity_of(output.result().to(latents.device, non_blocking=True))
        return negative + scale * (positive - negative)


def finite(latents: Tensor) -> Tensor:
    """The same latents.

    Raises:
        GenerationError: if one is not finite.
    """
    if not torch.isfinite(latents).all():
        raise GenerationError(
            "The model's output is not finite. Use another seed, a lower guidance scale, "
            "or float32 instead of half precision."
        )
    return latents
