"""An adversary for the autoencoder: it tells decoded clips from rendered ones."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.distributed import ReduceOp, all_reduce
from torch.nn import functional as F

FRAMES = 3  # seen together, so that flicker and streaks give a clip away
PERTURBATION = 0.02  # of the penalty's finite differences, where pictures span [-1, 1]
WARMUP = 500  # steps over which its loss grows, while it learns what to look for


class CriticNetwork(nn.Module):
    """Patches of three neighbouring frames → a score for each place, high where they look real.

    Without normalisation, as the autoencoder: a patch is judged by itself.

    Args:
        channels: Widths at 1/2, 1/4 and 1/8 of the size.
    """

    def __init__(self, channels: tuple[int, ...] = (64, 128, 256)) -> None:
        super().__init__()
        widths = (3 * FRAMES, *channels)
        self.stages = nn.ModuleList(
            nn.Conv2d(before, after, 4, stride=2, padding=1) for before, after in pairwise(widths)
        )
        self.middle = nn.Conv2d(channels[-1], channels[-1], 3, padding=1)
        self.head = nn.Conv2d(channels[-1], 1, 3, padding=1)

    def forward(self, video: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Clips b 3 t h w, t a multiple of `FRAMES` → scores n 1 h/8 w/8, and the features on the
        way."""
        hidden = rearrange(video, "b c (g t) h w -> (b g) (t c) h w", t=FRAMES)
        features = []
        for convolution in (*self.stages, self.middle):
            hidden = F.leaky_relu(convolution(hidden), 0.2)
            features.append(hidden)
        return self.head(hidden), features


class Adversary:
    """The critic with its optimiser: learns beside the autoencoder and gives it a loss.

    Relativistic losses (arXiv 1807.00734) on pairs of a clip and its reconstruction. The critic is
    kept smooth around both by the squared change of its scores under a small perturbation, the
    finite-difference form of the gradient penalties of arXiv 2501.05441.

    Args:
        channels: Widths of the critic.
        learning_rate: Learning rate of the critic's AdamW.
        penalty: Weight of the critic's smoothness in its loss.
    """

    def __init__(
        self,
        channels: tuple[int, ...] = (64, 128, 256),
        learning_rate: float = 3e-4,
        penalty: float = 50.0,
    ) -> None:
        self.network = CriticNetwork(channels)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=learning_rate, betas=(0.5, 0.99), weight_decay=0.0
        )
        self.penalty = penalty
        self.steps = 0

    def to(self, device: torch.device) -> None:
        self.network.to(device)
        nn.utils.convert_conv2d_weight_memory_format(self.network, torch.channels_last)
        # Loading puts the optimiser's state where the parameters are now.
        self.optimizer.load_state_dict(self.optimizer.state_dict())

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]

    @property
    def strength(self) -> float:
        """How far the critic's loss has grown, from 0 to 1."""
        return min(1.0, self.steps / WARMUP)

    def learn(self, real: Tensor, decoded: Tensor) -> Tensor:
        """One step of the critic on clips b 3 t h w in [-1, 1]; returns how often it is right."""
        self.network.requires_grad_(True)
        decoded = decoded.detach()
        true, false = self.network(real)[0].float(), self.network(decoded)[0].float()
        smooth = [
            (self.network(x + PERTURBATION * torch.randn_like(x))[0].float() - scores).square()
            for x, scores in ((real, true), (decoded, false))
        ]
        loss = F.softplus(false - true).mean() + self.penalty * (smooth[0] + smooth[1]).mean()
        loss.backward()
        _average(self.network)
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.network.requires_grad_(False)
        self.steps += 1
        return (true > false).float().mean()

    def loss(self, real: Tensor, decoded: Tensor) -> Tensor:
        """What the autoencoder minimises: to look real, with features like the real clip's."""
        with torch.no_grad():
            true, features = self.network(real)
        false, found = self.network(decoded)
        matching = [
            (a.float() - b.float()).abs().mean() / a.float().abs().mean()
            for a, b in zip(features, found, strict=True)
        ]
        return F.softplus(true.float() - false.float()).mean() + torch.stack(matching).mean()


def balance(loss: Tensor, other: Tensor, picture: Tensor) -> Tensor:
    """The factor that makes `other` pull at the picture as strongly as `loss` does, a scalar."""
    pulls = [
        torch.autograd.grad(term, picture, retain_graph=True)[0].float().norm()
        for term in (loss, other)
    ]
    return (pulls[0] / pulls[1].clamp(min=1e-12)).detach()


def _average(network: nn.Module) -> None:
    """Gradients of one mean over all processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for parameter in network.parameters():
            if parameter.grad is not None:
                all_reduce(parameter.grad, ReduceOp.AVG)
