"""What all trainings of the 1.3B model share: its velocity, samples, what is exported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ...files import whole_file, write_text
from ...model.transformer import UltraGenTransformer3DModel
from ...weights.lora_saving import save_lora
from ..sharding import whole_weights
from ..stage import Stage
from ..trained_parts import ADAPTER
from .wan_samples import WanSamples

TIMESTEPS = 1000
WEIGHTS = "diffusion_pytorch_model.safetensors"


class WanTransformerStage(Stage):
    """A stage that trains the 1.3B model's transformer, or an adapter for it.

    Args:
        transformer: With what is trained marked, see `choose_trained`.
        batch_size: Clips of a batch in each process.
        seed: What everything that is drawn follows.
        samples: What sample sheets show; None for none.
        fingerprint: What tells the data from others.
        settings: What can't change while the training goes on, for people.
    """

    def __init__(
        self,
        transformer: UltraGenTransformer3DModel,
        batch_size: int,
        seed: int,
        samples: WanSamples | None,
        fingerprint: str,
        settings: Mapping[str, str],
    ) -> None:
        self.model = self.transformer = transformer.train()
        self.blocks = tuple(transformer.blocks)
        self.samples_per_batch, self.seed = batch_size, seed
        self.sheet = samples
        self.device, self.rank = torch.device("cpu"), 0
        self.fingerprint, self.settings = fingerprint, settings
        # Sharding gives the model's class another name, which the file must not have.
        self.config = transformer.to_json_string()
        self.adapter: Any = getattr(transformer, "peft_config", {}).get(ADAPTER)

    def setup(self, device: torch.device, rank: int, world: int) -> None:
        self.device, self.rank = device, rank

    def velocity(self, model: nn.Module, noisy: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
        """The model's velocity at noise levels b, b c t h w in float32."""
        return model(
            hidden_states=noisy.to(self.compute_dtype),
            timestep=(TIMESTEPS * sigma).to(self.device),
            encoder_hidden_states=text.to(self.compute_dtype),
            return_dict=False,
        )[0].float()

    def tokens_of(self, latents: Tensor) -> int:
        """Tokens of latents b c t h w."""
        _, patch_rows, patch_columns = self.transformer.config.patch_size
        return len(latents) * latents[0, 0].numel() // (patch_rows * patch_columns)

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
