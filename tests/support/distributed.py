"""One of several processes that train a toy together, and then a stage by its command;
`test_processes.py` starts them.

Writes to OUT/RANK.json what this process ended the toy with; the stage fills OUT/stage.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from commands import ultragen
from PIL import Image
from torch import Tensor, nn

from ultragen.training.loop import Trainer
from ultragen.training.stage import Stage, TrainingConfig


class Slope(Stage):
    """y = wx with x = 1 in the first process and 2 in the second: gradients of 1 and 2."""

    def __init__(self, rank: int) -> None:
        self.model = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.model.weight, 5.0 + rank)
        self.x = torch.tensor([[1.0 + rank]])

    def batch(self, step: int) -> Tensor:
        return self.x

    def loss(self, model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        return {"loss": model(batch.to(model.weight.device)).sum()}

    def sample_sheet(self) -> Image.Image:
        return Image.new("RGB", (8, 8))

    def export(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)


def main() -> None:
    out, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    stage = Slope(rank)
    trainer = Trainer(stage, TrainingConfig(out=out / "run", max_steps=3, max_grad_norm=1e9))
    result = {"start": stage.model.weight.item(), "gradients": []}
    trainer.optimizer.optimizer.register_step_pre_hook(
        lambda *_: result["gradients"].append(stage.model.weight.grad.item())
    )
    trainer.train()
    result |= {"processes": trainer.accelerator.num_processes, "end": stage.model.weight.item()}
    (out / f"{rank}.json").write_text(json.dumps(result))
    stage = ("autoencoder", "--tiny", "--max-steps", "2", "--out", out / "stage")
    sys.exit(ultragen("train", *stage))


if __name__ == "__main__":
    main()
