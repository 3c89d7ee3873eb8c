"""Prompt → latents → frames: the one pipeline for the embedded and the 1.3B model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import log
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    WanTransformer3DModel,
)
from diffusers.loaders import WanLoraLoaderMixin
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from einops import rearrange
from torch import Tensor
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from .autoencoder import CompactAutoencoder, denormalize
from .flow import Prediction, second_order, shifted, to_velocity
from .hardware import free_memory, needs_tiles
from .transformer import UltraGenTransformer3DModel
from .wan import load_wan
from .windows import check_windows

OutputType = Literal["np", "pt", "uint8", "latent"]
StepCallback = Callable[["UltraGenPipeline", int, Tensor, dict[str, Any]], dict[str, Any] | None]


class GenerationError(RuntimeError):
    """The model gave something that is no picture: NaN, infinite or black."""


@dataclass
class UltraGenPipelineOutput(BaseOutput):
    """Result of a run.

    Attributes:
        frames: By output type: `np` float array b t h w 3 in [0, 1]; `uint8` the same in 0..255;
            `pt` float tensor b t 3 h w in [0, 1]; `latent` latents b c t h w.
    """

    frames: np.ndarray | Tensor


class UltraGenPipeline(DiffusionPipeline, WanLoraLoaderMixin):
    """Text to video with UltraGen's or Wan's transformer.

    Args:
        tokenizer: Of the text encoder.
        text_encoder: T5-type encoder.
        vae: Wan's VAE or the compact autoencoder.
        scheduler: Flow matching's noise levels. With dynamic shifting, the shift grows with the
            square root of the tokens in a frame, so that large frames get as much noise as small
            ones see.
        transformer: Predicts what `prediction` says.
        base_transformer: The dense low-resolution model that the transformer was converted from.
        max_sequence_length: Text tokens, padded with zero embeddings as in Wan.
        prediction: What both transformers' outputs mean, see `flow.to_velocity`.
        data_std: Of the preconditioning, see there.
        solver_order: 1 for Euler's steps, as Wan samples; 2 extrapolates from the step before,
            see `second_order`.
        distilled_steps: Steps that both transformers were distilled to, without guidance; None
            where they were not. A page and a command line take these settings by default.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _callback_tensor_inputs = ("latents", "prompt_embeds", "negative_prompt_embeds")
    _optional_components = ("base_transformer",)

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder: UMT5EncoderModel,
        vae: AutoencoderKLWan | CompactAutoencoder,
        scheduler: FlowMatchEulerDiscreteScheduler,
        transformer: UltraGenTransformer3DModel | WanTransformer3DModel,
        base_transformer: WanTransformer3DModel | None = None,
        max_sequence_length: int = 512,
        prediction: str = "velocity",
        data_std: float = 0.5,
        solver_order: int = 1,
        distilled_steps: int | None = None,
    ) -> None:
        super().__init__()
        if prediction not in get_args(Prediction):
            raise ValueError(f"prediction must be one of {get_args(Prediction)}: {prediction!r}.")
        if solver_order not in (1, 2):
            raise ValueError(f"solver_order must be 1 or 2, not {solver_order!r}.")
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
        )
        self.interrupt = False

    def base_pipeline(self) -> UltraGenPipeline:
        """The dense base model with this pipeline's other components.

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
        components["scheduler"] = type(self.scheduler).from_config(self.scheduler.config)
        return UltraGenPipeline(
            **components,
            max_sequence_length=self.config.max_sequence_length,
            prediction=self.config.prediction,
            data_std=self.config.data_std,
            solver_order=self.config.solver_order,
            distilled_steps=self.config.distilled_steps,
        )

    @classmethod
    def from_wan(
        cls,
        base: str | Path | None = None,
        ultragen: str | Path | None = None,
        dtype: torch.dtype = torch.bfloat16,
        local_files_only: bool = False,
    ) -> UltraGenPipeline:
        """The 1.3B pipeline of Wan's parts and the released UltraGen weights, on the CPU.

        Args:
            base: Wan2.1-T2V-1.3B in diffusers' layout: a folder, or a repository on the Hub as
                `owner/name` or `owner/name@revision`. None reads the environment variable
                ULTRAGEN_WAN, and without it is `presets.WAN_SOURCE`.
            ultragen: The authors' file, or a folder with it or with a converted transformer, or a
                repository. None reads ULTRAGEN_WEIGHTS, and without it is
                `presets.ULTRAGEN_SOURCE`.
            dtype: Of all parts.
            local_files_only: Take only what is on this machine, as with HF_HUB_OFFLINE=1.

        Raises:
            OSError: if a file can't be had, is incomplete or damaged.
            ValueError: if a file is of another model, or the two don't fit each other.
        """
        return cls(**load_wan(base, ultragen, dtype, local_files_only))

    @classmethod
    def _maybe_expand_t2v_lora_for_i2v(cls, transformer: Any, state_dict: dict) -> dict:
        # diffusers asks the transformer's configuration whether it is conditioned on images before
        # it loads a LoRA; UltraGen's has no such entry, and no such inputs.
        return state_dict

    # Sizes

    @property
    def pixels_per_token(self) -> int:
        """Rows and columns of pixels that one token covers."""
        return self.vae.config.scale_factor_spatial * self.transformer.config.patch_size[1]

    def check_inputs(
        self,
        prompt: str | list[str],
        height: int,
        width: int,
        num_frames: int,
        windows: int | str | None,
        num_inference_steps: int,
        guidance_scale: float,
    ) -> None:
        """Checks a run's settings before any work is done.

        Raises:
            ValueError: with the value that is wrong and those that are right.
        """
        prompts = prompt if isinstance(prompt, list | tuple) else [prompt]
        if not prompts or not all(isinstance(p, str) and p.strip() for p in prompts):
            raise ValueError("The prompt is empty: describe a scene in a few words.")
        for name, value in (
            ("height", height),
            ("width", width),
            ("num_frames", num_frames),
            ("num_inference_steps", num_inference_steps),
        ):
            if not isinstance(value, Integral):
                raise ValueError(f"{name} must be a whole number, not {value!r}.")
        token = self.pixels_per_token
        for name, value in (("height", height), ("width", width)):
            if value % token or value < token:
                below = max(token, value // token * token)
                raise ValueError(
                    f"{name} must be a multiple of {token}, not {value}: "
                    f"choose {below} or {below + token}."
                )
        step = self.vae.config.scale_factor_temporal
        if num_frames % step != 1 or num_frames < 1:
            below = max(1, num_frames - (num_frames - 1) % step)
            raise ValueError(
                f"num_frames must be {step}n + 1, not {num_frames}: "
                f"choose {below} or {below + step}."
            )
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, not {num_inference_steps}.")
        if not isinstance(guidance_scale, Real) or not 0 <= guidance_scale <= 100:
            raise ValueError(f"guidance_scale must be from 0 to 100, not {guidance_scale!r}.")
        if isinstance(self.transformer, UltraGenTransformer3DModel):
            rows, columns = height // token, width // token
            check_windows(self.transformer.resolve_windows(windows, rows, columns), rows, columns)
        elif windows is not None:
            raise ValueError("The dense model has no windows: leave out `windows`.")

    # Text

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of a prompt that the tokenizer maps to its unknown token, in order, once each."""
        unknown = self.tokenizer.unk_token_id
        words = dict.fromkeys(re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", prompt.lower()))
        return [
            word
            for word in words
            if unknown in self.tokenizer(word, add_special_tokens=False).input_ids
        ]

    def encode_prompt(self, prompts: list[str], device: torch.device) -> Tensor:
        """Prompts → text embeddings b n d; padding is zero, as Wan was trained."""
        length = self.config.max_sequence_length
        tokens = self.tokenizer(
            [prompt_clean(p) for p in prompts],
            padding="max_length",
            max_length=length,
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        ids, mask = tokens.input_ids.to(device), tokens.attention_mask.to(device)
        embeddings = self.text_encoder(ids, mask).last_hidden_state
        return (embeddings * mask[..., None]).to(self.transformer.dtype)

    # Sampling

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

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        height: int,
        width: int,
        num_frames: int,
        windows: int | Literal["auto"] | None = None,
        num_inference_steps: int = 30,
        guidance_scale: float = 5.0,
        negative_prompt: str | list[str] | None = "",
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] = ("latents",),
        output_type: OutputType = "np",
    ) -> UltraGenPipelineOutput:
        """Generates one clip for each prompt.

        Args:
            prompt: What to show.
            height: Rows in pixels, a multiple of `pixels_per_token`.
            width: Columns in pixels, a multiple of `pixels_per_token`.
            num_frames: Frames, 4n + 1.
            windows: K, the local windows on each axis, an even number, or `auto` for the trained
                window size; None for a dense transformer (for UltraGen the same as `auto`).
            num_inference_steps: Steps of the solver.
            guidance_scale: Classifier-free guidance; 1 and below runs the model once a step.
            negative_prompt: What guidance leads away from.
            generator: Source of the noise; the same seed gives the same clip.
            latents: Noise to start from, b c t h w, instead of drawing it.
            callback_on_step_end: Called after each step with the pipeline, the step, the timestep
                and the tensors asked for; may return changed ones. Setting `pipe.interrupt` in it
                ends the sampling after that step.
            callback_on_step_end_tensor_inputs: Names of the tensors that the callback gets.
            output_type: Form of the frames, see `UltraGenPipelineOutput`.

        Raises:
            ValueError: if a setting is out of range.
            GenerationError: if the result is not finite or black.
        """
        if windows is None and isinstance(self.transformer, UltraGenTransformer3DModel):
            windows = "auto"
        self.check_inputs(
            prompt, height, width, num_frames, windows, num_inference_steps, guidance_scale
        )
        if output_type not in get_args(OutputType):
            raise ValueError(f"output_type must be one of {get_args(OutputType)}: {output_type!r}.")
        names = callback_on_step_end_tensor_inputs
        if not set(names) <= set(self._callback_tensor_inputs):
            raise ValueError(f"A callback can get {self._callback_tensor_inputs}, not {names}.")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        negatives = (
            list(negative_prompt)
            if isinstance(negative_prompt, list | tuple)
            else [negative_prompt or ""] * len(prompts)
        )
        if len(negatives) != len(prompts):
            raise ValueError(
                f"{len(prompts)} prompts need as many negative prompts, not {len(negatives)}."
            )
        latents = self.prepare_latents(len(prompts), num_frames, height, width, generator, latents)
        self.interrupt = False
        device = self._execution_device
        token = self.pixels_per_token
        timesteps, sigmas = self.prepare_schedule(
            num_inference_steps, height // token * (width // token), device
        )
        extra = {} if windows is None else {"windows": windows}
        try:
            embeds = {"prompt_embeds": self.encode_prompt(prompts, device)}
            if guidance_scale > 1:
                embeds["negative_prompt_embeds"] = self.encode_prompt(negatives, device)
            after_step = partial(self._after_step, callback_on_step_end, names)
            latents = self.denoise(
                latents, timesteps, sigmas, embeds, guidance_scale, extra, after_step
            )
            if self.interrupt or output_type == "latent":
                return UltraGenPipelineOutput(frames=latents)
            return UltraGenPipelineOutput(frames=self.decode(latents, output_type))
        finally:
            # However the run ends, the next one must not meet its caches, and offloaded weights go
            # back.
            self.maybe_free_model_hooks()

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

    def _after_step(
        self,
        callback: StepCallback | None,
        names: tuple[str, ...],
        step: int,
        timestep: Tensor,
        tensors: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Shows the user's callback the tensors that it asked for, and takes its changes."""
        if callback is None:
            return tensors
        outputs = callback(self, step, timestep, {name: tensors.get(name) for name in names}) or {}
        return {**tensors, **{key: outputs[key] for key in tensors if key in outputs}}

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
        x = latents.to(self.transformer.dtype)
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

    def prepare_latents(
        self,
        batch: int,
        num_frames: int,
        height: int,
        width: int,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
    ) -> Tensor:
        """Gaussian noise b c t h w in float32, the same on every device for a CPU generator; given
        latents take its place.

        Raises:
            ValueError: if the latents have another shape, or the generators another number.
        """
        config = self.vae.config
        shape = (
            batch,
            self.transformer.config.in_channels,
            (num_frames - 1) // config.scale_factor_temporal + 1,
            height // config.scale_factor_spatial,
            width // config.scale_factor_spatial,
        )
        if isinstance(generator, list) and len(generator) != batch:
            raise ValueError(f"{batch} prompts need as many generators, not {len(generator)}.")
        device = self._execution_device
        if latents is None:
            return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        if tuple(latents.shape) != shape:
            needed, given = (" × ".join(map(str, sizes)) for sizes in (shape, latents.shape))
            raise ValueError(f"latents must be {needed} for this size, not {given}.")
        return latents.to(device, torch.float32)

    # Decoding

    @torch.no_grad()
    def decode_stream(self, latents: Tensor) -> Iterator[Tensor]:
        """Decodes piece by piece, so that memory need not hold the clip: b 3 t h w in [0, 1].

        Raises:
            GenerationError: if a piece is not finite.
        """
        z = denormalize(self.vae, latents)
        pieces = (
            self.vae.decode_groups(z)
            if isinstance(self.vae, CompactAutoencoder)
            else iter(self._decode_wan(z))
        )
        for piece in pieces:
            if not torch.isfinite(piece).all():
                raise GenerationError(
                    "The decoded frames are not finite. Use another seed, or run the autoencoder "
                    "in float32."
                )
            yield (piece.float() / 2 + 0.5).clamp(0, 1)

    def _decode_wan(self, z: Tensor) -> tuple[Tensor]:
        """Wan's decoding, in tiles where memory asks for them: the clip, b 3 t h w in [-1, 1]."""
        scale = self.vae.config.scale_factor_spatial
        height, width = z.shape[-2] * scale, z.shape[-1] * scale
        tiled = self.vae.use_tiling
        free = free_memory(z.device)
        self.vae.use_tiling = tiled or needs_tiles(height, width, z.element_size(), free)
        try:
            return self.vae.decode(z, return_dict=False)
        finally:
            self.vae.use_tiling = tiled

    @torch.no_grad()
    def decode(self, latents: Tensor, output_type: OutputType = "np") -> np.ndarray | Tensor:
        """Latents of unit variance b c t h w → frames of the form asked for.

        Raises:
            GenerationError: if the frames are not finite or black.
        """
        if output_type == "pt":
            frames = torch.cat(list(self.decode_stream(latents)), dim=2)
            frames = rearrange(frames, "b c t h w -> b t c h w")
        else:
            pieces = [
                rearrange(
                    piece.mul(255).round().byte() if output_type == "uint8" else piece,
                    "b c t h w -> b t h w c",
                ).cpu()
                for piece in self.decode_stream(latents)
            ]
            frames = torch.cat(pieces, dim=1).numpy()
        if frames.max() * (1 if output_type == "uint8" else 255) < 3:
            raise GenerationError("The clip is black. Use another seed or prompt.")
        return frames
