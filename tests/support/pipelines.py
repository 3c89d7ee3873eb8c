"""What tests of pipelines share."""

from __future__ import annotations

import torch

from ultragen.pipeline import UltraGenPipeline

SIZE = {"height": 96, "width": 128, "num_frames": 5}
RUN = {**SIZE, "prompt": "a calm lake", "windows": 2, "num_inference_steps": 3}


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def latents_of(pipe: UltraGenPipeline, **changes) -> torch.Tensor:
    settings = {**RUN, "generator": seed(), "output_type": "latent", **changes}
    return pipe(**settings).frames
