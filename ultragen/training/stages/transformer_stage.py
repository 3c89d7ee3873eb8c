"""What all stages that train a transformer share: its velocity, samples, compilation, export."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from PIL import Image
from torch import Tensor, nn

from ...hardware import fast_bfloat16
from ...model.coordinates import with_coordinates
from ...model.transformer import UltraGenTransformer3DModel
from ...pictures import picture_grid, to_image
from ...pipeline import UltraGenPipeline
from ...presets import PROMPTS, SUGGESTED
from ...sampling.flow import to_velocity
from ..clip_sizes import ClipSize
from ..data import tokenize
from ..stage import Stage


class TextToLatents(nn.Module):
    """Text encoder and transformer as one module, for joint training."""

    def __init__(self, text_encoder: nn.Module, transformer: nn.Module) -> None:
        super().__init__()
        self.text_encoder, self.transformer = text_encoder, transformer

    def forward(self, latents: Tensor, timestep: Tensor, ids: Tensor, **extra: Any) -> Tensor:
        """Noisy latents with their coordinates b c t h w, timestep b in 0..1000, token ids b n →
        the transformer's output, b c t h w; `TransformerStage.velocity` says what it means."""
        mask = (ids != 0).long()
        text = self.text_encoder(ids, mask).last_hidden_state * mask[..., None]
        return self.transformer(
            hidden_states=latents,
            timestep=timestep,
            encoder_hidden_states=text,
            return_dict=False,
            **extra,
        )[0]


def compile_blocks(transformer: WanTransformer3DModel | UltraGenTransformer3DModel) -> None:
    """Compiles a transformer's blocks, UltraGen's without their self-attention, in less than a
    minute for each size of clips."""
    if not isinstance(transformer, UltraGenTransformer3DModel):
        transformer.compile_repeated_blocks(fullgraph=True, dynamic=False)
        return
    for block in transformer.blocks:
        block.compile_for_training()


def mixed_precision(device: torch.device) -> torch.autocast:
    """bfloat16 where that is fast, as in training steps."""
    return torch.autocast(device.type, torch.bfloat16, device.type == "cuda" or fast_bfloat16())


class TransformerStage(Stage):
    """A stage that trains the transformer of a pipeline, with or without its text encoder.

    Args:
        pipeline: Holds what is trained and what is needed for samples.
        sizes: Kinds of clips; a step uses one of them.
        train_text: Whether the text encoder is trained along.
        seed: What the data follow; another one for each resumption.
        num_inference_steps: Steps in which the clips of sample sheets are sampled.
        guidance_scale: Guidance of these clips; 1 for none.
    """

    recordable = True

    def __init__(
        self,
        pipeline: UltraGenPipeline,
        sizes: Sequence[ClipSize],
        train_text: bool,
        seed: int = 0,
        num_inference_steps: int = 12,
        guidance_scale: float = 3.0,
    ) -> None:
        self.pipeline, self.sizes, self.seed = pipeline, tuple(sizes), seed
        self.num_inference_steps, self.guidance_scale = num_inference_steps, guidance_scale
        pipeline.vae.requires_grad_(False)
        pipeline.text_encoder.requires_grad_(train_text)
        # diffusers and transformers load models in evaluation mode and half precision.
        pipeline.text_encoder.float()
        pipeline.transformer.float().requires_grad_(True)
        self.model = TextToLatents(pipeline.text_encoder, pipeline.transformer)
        if torch.cuda.is_available():
            compile_blocks(pipeline.transformer)
        pipeline.set_progress_bar_config(disable=True)

    def setup(self, device: torch.device, rank: int, world: int) -> None:
        self.device = device
        self.pipeline.vae.to(device, memory_format=torch.channels_last)
        self.empty = tokenize(self.pipeline.tokenizer, [""])[0].to(device)

    def choose(self, step: int) -> tuple[ClipSize, int | None]:
        """The kind of clip and K of a step, the same in all processes: a step is as slow as its
        slowest one."""
        chance = random.Random(step)
        [size] = chance.choices(self.sizes, [s.weight for s in self.sizes])
        return size, chance.choice(size.windows) if size.windows else None

    def velocity(
        self, model: nn.Module, noisy: Tensor, sigma: Tensor, ids: Tensor, windows: int | None
    ) -> Tensor:
        """The model's velocity at noise levels b, b c t h w in float32."""
        extra = {} if windows is None else {"windows": windows}
        time = sigma * self.pipeline.scheduler.config.num_train_timesteps
        given = with_coordinates(noisy, self.pipeline.transformer.config.in_channels)
        output = model(given, time, ids, **extra)
        config = self.pipeline.config
        return to_velocity(output, noisy, sigma, config.prediction, config.data_std)

    def sample_sheet(self) -> Image.Image:
        """First, middle and last frame for some prompts, of the first kind of clip that moves."""
        size = next((s for s in self.sizes if s.num_frames > 1), self.sizes[0])
        rows = []
        for prompt in PROMPTS[:SUGGESTED]:
            with mixed_precision(self.empty.device):
                frames = self.pipeline(
                    prompt=prompt,
                    height=size.height,
                    width=size.width,
                    num_frames=size.num_frames,
                    windows=max(size.windows) if size.windows else None,
                    num_inference_steps=self.num_inference_steps,
                    guidance_scale=self.guidance_scale,
                    generator=torch.Generator().manual_seed(0),
                    output_type="pt",
                ).frames[0]
            rows.append([to_image(frames[i]) for i in (0, len(frames) // 2, -1)])
        return picture_grid(rows)

    def export(self, folder: Path) -> None:
        name = (
            "transformer"
            if isinstance(self.pipeline.transformer, UltraGenTransformer3DModel)
            else "base_transformer"
        )
        self.pipeline.transformer.save_pretrained(folder / name)
        self.pipeline.text_encoder.save_pretrained(folder / "text_encoder")
        self.pipeline.tokenizer.save_pretrained(folder / "tokenizer")
        self.pipeline.scheduler.save_pretrained(folder / "scheduler")
