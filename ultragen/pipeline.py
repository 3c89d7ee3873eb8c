"""Prompt → latents → frames: the one pipeline for the embedded and the 1.3B model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanTransformer3DModel,
)
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import BaseOutput
from torch import Tensor
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

# diffusers finds the modules that `model_index.json` names among those that are imported already.
# Pipelines that were saved before the package had rooms name these.
import ultragen.autoencoder
import ultragen.clauses
import ultragen.transformer  # noqa: F401

from .hardware import is_out_of_memory
from .model.autoencoder import CompactAutoencoder
from .model.fp8 import check_machine, quantize
from .model.transformer import UltraGenTransformer3DModel
from .presets import SOLVERS, STRENGTH, WAN_SHIFT, Noise, check_shift, steps_taken
from .sampling.composition import composed
from .sampling.decoding import Frames, OutputType, decode_pieces, join_pieces
from .sampling.flow import Prediction
from .sampling.guidance import Guidance
from .sampling.inputs import check_noise
from .sampling.pipeline_inputs import PipelineInputs
from .sampling.sampler import FlowSampler, parallel_group
from .sampling.solvers import check_scheduler, chosen_scheduler
from .sampling.window_motion import check_window_motion
from .weights.pipeline_loading import PipelineLoading

StepCallback = Callable[["UltraGenPipeline", int, Tensor, dict[str, Any]], dict[str, Any] | None]


@dataclass
class UltraGenPipelineOutput(BaseOutput):
    """Result of a run.

    Attributes:
        frames: By output type: `np` float array b t h w 3 in [0, 1]; `uint8` the same in 0..255;
            `pil` a list of pictures for each clip; `pt` float tensor b t 3 h w in [0, 1] on the
            CPU; `latent` latents b c t h w.
    """

    frames: Frames


class UltraGenPipeline(PipelineInputs, FlowSampler, PipelineLoading):
    """Text to video with UltraGen's or Wan's transformer, called as diffusers' `WanPipeline` is.

    Args:
        tokenizer: Cuts prompts into the text encoder's tokens.
        text_encoder: T5-type encoder.
        vae: Wan's VAE or the compact autoencoder.
        scheduler: Flow matching's noise levels. With dynamic shifting, the shift grows with the
            square root of the tokens in a frame, so that large frames get as much noise as small
            ones see. Wan's UniPC brings its own noise levels and steps; `pipe.scheduler` may be
            set to another one at any time.
        transformer: Predicts what `prediction` says.
        base_transformer: The dense low-resolution model that the transformer was converted from.
        max_sequence_length: Text tokens, padded with zero embeddings as in Wan.
        prediction: What both transformers' outputs mean, see `flow.to_velocity`.
        data_std: Standard deviation of the data in the preconditioning, see there.
        solver_order: 1 for Euler's steps, as the released weights are sampled; 2 extrapolates from
            the step before, see `second_order`.
        distilled_steps: Steps that the transformers, or UltraGen's alone, were distilled to,
            without guidance; None where they were not.
        window_motion: `none` leaves UltraGen's windows where they are in all steps, as the paper
            does; with `alternate` they stand between their usual places in every second one, so
            that no border is seen in the picture.
        noise: How calls draw their noise. `independent` draws each size anew, as `WanPipeline`
            does; with `spectral` all sizes and lengths share their low frequencies, so that a seed
            is the same scene in all of them, see `spectral_noise`.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["base_transformer"]  # noqa: RUF012 - diffusers adds a list to it

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder: UMT5EncoderModel,
        vae: AutoencoderKLWan | CompactAutoencoder,
        scheduler: FlowMatchEulerDiscreteScheduler | UniPCMultistepScheduler,
        transformer: UltraGenTransformer3DModel | WanTransformer3DModel,
        base_transformer: WanTransformer3DModel | None = None,
        max_sequence_length: int = 512,
        prediction: str = "velocity",
        data_std: float = 0.5,
        solver_order: int = 1,
        distilled_steps: int | None = None,
        window_motion: str = "none",
        noise: str = "independent",
    ) -> None:
        super().__init__()
        if prediction not in get_args(Prediction):
            raise ValueError(f"prediction must be one of {get_args(Prediction)}: {prediction!r}.")
        if solver_order not in (1, 2):
            raise ValueError(f"solver_order must be 1 or 2, not {solver_order!r}.")
        check_scheduler(scheduler)
        check_window_motion(window_motion)
        check_noise(noise)
        self.register_modules(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            vae=vae,
            scheduler=scheduler,
            transformer=transformer,
            base_transformer=base_transformer,
        )
        self.register_to_config(
            max_sequence_length=max_sequence_length,
            prediction=prediction,
            data_std=data_std,
            solver_order=solver_order,
            distilled_steps=distilled_steps,
            window_motion=window_motion,
            noise=noise,
        )

    def base_pipeline(self) -> UltraGenPipeline:
        """The dense base model with this pipeline's other components, without its parallel
        guidance. Where UltraGen's weights alone are distilled, it has Wan's own schedule.

        Raises:
            ValueError: if the pipeline was loaded without a base model.
        """
        if self.base_transformer is None:
            raise ValueError(
                "This pipeline has no base model: load it from a folder that contains "
                "`base_transformer`, or pass `base_transformer=`."
            )
        # Named once only: what offloads parts in turn keeps one hook for each of them.
        components = {
            **self.components,
            "transformer": self.base_transformer,
            "base_transformer": None,
        }
        scheduler = type(self.scheduler).from_config(self.scheduler.config)
        # `train wan-distill` says in the transformer's configuration what it was distilled to, and
        # the scheduler has its shift.
        trained = self.transformer.config
        if trained.get("distilled_shift"):
            scheduler = chosen_scheduler(scheduler, "own", WAN_SHIFT)
        components["scheduler"] = scheduler
        return UltraGenPipeline(
            **components,
            max_sequence_length=self.config.max_sequence_length,
            prediction=self.config.prediction,
            data_std=self.config.data_std,
            solver_order=self.config.solver_order,
            distilled_steps=(
                None if trained.get("distilled_steps") else self.config.distilled_steps
            ),
            noise=self.config.noise,
        )

    def with_sampling(self, solver: str = "own", shift: float | None = None) -> UltraGenPipeline:
        """A pipeline of the same parts, with another solver or shift of the noise levels; this one
        where neither is given.

        Args:
            solver: `own`, `euler` or `unipc`.
            shift: s of the fixed shift, see `flow.shifted`; None leaves it as it is.

        Raises:
            ValueError: if either can't be used.
        """
        if solver not in SOLVERS:
            raise ValueError(f"solver must be one of {SOLVERS}, not {solver!r}.")
        shift = None if shift is None else check_shift(shift)
        scheduler = chosen_scheduler(self.scheduler, solver, shift)
        order = self.config.solver_order if solver == "own" else 1
        if scheduler is self.scheduler and order == self.config.solver_order:
            return self
        other = copy(self)  # of the pipeline alone, with its hooks and settings: no part is copied
        other.scheduler = scheduler
        other.register_to_config(solver_order=order)
        return other

    def enable_fp8(self) -> None:
        """Computes the transformer's large linear layers in FP8, which takes less time and memory
        and changes the clips a little, see `fp8`.

        There is no way back: load the pipeline again. Until then its transformer can't be trained,
        and is saved with the weights as FP8 rounds them. LoRA adapters are merged before
        (`fuse_lora`, `unload_lora_weights`), or loaded after and then stay beside the weights; a
        DoRA must come before. `base_pipeline` has a transformer of its own.

        Raises:
            ValueError: if the GPU can't compute in FP8 or there is none, if the transformer is not
                in bfloat16, or if it is adapted, hooked or offloaded layer by layer.
        """
        check_machine(self._execution_device)
        if self.transformer.dtype != torch.bfloat16:
            raise ValueError(
                f"FP8 goes with bfloat16, and the transformer is in {self.transformer.dtype}: load "
                "the pipeline with dtype=torch.bfloat16, or leave FP8 off."
            )
        quantize(self.transformer)

    # Sampling

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_scale_2: None = None,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: OutputType = "np",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        max_sequence_length: int | None = None,
        *,
        windows: int | Literal["auto"] | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        noise: Noise | None = None,
        composition: Tensor | None = None,
        strength: float = STRENGTH,
    ) -> Any:
        """Generates clips for prompts. Arguments without a name come in `WanPipeline`'s order.

        Args:
            prompt: What to show; None with `prompt_embeds`.
            negative_prompt: What guidance leads away from; None is an empty one.
            height: Rows in pixels, a multiple of `pixels_per_token`; None, as for the next two,
                takes what the model is made for, see `default_size`.
            width: Columns in pixels, a multiple of `pixels_per_token`.
            num_frames: Frames, 4n + 1.
            num_inference_steps: Steps of the solver; None takes those that the model was distilled
                to, and 30 where it was not.
            guidance_scale: Classifier-free guidance; 1 and below runs the model once a step. None
                takes 1 for a distilled model, which has guidance in its weights, and else 5.
            guidance_scale_2: None; Wan 2.2 has a second transformer with a scale of its own.
            num_videos_per_prompt: Clips for each prompt, one after another in the batch.
            generator: Source of the noise; the same seed gives the same clip. A list has one for
                each clip.
            latents: Noise to start from, b c t h w, instead of drawing it.
            prompt_embeds: The encoded prompts, b n d, from `encode_prompt`.
            negative_prompt_embeds: The encoded negative prompts, b n d.
            output_type: Form of the frames, see `UltraGenPipelineOutput`.
            return_dict: Whether to return an output object instead of a tuple.
            attention_kwargs: `scale` weighs LoRA adapters that were loaded.
            callback_on_step_end: Called after each step with the pipeline, the step, the timestep
                and the tensors asked for; may return changed ones. Setting `pipe.interrupt` or
                `pipe._interrupt` in it skips the steps that are left.
            callback_on_step_end_tensor_inputs: Names of the tensors that the callback gets.
            max_sequence_length: Text tokens, cut or padded; None takes the model's.
            windows: K, the local windows on each axis, an even number, or `auto` for the trained
                window size; None for a dense transformer (for UltraGen the same as `auto`).
            guidance_interval: Noise levels σ, from 0 to 1, between which guidance is computed, the
                lower one excluded; steps at other levels run the model once.
            noise: How the noise is drawn, `independent` or `spectral`; None takes the pipeline's
                setting.
            composition: Latents of a smaller clip of the same prompt and as many frames, b c t h w,
                whose `output_type` was `latent`: it decides where things are, see `composition`.
            strength: Part of the steps that are taken where there is one, the last ones.

        Returns:
            An `UltraGenPipelineOutput`, or a tuple of its `frames` alone.

        Raises:
            ValueError: if a setting is out of range.
            GenerationError: if the result is not finite or black.
            torch.OutOfMemoryError: if the memory runs out, with what takes less.
        """
        if windows is None and isinstance(self.transformer, UltraGenTransformer3DModel):
            windows = "auto"
        distilled = self.config.distilled_steps
        if num_inference_steps is None:
            num_inference_steps = distilled or 30
        if guidance_scale is None:
            guidance_scale = 1.0 if distilled else 5.0
        if max_sequence_length is None:
            max_sequence_length = self.config.max_sequence_length
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        height, width, num_frames = self.with_default_size(height, width, num_frames)
        guidance = Guidance(guidance_scale, guidance_interval)
        self.check_inputs(
            prompt,
            negative_prompt,
            height,
            width,
            prompt_embeds,
            negative_prompt_embeds,
            callback_on_step_end_tensor_inputs,
            guidance_scale_2,
            num_frames=num_frames,
            num_inference_steps=num_inference_steps,
            guidance=guidance,
            windows=windows,
            num_videos_per_prompt=num_videos_per_prompt,
            max_sequence_length=max_sequence_length,
            output_type=output_type,
            attention_kwargs=attention_kwargs,
        )
        typed = 1 if isinstance(prompt, str) else len(prompt or ())
        clips = num_videos_per_prompt * (typed if prompt_embeds is None else len(prompt_embeds))
        latents = self.prepare_latents(
            clips,
            height=height,
            width=width,
            num_frames=num_frames,
            generator=generator,
            latents=latents,
            noise=noise,
        )
        self._attention_kwargs, self._interrupt = attention_kwargs, False
        token = self.pixels_per_token
        timesteps, sigmas = self.prepare_schedule(
            num_inference_steps, height // token * (width // token), self._execution_device
        )
        if composition is not None:
            first = num_inference_steps - steps_taken(num_inference_steps, strength)
            latents = composed(composition, latents, sigmas[first])
            timesteps, sigmas = self.start_at(first)
        given = {"windows": windows, "attention_kwargs": attention_kwargs}
        extra = {name: value for name, value in given.items() if value is not None}
        after_step = partial(
            self._after_step, callback_on_step_end, callback_on_step_end_tensor_inputs
        )
        try:
            with said_what_takes_less(height, width, num_frames):
                positive, negative = self.encode_prompt(
                    prompt,
                    negative_prompt,
                    guidance_scale > 1,
                    num_videos_per_prompt,
                    prompt_embeds,
                    negative_prompt_embeds,
                    max_sequence_length,
                )
                embeds = {"prompt_embeds": positive}
                if negative is not None:
                    embeds["negative_prompt_embeds"] = negative
                latents = self.denoise(
                    latents, timesteps, sigmas, embeds, guidance, extra, after_step
                )
                frames = latents if output_type == "latent" else self.decode(latents, output_type)
        finally:
            # However the run ends, the next one must not meet its caches, and offloaded weights go
            # back.
            self.maybe_free_model_hooks()
        return UltraGenPipelineOutput(frames=frames) if return_dict else (frames,)

    def _after_step(
        self,
        callback: StepCallback | None,
        names: Sequence[str],
        step: int,
        timestep: Tensor,
        tensors: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Shows the user's callback the tensors that it asked for, and takes its changes."""
        if callback is None:
            return tensors
        outputs = callback(self, step, timestep, {name: tensors.get(name) for name in names}) or {}
        return {**tensors, **{key: outputs[key] for key in tensors if key in outputs}}

    # Decoding

    def decode_stream(self, latents: Tensor) -> Iterator[Tensor]:
        """Decodes piece by piece, so that memory need not hold the clip: b 3 t h w in [0, 1].

        Raises:
            GenerationError: if a piece is not finite.
        """
        return decode_pieces(self.vae, latents, parallel_group(self.transformer))

    def decode(self, latents: Tensor, output_type: OutputType = "np") -> Frames:
        """Latents of unit variance b c t h w → frames of the form asked for.

        Raises:
            GenerationError: if the frames are not finite or black.
        """
        return join_pieces(self.decode_stream(latents), output_type)


@contextmanager
def said_what_takes_less(height: int, width: int, num_frames: int) -> Iterator[None]:
    """Says, where the memory runs out, what takes less.

    Raises:
        torch.OutOfMemoryError: if it runs out, with the size of the clip.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise torch.OutOfMemoryError(
            f"The memory ran out for {num_frames} frames of {height} × {width}: take fewer frames "
            "or a smaller size, one prompt at a time, or let the parts come to the GPU in turn, "
            f"pipe.enable_model_cpu_offload(). {error}"
        ) from error
