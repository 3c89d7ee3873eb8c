"""The sampling loop: the guided velocity at a noise level, and the solver's step along it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig, DiffusionPipeline, UniPCMultistepScheduler
from torch import Tensor

from ..model.coordinates import with_coordinates
from ..model.transformer import UltraGenTransformer3DModel
from ..ops.exchange import in_any, of_the_first
from .flow import to_velocity
from .guidance import Guidance
from .parallel_guidance import TransformerCopy, check_device, check_unhooked, without_cache
from .process_halves import ProcessHalves
from .solvers import FlowSolver, SchedulerSolver, Solver, leave_out, log_shift, set_noise_levels
from .window_motion import move_windows


class GenerationError(RuntimeError):
    """The model gave something that is no picture: NaN, infinite or black."""


class FlowSampler(DiffusionPipeline):
    """What a flow-matching pipeline does between its inputs and its decoder.

    It needs a `transformer`, a `scheduler`, and in its configuration `prediction`, `data_std`,
    `solver_order` and `window_motion`, see `UltraGenPipeline`.

    Attributes:
        guidance_device: Where guidance's second pass runs; None where both run on one device.
    """

    guidance_device: torch.device | None = None
    _halves: ProcessHalves | None = None
    # Named as in `WanPipeline`, because callbacks set them.
    _guidance_scale = 1.0
    _attention_kwargs: dict[str, Any] | None = None
    _num_timesteps = 0
    _current_timestep: float | None = None
    _interrupt = False

    @property
    def guidance_scale(self) -> float:
        """Scale of the classifier-free guidance of the run."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the run is guided; a callback that sets `_guidance_scale` to 1 ends that."""
        return self._guidance_scale > 1

    @property
    def attention_kwargs(self) -> dict[str, Any] | None:
        """What the transformer gets as `attention_kwargs` in the run."""
        return self._attention_kwargs

    @property
    def num_timesteps(self) -> int:
        """Steps of the run."""
        return self._num_timesteps

    @property
    def current_timestep(self) -> float | None:
        """Timestep of the step on its way, 0..1000, for caches that ask for it; else None."""
        return self._current_timestep

    @property
    def interrupt(self) -> bool:
        """Set during a run, also as `_interrupt`, skips the steps that are left."""
        return self._interrupt

    @interrupt.setter
    def interrupt(self, value: bool) -> None:
        self._interrupt = value

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
        if parallel_group(self.transformer) is not None:
            raise ValueError(
                "Guidance can't run on a second device where several processes compute each clip "
                "together: they share its second pass out too."
            )
        place = check_device(device)
        with without_cache(self.transformer):
            check_unhooked(self.transformer)
        self.guidance_device = place

    def disable_parallel_guidance(self) -> None:
        """Runs both passes on one device again."""
        self.guidance_device = None

    def enable_context_parallel(self) -> None:
        """Computes each clip together with the other processes of `torch.distributed`, which all
        call the pipeline with the same arguments and get the same clip.

        Where their number is even, one half computes the conditional pass of a guided step, the
        other half the unconditional one, see `ProcessHalves`; all else they share out among all.
        Noise and embeddings are the first process's. Callbacks run in all of them; what they
        change, they change in all, but `interrupt` in one ends the run of all. Without gradients,
        until the process ends. `base_pipeline` has a transformer of its own, which is not shared.

        Raises:
            ValueError: if there are no other processes, too many or other ones, or if guidance has
                a second device, or the transformer can't be shared out, with what can.
        """
        if self.guidance_device is not None:
            raise ValueError(
                f"Guidance runs on {self.guidance_device}, and can't where several processes "
                "compute each clip together: call pipe.disable_parallel_guidance() first."
            )
        if not isinstance(self.transformer, UltraGenTransformer3DModel):
            raise ValueError(
                "Only UltraGen's transformer is shared out among processes here: diffusers does it "
                "for Wan's, pipe.transformer.enable_parallelism(config=...)."
            )
        processes = dist.get_world_size() if dist.is_initialized() else 1
        if processes < 2:
            raise ValueError(
                "There is no other process to compute clips with: start several, for example with "
                "torchrun --nproc_per_node 2, and call torch.distributed.init_process_group."
            )
        self.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=processes))
        self._halves = ProcessHalves.of_all()

    def log_shift(self, tokens_per_frame: int) -> float:
        """log s of the dynamic shift: s grows with the square root of the tokens in a frame."""
        return log_shift(self.scheduler, tokens_per_frame)

    def prepare_schedule(
        self, steps: int, tokens_per_frame: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Sets the scheduler's noise levels, see `set_noise_levels`.

        Returns:
            Timesteps in 0..1000 and sigmas, one more.
        """
        set_noise_levels(self.scheduler, steps, tokens_per_frame, device)
        return self.scheduler.timesteps, self.scheduler.sigmas

    def start_at(self, step: int) -> tuple[Tensor, Tensor]:
        """Leaves the first steps of the schedule out; what is left, as from `prepare_schedule`."""
        leave_out(self.scheduler, step)
        return self.scheduler.timesteps, self.scheduler.sigmas

    def solver(self, timesteps: Tensor, levels: list[float]) -> Solver:
        """What takes the steps of a run at these timesteps and noise levels."""
        if isinstance(self.scheduler, UniPCMultistepScheduler):
            return SchedulerSolver(self.scheduler)
        train_steps = self.scheduler.config.num_train_timesteps
        return FlowSolver(timesteps, levels, train_steps, self.config.solver_order)

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
        group = parallel_group(self.transformer)
        if group is not None:
            latents, *texts = of_the_first([latents, *embeds.values()], group)
            embeds = dict(zip(embeds, texts, strict=True))
        solver, steps = self.solver(timesteps, levels), len(timesteps)
        scales = [guidance.scale_at(level) for level in levels[:-1]]
        second: TransformerCopy | ProcessHalves | None = None
        if self.guidance_device is not None and max(scales) > 1:
            second = TransformerCopy(self.transformer, self.guidance_device)
        elif self._halves is not None:
            _, *size = self.transformer.token_grid(*latents.shape[2:])
            cache = self.transformer._cache_config
            second = self._halves.planned(scales, cache, (size[0], size[1]))
        self._guidance_scale, self._num_timesteps = guidance.scale, steps
        with self.progress_bar(total=steps) as progress_bar:
            for step, timestep in enumerate(timesteps):
                stopped = self.interrupt
                if stopped if group is None else in_any(stopped, latents.device, group):
                    break
                self._current_timestep = self.scheduler.config.num_train_timesteps * levels[step]
                where = {"step_index": step, "num_inference_steps": steps, "sigma": levels[step]}
                scale = scales[step] if self.do_classifier_free_guidance else 1.0
                inputs = move_windows(extra, self.config.window_motion, step)
                velocity = self.velocity(
                    latents, timestep, solver.sigma(step), embeds, scale, inputs, second, where
                )
                latents = solver.advance(step, velocity, latents)
                embeds = after_step(step, timestep, {"latents": latents, **embeds})
                latents = embeds.pop("latents")
                progress_bar.update()
        self._current_timestep = None
        return finite(latents)

    def velocity(
        self,
        latents: Tensor,
        timestep: Tensor,
        sigma: Tensor,
        embeds: dict[str, Tensor],
        scale: float,
        extra: dict[str, Any],
        second: TransformerCopy | ProcessHalves | None,
        where: dict[str, Any],
    ) -> Tensor:
        """The guided velocity, b c t h w in float32: v_neg + scale · (v_pos − v_neg).

        Args:
            latents: b c t h w in float32.
            timestep: 0..1000.
            sigma: The noise level that the timestep stands for.
            embeds: As in `denoise`.
            scale: How far guidance leads; 1 runs the model once.
            extra: Other inputs of the transformer.
            second: Runs the pass that guidance adds, at the same time: a copy of the model, or a
                half of the processes; None to run it before.
            where: The step, for diffusers' caches.
        """
        x = with_coordinates(latents, self.transformer.config.in_channels)
        x = x.to(self.transformer.dtype)
        inputs = {"hidden_states": x, "timestep": timestep.expand(x.shape[0]), **extra}

        def predict(text: Tensor, context: str) -> Tensor:
            with self.transformer.cache_context(context, **where):
                return self.transformer(encoder_hidden_states=text, return_dict=False, **inputs)[0]

        def velocity_of(output: Tensor) -> Tensor:
            return to_velocity(output, latents, sigma, self.config.prediction, self.config.data_std)

        def predict_cond() -> Tensor:
            return predict(embeds["prompt_embeds"], "cond")

        def predict_uncond() -> Tensor:
            return predict(embeds["negative_prompt_embeds"], "uncond")

        if scale <= 1:
            if isinstance(second, ProcessHalves):
                return velocity_of(second.unguided(self.transformer, predict_cond))
            return velocity_of(predict_cond())
        if second is None:
            negative = velocity_of(predict_uncond())
            positive = velocity_of(predict_cond())
        elif isinstance(second, ProcessHalves):
            outputs = second.guided(self.transformer, predict_cond, predict_uncond)
            positive, negative = map(velocity_of, outputs)
        else:
            text = embeds["negative_prompt_embeds"]
            output = second.start("uncond", where, encoder_hidden_states=text, **inputs)
            positive = velocity_of(predict_cond())
            negative = velocity_of(output.result().to(latents.device, non_blocking=True))
        return negative + scale * (positive - negative)


def parallel_group(transformer: Any) -> dist.ProcessGroup | None:
    """The processes that compute each clip together; None for this one alone, as Wan's do."""
    return getattr(transformer, "parallel_group", None)


def finite(latents: Tensor) -> Tensor:
    """The same latents.

    Raises:
        GenerationError: if one is not finite.
    """
    if not torch.isfinite(latents).all():
        raise GenerationError(
            "The transformer's output is not finite. Use another seed, a lower guidance scale, "
            "or float32 instead of half precision."
        )
    return latents
