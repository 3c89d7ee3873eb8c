"""The 1.3B model, fine-tuned into UltraGen on people's own clips."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ...dataset.shard_files import Size
from ...dataset.shards import LatentDataset
from ...files import whole_file, write_text
from ...model.transformer import UltraGenTransformer3DModel
from ...presets import FRAMES_PER_LATENT, WAN, WAN_SHIFT
from ...sampling.flow import noised, shifted
from ...weights.lora_saving import save_lora
from ..clip_order import ClipOrder, sample_generator
from ..sharding import whole_weights
from ..stage import Stage
from ..trained_parts import ADAPTER
from .flow_matching import UNCONDITIONAL
from .losses import by_noise_level
from .wan_samples import WanSamples

TIMESTEPS = 1000
WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class WanBatch:
    """Some samples.

    Attributes:
        clean: Latents b c t h w.
        noise: The same shape.
        sigma: Noise levels b, on the CPU.
        text: Embeddings b n d, padded with zeros.
    """

    clean: Tensor
    noise: Tensor
    sigma: Tensor
    text: Tensor


class WanStage(Stage):
    """Flow matching (Wan's objective): x_σ = (1 − σ)x + σε, v = ε − x.

    Noise levels are uniform before the shift that the schedule of the released weights has, so that
    a model is trained as densely at each level as it is sampled there; all count the same.

    Args:
        transformer: With what is trained marked, see `choose_trained`.
        dataset: Where latents and texts are read.
        clips: Size that is trained → numbers of the dataset's clips that have at least it.
        batch_size: Clips of a batch in each process.
        group: Clips of a step, over all processes.
        seed: What everything that is drawn follows.
        samples: What sample sheets show; None for none.
        settings: What can't change while the training goes on, for people.
    """

    def __init__(
        self,
        transformer: UltraGenTransformer3DModel,
        dataset: LatentDataset,
        clips: dict[Size, list[int]],
        batch_size: int,
        group: int,
        seed: int,
        samples: WanSamples | None,
        settings: Mapping[str, str],
    ) -> None:
        self.model = self.transformer = transformer.train()
        self.blocks = tuple(transformer.blocks)
        self.dataset, self.samples_per_batch, self.seed = dataset, batch_size, seed
        self.order = ClipOrder(clips, group, seed)
        self.sheet = samples
        self.device, self.rank = torch.device("cpu"), 0
        self.aligned = False
        self.fingerprint, self.settings = dataset.fingerprint(), settings
        # Sharding gives the model's class another name, which the file must not have.
        self.config = transformer.to_json_string()
        self.adapter: Any = getattr(transformer, "peft_config", {}).get(ADAPTER)

    def setup(self, device: torch.device, rank: int, world: int) -> None:
        self.device, self.rank = device, rank

    def samples(self, numbers: range) -> WanBatch:
        if not self.aligned:  # the first batch of a run is the first of a step
            first = numbers.start - self.rank * self.samples_per_batch
            self.order.offset, self.aligned = first % self.order.group, True
        size = self.order[numbers.start][0]
        drawn = [self.draw(number, size) for number in numbers]
        clean, noise, sigma, text = (torch.stack(parts) for parts in zip(*drawn, strict=True))
        _, patch_rows, patch_columns = self.transformer.config.patch_size
        self.tokens = len(clean) * clean[0, 0].numel() // (patch_rows * patch_columns)
        return WanBatch(
            clean.to(self.device, non_blocking=True),
            noise.to(self.device, non_blocking=True),
            sigma,
            text.to(self.device, non_blocking=True),
        )

    def draw(self, number: int, size: Size) -> tuple[Tensor, ...]:
        """A sample's latents, noise, noise level and text."""
        chance = sample_generator(self.seed, number)
        clip = self.order[number][1]
        captions = len(self.dataset.clips[clip].captions)
        caption = int(torch.randint(captions, (), generator=chance))
        dropped = torch.rand((), generator=chance) < UNCONDITIONAL
        text = self.dataset.empty_text() if dropped else self.dataset.text(clip, caption)
        sigma = shifted(1 - torch.rand((), generator=chance), WAN_SHIFT)
        # The autoencoder is causal: the beginning of a clip's latents is that of its frames.
        frames = (size[2] - 1) // FRAMES_PER_LATENT + 1
        clean = self.dataset.latents(clip)[:, :frames].float()
        noise = torch.randn(clean.shape, generator=chance)
        return clean, noise, sigma, pad(text, WAN.max_sequence_length)

    def loss(self, model: nn.Module, batch: WanBatch) -> dict[str, Tensor]:
        noisy = noised(batch.clean, batch.noise, batch.sigma)
        velocity = model(
            hidden_states=noisy.to(self.compute_dtype),
            timestep=(TIMESTEPS * batch.sigma).to(self.device),
            encoder_hidden_states=batch.text.to(self.compute_dtype),
            return_dict=False,
        )[0]
        target = batch.noise - batch.clean
        errors = F.mse_loss(velocity.float(), target, reduction="none").mean((1, 2, 3, 4))
        return {"loss": errors.mean(), **by_noise_level(errors.detach(), batch.sigma)}

    def sample_sheet(self) -> Image.Image:
        if self.sheet is None:
            raise ValueError("The base has no text encoder, and so there are no samples.")
        return self.sheet.sheet(self.transformer, self.device)

    def export(self, folder: Path) -> None:
        """Writes a transformer's folder, or an adapter's files, which loaders take as they are."""
        weights = whole_weights(self.model, trained=self.adapter is not None)
        if not weights:  # the main process has them
            return
        if self.adapter is not None:
            adapter = get_peft_model_state_dict(self.model, weights, ADAPTER)
            save_lora(folder, adapter, adapter_settings(self.adapter), len(self.blocks))
            return
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / WEIGHTS) as unfinished:
            save_file(weights, unfinished, {"format": "pt"})
        write_text(folder / "config.json", self.config)


def pad(text: Tensor, length: int) -> Tensor:
    """Embeddings n d → `length` d in float32: padding is zero, as Wan was trained."""
    return F.pad(text[:length].float(), (0, 0, 0, max(0, length - len(text))))


def adapter_settings(config: Any) -> dict[str, Any]:
    """peft's settings as plain values."""
    settings = json.loads(json.dumps(config.to_dict(), default=sorted))
    return {key: value for key, value in settings.items() if value is not None}
