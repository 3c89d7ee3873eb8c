"""What a pipeline makes of its inputs, with the names and the order of diffusers' `WanPipeline`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ..model.transformer import UltraGenTransformer3DModel
from ..presets import (
    EMBEDDED,
    RESOLUTIONS,
    T3_4K,
    WAN,
    Noise,
    check_num_frames,
)
from .decoding import OutputType
from .guidance import Guidance
from .inputs import (
    check_attention_kwargs,
    check_count,
    check_guidance,
    check_model_windows,
    check_noise,
    check_size,
    check_whole,
    starting_noise,
)
from .prompts import (
    check_embeddings,
    embed_prompts,
    find_unread,
    pair_texts,
    warn_of_cuts,
)
from .solvers import check_scheduler
from .words import find_edition, find_unknown_words


class PipelineInputs(DiffusionPipeline):
    """Sizes, checks, text embeddings and noise.

    It needs a `tokenizer`, a `text_encoder`, a `vae`, a `transformer`, a `scheduler`, and in its
    configuration `max_sequence_length` and `noise`, see `UltraGenPipeline`.
    """

    _callback_tensor_inputs = ("latents", "prompt_embeds", "negative_prompt_embeds")

    @property
    def pixels_per_token(self) -> int:
        """Rows and columns of pixels that one token covers."""
        return self.vae.config.scale_factor_spatial * self.transformer.config.patch_size[1]

    @property
    def default_size(self) -> tuple[int, int, int]:
        """Height, width and num_frames that the model is made for: those of its preset, which it
        is told by the size of its tokens and by T3-Video's windows. A dense base model has its
        own, as in `WanPipeline`.

        Raises:
            ValueError: if no preset has such tokens.
        """
        token = self.pixels_per_token
        larger = T3_4K if self.transformer.config.get("t3_windows") else WAN
        for preset in (EMBEDDED, larger):
            if preset.pixels_per_token != token:
                continue
            if isinstance(self.transformer, UltraGenTransformer3DModel):
                size = RESOLUTIONS[preset.resolution]
                return size.height, size.width, preset.num_frames
            return preset.base_height, preset.base_width, preset.num_frames
        raise ValueError(
            f"A model of tokens of {token} × {token} pixels has no size of its own: give height, "
            "width and num_frames."
        )

    @property
    def edition(self) -> int:
        """The edition of the procedural world that the model belongs to, see `find_edition`."""
        return find_edition(self.tokenizer)

    def with_default_size(
        self, height: int | None, width: int | None, num_frames: int | None
    ) -> tuple[int, int, int]:
        """The same, with the model's own size for None."""
        if height is None or width is None or num_frames is None:
            own = self.default_size
            height = own[0] if height is None else height
            width = own[1] if width is None else width
            num_frames = own[2] if num_frames is None else num_frames
        return height, width, num_frames

    def check_inputs(
        self,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None,
        height: int,
        width: int,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = None,
        guidance_scale_2: float | None = None,
        *,
        num_frames: int,
        num_inference_steps: int,
        guidance: Guidance,
        windows: int | Literal["auto"] | None,
        num_videos_per_prompt: int,
        max_sequence_length: int,
        output_type: str,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Checks a run's settings before any work is done.

        Raises:
            ValueError: with the value that is wrong and those that are right.
        """
        check_scheduler(self.scheduler)
        text_dim = self.transformer.config.text_dim
        pair_texts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, text_dim)
        check_whole(height=height, width=width, num_frames=num_frames)
        token = self.pixels_per_token
        check_size(height, width, token)
        check_num_frames(num_frames, self.vae.config.scale_factor_temporal)
        check_count(
            num_inference_steps=num_inference_steps,
            num_videos_per_prompt=num_videos_per_prompt,
            max_sequence_length=max_sequence_length,
        )
        check_guidance(guidance)
        negative = negative_prompt or negative_prompt_embeds is not None
        if guidance.scale <= 1 and (negative or guidance.interval != Guidance(1.0).interval):
            warnings.warn(
                "negative_prompt and guidance_interval have no effect: guidance is off, "
                f"guidance_scale={guidance.scale:g}. Leave them out, or take a scale above 1.",
                stacklevel=3,
            )
        check_attention_kwargs(attention_kwargs)
        if guidance_scale_2 is not None:
            raise ValueError(
                "guidance_scale_2 is for Wan 2.2's second transformer, which this model does not "
                f"have: leave out {guidance_scale_2!r}."
            )
        check_model_windows(self.transformer, windows, height // token, width // token)
        if output_type not in get_args(OutputType):
            raise ValueError(f"output_type must be one of {get_args(OutputType)}: {output_type!r}.")
        names, known = callback_on_step_end_tensor_inputs or (), self._callback_tensor_inputs
        if not set(names) <= set(known):
            raise ValueError(f"A callback can get {known}, not {names}.")

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of a prompt that mean nothing to the model, in order, once each. Plural and
        singular, with and without hyphens, are one; words such as "over" are left out."""
        return find_unknown_words(self.tokenizer, prompt)

    def unread(self, prompt: str) -> str:
        """What stands at a prompt's end beyond the tokens that the model reads; mostly nothing."""
        return find_unread(self.tokenizer, prompt, self.config.max_sequence_length)

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None = None,
        do_classifier_free_guidance: bool = True,
        num_videos_per_prompt: int = 1,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        max_sequence_length: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """What several calls can share, also those of `base_pipeline`: their `prompt_embeds` and,
        if they are guided, `negative_prompt_embeds`, each b n d.

        Args:
            prompt: What to show; None with `prompt_embeds`.
            negative_prompt: What guidance leads away from; one for all prompts, or one for each.
            do_classifier_free_guidance: Whether the negative ones are needed.
            num_videos_per_prompt: Times that each embedding stands in the batch, one after another.
            prompt_embeds: Prompts that are encoded already, b n d.
            negative_prompt_embeds: Negative ones that are encoded already, b n d.
            max_sequence_length: Text tokens n, cut or padded with zeros; None for the model's.
            device: Where the embeddings go; None for the pipeline's device.
            dtype: Their type; None for the transformer's.

        Raises:
            ValueError: if a prompt is empty or given twice, or there are more or fewer negative
                ones.
            GenerationError: if the text encoder's are not finite.
        """
        texts = pair_texts(
            prompt,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            self.transformer.config.text_dim,
        )
        length = max_sequence_length or self.config.max_sequence_length
        place = self._execution_device

        def encode(text: list[str] | Tensor) -> Tensor:
            if not torch.is_tensor(text):
                warn_of_cuts(self.tokenizer, text, length)
                text = embed_prompts(self.tokenizer, self.text_encoder, text, length, place)
                check_embeddings(text)
            embeds = text.to(device or place, dtype or self.transformer.dtype)
            return embeds.repeat_interleave(num_videos_per_prompt, dim=0)

        positive = encode(texts["prompt_embeds"])
        if not do_classifier_free_guidance:
            return positive, None
        return positive, encode(texts["negative_prompt_embeds"])

    def prepare_latents(
        self,
        batch_size: int,
        num_channels_latents: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        *,
        noise: Noise | None = None,
    ) -> Tensor:
        """Gaussian noise b c t h w, the same on every device for a CPU generator; given latents
        take its place.

        Args:
            batch_size: Clips b.
            num_channels_latents: Channels c; None for the transformer's.
            height: Rows in pixels; None, as for the next two, for the model's own size.
            width: Columns in pixels.
            num_frames: Frames of the clip, 4n + 1.
            dtype: None for float32, in which the solver computes.
            device: None for the pipeline's.
            generator: Source of the noise; a list has one for each clip.
            latents: Noise to start from.
            noise: How it is drawn, see `UltraGenPipeline`; None for the pipeline's setting.

        Raises:
            ValueError: if the latents have another shape, or the generators another number, or
                noise can't be drawn like that.
        """
        noise = self.config.noise if noise is None else noise
        check_noise(noise)
        height, width, num_frames = self.with_default_size(height, width, num_frames)
        config = self.vae.config
        shape = (
            batch_size,
            num_channels_latents or self.transformer.config.out_channels,
            (num_frames - 1) // config.scale_factor_temporal + 1,
            height // config.scale_factor_spatial,
            width // config.scale_factor_spatial,
        )
        device, dtype = device or self._execution_device, dtype or torch.float32
        return starting_noise(shape, generator, latents, device, dtype, noise)
