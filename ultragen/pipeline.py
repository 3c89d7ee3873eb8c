"""Prompt → latents → frames: the one pipeline for the embedded and the 1.3B model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from diffusers.loaders import WanLoraLoaderMixin
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
from .model.window_plan import WindowMotion
from .sampling.decoding import OutputType, decode_pieces, join_pieces
from .sampling.flow import Prediction
from .sampling.guidance import Guidance
from .sampling.inputs import (
    Texts,
    check_frames,
    check_model_windows,
    check_sampling,
    check_size,
    check_whole,
    embed_prompts,
    find_unknown_words,
    pair_texts,
    starting_noise,
)
from .sampling.sampler import FlowSampler
from .weights.headers import check_pipeline
from .weights.wan import load_wan

StepCallback = Callable[["UltraGenPipeline", int, Tensor, dict[str, Any]], dict[str, Any] | None]


@dataclass
class UltraGenPipelineOutput(BaseOutput):
    """Result of a run.

    Attributes:
        frames: By output type: `np` float array b t h w 3 in [0, 1]; `uint8` the same in 0..255;
            `pt` float tensor b t 3 h w in [0, 1] on the CPU; `latent` latents b c t h w.
    """

    frames: np.ndarray | Tensor


class UltraGenPipeline(FlowSampler, WanLoraLoaderMixin):
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
            where they were not.
        window_motion: `none` leaves UltraGen's windows where they are in all steps, as the paper
            does; with `alternate` they stand between their usual places in every second one, so
            that no border is seen in the picture.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _callback_tensor_inputs = ("latents", "prompt_embeds", "negative_prompt_embeds")
    _optional_components = ["base_transformer"]  # noqa: RUF012 - diffusers adds a list to it

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
        window_motion: str = "none",
    ) -> None:
        super().__init__()
        if prediction not in get_args(Prediction):
            raise ValueError(f"prediction must be one of {get_args(Prediction)}: {prediction!r}.")
        if solver_order not in (1, 2):
            raise ValueError(f"solver_order must be 1 or 2, not {solver_order!r}.")
        if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):  # as in Wan's own folder
            raise ValueError(
                f"The scheduler must be a FlowMatchEulerDiscreteScheduler, not a "
                f"{type(scheduler).__name__}: load Wan's folder by UltraGenPipeline.from_wan, or "
                "pass another scheduler."
            )
        if window_motion not in get_args(WindowMotion):
            raise ValueError(
                f"window_motion must be one of {get_args(WindowMotion)}, not {window_motion!r}."
            )
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
        )

    def base_pipeline(self) -> UltraGenPipeline:
        """The dense base model with this pipeline's other components, without its parallel
        guidance.

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

    def enable_fp8(self) -> None:
        """Computes the transformer's large linear layers in FP8, which takes less time and memory
        and changes the clips a little, see `fp8`.

        There is no way back: load the pipeline again. Until then its transformer can't be trained
        or saved. LoRA adapters are merged before (`fuse_lora`, `unload_lora_weights`), or loaded
        after and then stay beside the weights. `base_pipeline` has a transformer of its own.

        Raises:
            ImportError: if torchao can't be imported.
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

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **options: Any
    ) -> UltraGenPipeline:
        """Loads a saved pipeline as diffusers does, which alone would fill gaps in a folder's
        weights with noise and go on. For the published files see `from_wan`.

        Args:
            pretrained_model_name_or_path: A folder, or a repository on the Hub.
            options: Of diffusers' `DiffusionPipeline.from_pretrained`.

        Raises:
            OSError: if a file of a folder is missing, truncated or corrupt.
            ValueError: listing the weights that are missing, unexpected or misshapen there.
        """
        folder = Path(pretrained_model_name_or_path)
        if (folder / "model_index.json").is_file():
            check_pipeline(folder, options)
        return super().from_pretrained(pretrained_model_name_or_path, **options)

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

    # Inputs

    @property
    def pixels_per_token(self) -> int:
        """Rows and columns of pixels that one token covers."""
        return self.vae.config.scale_factor_spatial * self.transformer.config.patch_size[1]

    def check_inputs(
        self,
        height: int,
        width: int,
        num_frames: int,
        windows: int | str | None,
        num_inference_steps: int,
        guidance: Guidance,
    ) -> None:
        """Checks a run's settings before any work is done.

        Raises:
            ValueError: with the value that is wrong and those that are right.
        """
        check_whole(
            height=height,
            width=width,
            num_frames=num_frames,
            num_inference_steps=num_inference_steps,
        )
        token = self.pixels_per_token
        check_size(height, width, token)
        check_frames(num_frames, self.vae.config.scale_factor_temporal)
        check_sampling(num_inference_steps, guidance)
        check_model_windows(self.transformer, windows, height // token, width // token)

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of a prompt that the tokenizer maps to its unknown token, in order, once each."""
        return find_unknown_words(self.tokenizer, prompt)

    def _embed(self, prompts: list[str], device: torch.device) -> Tensor:
        """Prompts → text embeddings b n d; padding is zero, as Wan was trained."""
        embeddings = embed_prompts(
            self.tokenizer, self.text_encoder, prompts, self.config.max_sequence_length, device
        )
        return embeddings.to(self.transformer.dtype)

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = "",
        do_classifier_free_guidance: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """What several calls can share, also those of `base_pipeline`: their `prompt_embeds` and,
        if they are guided, `negative_prompt_embeds`, each b n d.

        Raises:
            ValueError: if a prompt is empty, or there are more or fewer negative ones.
        """
        texts = pair_texts(prompt, negative_prompt)
        embeds = self._encode(texts, do_classifier_free_guidance)
        return embeds["prompt_embeds"], embeds.get("negative_prompt_embeds")

    def _encode(self, texts: Texts, guided: bool) -> dict[str, Tensor]:
        """Embeddings of texts, some of which may be encoded already."""
        device, dtype = self._execution_device, self.transformer.dtype
        return {
            name: text.to(device, dtype) if torch.is_tensor(text) else self._embed(text, device)
            for name, text in texts.items()
            if guided or name == "prompt_embeds"
        }

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
            self.transformer.config.out_channels,
            (num_frames - 1) // config.scale_factor_temporal + 1,
            height // config.scale_factor_spatial,
            width // config.scale_factor_spatial,
        )
        return starting_noise(shape, generator, latents, self._execution_device)

    # Sampling

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None,
        height: int,
        width: int,
        num_frames: int,
        windows: int | Literal["auto"] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        negative_prompt: str | list[str] | None = "",
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] = ("latents",),
        output_type: OutputType = "np",
    ) -> UltraGenPipelineOutput:
        """Generates one clip for each prompt.

        Args:
            prompt: What to show; None with `prompt_embeds`.
            height: Rows in pixels, a multiple of `pixels_per_token`.
            width: Columns in pixels, a multiple of `pixels_per_token`.
            num_frames: Frames, 4n + 1.
            windows: K, the local windows on each axis, an even number, or `auto` for the trained
                window size; None for a dense transformer (for UltraGen the same as `auto`).
            num_inference_steps: Steps of the solver; None takes those that the model was distilled
                to, and 30 where it was not.
            guidance_scale: Classifier-free guidance; 1 and below runs the model once a step. None
                takes 1 for a distilled model, which has guidance in its weights, and else 5.
            guidance_interval: Noise levels σ, from 0 to 1, between which guidance is computed, the
                lower one excluded; steps at other levels run the model once.
            negative_prompt: What guidance leads away from.
            generator: Source of the noise; the same seed gives the same clip.
            latents: Noise to start from, b c t h w, instead of drawing it.
            prompt_embeds: The encoded prompts, b n d, from `encode_prompt`.
            negative_prompt_embeds: The same of the negative ones.
            callback_on_step_end: Called after each step with the pipeline, the step, the timestep
                and the tensors asked for; may return changed ones. Setting `pipe.interrupt` in it
                ends the sampling after that step.
            callback_on_step_end_tensor_inputs: Names of the tensors that the callback gets.
            output_type: Form of the frames, see `UltraGenPipelineOutput`.

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
        guidance = Guidance(guidance_scale, guidance_interval)
        texts = pair_texts(
            prompt,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            self.transformer.config.text_dim,
        )
        self.check_inputs(height, width, num_frames, windows, num_inference_steps, guidance)
        if output_type not in get_args(OutputType):
            raise ValueError(f"output_type must be one of {get_args(OutputType)}: {output_type!r}.")
        names = callback_on_step_end_tensor_inputs
        if not set(names) <= set(self._callback_tensor_inputs):
            raise ValueError(f"A callback can get {self._callback_tensor_inputs}, not {names}.")
        batch = len(texts["prompt_embeds"])
        latents = self.prepare_latents(batch, num_frames, height, width, generator, latents)
        self.interrupt = False
        device = self._execution_device
        token = self.pixels_per_token
        timesteps, sigmas = self.prepare_schedule(
            num_inference_steps, height // token * (width // token), device
        )
        extra = {} if windows is None else {"windows": windows}
        try:
            embeds = self._encode(texts, guidance_scale > 1)
            after_step = partial(self._after_step, callback_on_step_end, names)
            latents = self.denoise(latents, timesteps, sigmas, embeds, guidance, extra, after_step)
            if self.interrupt or output_type == "latent":
                return UltraGenPipelineOutput(frames=latents)
            return UltraGenPipelineOutput(frames=self.decode(latents, output_type))
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise torch.OutOfMemoryError(
                    f"The memory ran out for {num_frames} frames of {height} × {width}: take fewer "
                    "frames or a smaller size, one prompt at a time, or let the parts come to the "
                    f"GPU in turn, pipe.enable_model_cpu_offload(). {error}"
                ) from error
            raise
        finally:
            # However the run ends, the next one must not meet its caches, and offloaded weights go
            # back.
            self.maybe_free_model_hooks()

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

    # Decoding

    def decode_stream(self, latents: Tensor) -> Iterator[Tensor]:
        """Decodes piece by piece, so that memory need not hold the clip: b 3 t h w in [0, 1].

        Raises:
            GenerationError: if a piece is not finite.
        """
        return decode_pieces(self.vae, latents)

    def decode(self, latents: Tensor, output_type: OutputType = "np") -> np.ndarray | Tensor:
        """Latents of unit variance b c t h w → frames of the form asked for.

        Raises:
            GenerationError: if the frames are not finite or black.
        """
        return join_pieces(self.decode_stream(latents), output_type)
