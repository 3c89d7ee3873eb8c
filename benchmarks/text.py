"""What can be read from the text encoder's output, attribute by attribute.

    python benchmarks/text.py
    python benchmarks/text.py --model runs/next/pipeline

A probe for each attribute, one head of attention over the tokens as a transformer might have it, is
trained on the outputs for captions of training scenes and asked about those of held-out ones. What
a probe can't tell, a transformer has to make out by itself. Values are counted where the caption
names them; the side of the sun or moon also apart where the camera pans, because both speak of left
and right.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer

from ultragen.cli import console
from ultragen.model.text_encoder import ClauseTextEncoder
from ultragen.presets import EMBEDDED_MODEL
from ultragen.training.data import tokenize
from ultragen.world.captions import caption
from ultragen.world.heldout import EVALUATED, named_attributes
from ultragen.world.scene import ALLOWED, HELD_OUT_SEEDS, sample_scene

NAMES = tuple(ALLOWED)
UNNAMED = -100  # what cross-entropy leaves out
SIDE, CAMERA = NAMES.index("celestial_side"), NAMES.index("camera")
PANS = [ALLOWED["camera"].index(value) for value in ("pan left", "pan right")]


class Probe(nn.Module):
    """A head of attention for each attribute."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, len(NAMES))
        self.values = nn.ModuleList(nn.Linear(width, len(ALLOWED[name])) for name in NAMES)

    def forward(self, text: Tensor, there: Tensor) -> list[Tensor]:
        """Outputs b n d and which tokens are there, b n → logits b values of each attribute."""
        text = self.norm(text)
        weights = self.query(text).masked_fill(~there[..., None], -torch.inf).softmax(1)
        read = torch.einsum("b n k, b n d -> k b d", weights, text)
        return [value(x) for value, x in zip(self.values, read, strict=True)]


def captions(first: int, number: int) -> tuple[list[str], Tensor]:
    """Captions of scenes, and the number of each value that they name, b attributes."""
    texts, numbers = [], []
    for seed in range(first, first + number):
        scene = sample_scene(seed)
        texts.append(caption(scene, seed))
        named = named_attributes(scene.attributes, texts[-1])
        numbers.append([ALLOWED[x].index(named[x]) if x in named else UNNAMED for x in NAMES])
    return texts, torch.tensor(numbers)


@torch.no_grad()
def encode(folder: Path, texts: list[str]) -> tuple[Tensor, Tensor]:
    """The encoder's outputs b n d, and which tokens are there, b n."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    encoder = ClauseTextEncoder.from_pretrained(folder / "text_encoder").float().eval()
    ids = tokenize(tokenizer, texts)
    ids = ids[:, : int((ids != 0).sum(1).max())]
    parts = [encoder(x, (x != 0).long()).last_hidden_state for x in ids.split(250)]
    return torch.cat(parts), ids != 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", type=Path, default=EMBEDDED_MODEL)
    parser.add_argument("--captions", type=int, default=6000)
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()
    console.quiet_libraries()
    torch.manual_seed(0)
    texts, numbers = captions(HELD_OUT_SEEDS.stop, options.captions)
    others, expected = captions(EVALUATED.start, max(2, options.captions // 4))
    text, there = encode(options.model, [*texts, *others])
    probe = Probe(text.shape[2])
    optimizer = torch.optim.Adam(probe.parameters(), 5e-3)
    for _ in range(options.steps):
        chosen = torch.randint(len(texts), (256,))
        losses = [
            functional.cross_entropy(x, y, ignore_index=UNNAMED, reduction="sum")
            for x, y in zip(probe(text[chosen], there[chosen]), numbers[chosen].t(), strict=True)
        ]
        optimizer.zero_grad()
        (sum(losses) / 256).backward()
        optimizer.step()
    with torch.no_grad():
        logits = probe(text[len(texts) :], there[len(texts) :])
    told = torch.stack([x.argmax(1) for x in logits], dim=1)
    right, named = told == expected, expected != UNNAMED
    pans = torch.isin(expected[:, CAMERA], torch.tensor(PANS))
    shown = {name: (right[:, i], named[:, i]) for i, name in enumerate(NAMES)}
    for label, where in (("the camera pans", pans), ("it does not", ~pans)):
        shown[f"celestial_side, {label}"] = (right[:, SIDE], named[:, SIDE] & where)
    for label, (hits, where) in shown.items():
        number = int(where.sum())
        share = f"{100 * hits[where].float().mean():5.1f} %" if number else "–"
        print(f"{label:32} {share} of {number}")


if __name__ == "__main__":
    main()
