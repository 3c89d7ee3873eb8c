"""The released weights compute what the authors' code does, against a float64 reference."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from released_files import error
from released_reference import Sizes, released_forward, released_weights
from torch import Tensor

from ultragen.model.transformer import UltraGenTransformer3DModel
from ultragen.training.build import TINY_SIZE, build_pipeline
from ultragen.weights.released import load_released


def inputs(grid: tuple[int, int, int], seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, timesteps that bfloat16 does not hold, and text."""
    generator = torch.Generator().manual_seed(seed)
    t, h, w = grid
    latents = torch.randn((2, 4, t, 2 * h, 2 * w), generator=generator)
    text = torch.randn((2, 7, Sizes().text), generator=generator)
    return latents, torch.tensor([993.2, 431.7]), text


@torch.no_grad()
def run(model: WanTransformer3DModel, arguments: tuple[Tensor, Tensor, Tensor], **extra) -> Tensor:
    return model(*arguments, **extra).sample


GRIDS = [
    pytest.param((2, 12, 20), 4, id="whole"),
    pytest.param((2, 8, 12), 4, id="every axis resized, to more and to fewer"),
    pytest.param((1, 16, 28), 4, id="local up, hierarchical both ways"),
    pytest.param((1, 12, 28), 8, id="a tie goes down"),
    pytest.param((1, 17, 30), 4, id="a quarter of 1080p, which 4 does not divide"),
    pytest.param((1, 7, 9), 2, id="odd"),
]


@pytest.mark.parametrize("grid, windows", GRIDS)
def test_the_forward_is_the_authors(model, weights, grid, windows):
    arguments = inputs(grid)
    expected = released_forward(weights, *arguments, windows)
    assert error(run(model, arguments, windows=windows), expected) < 1e-5


@pytest.mark.slow
def test_the_forward_is_the_authors_at_1080p_proportions():
    """Half of 68 × 120, in a layer of every kind."""
    weights = released_weights(Sizes(dim=128, layers=3, full=(0,)))
    arguments = inputs((1, 34, 60))
    found = run(load_released(weights), arguments, windows=4)
    assert error(found, released_forward(weights, *arguments)) < 1e-5


def error_in_bfloat16(size: Sizes, grid: tuple[int, int, int], windows: int) -> float:
    """Of weights and inputs that are so rounded, against float64 on the same."""
    weights = released_weights(size, dtype=torch.bfloat16)
    model = load_released(weights)
    assert model.dtype == torch.bfloat16
    latents, time, text = inputs(grid)
    arguments = (latents.bfloat16(), time, text.bfloat16())
    expected = released_forward(weights, *arguments, windows)
    return error(run(model, arguments, windows=windows), expected)


@pytest.mark.parametrize("grid, windows", GRIDS)
def test_in_bfloat16_too(grid, windows):
    assert error_in_bfloat16(Sizes(), grid, windows) < 2e-2


@pytest.mark.parametrize(
    "layers, full", [(1, ()), (2, (0,)), (2, ())], ids=["even layer", "odd layer", "both"]
)
@pytest.mark.parametrize("grid", [(1, 7, 9), (2, 5, 8), (3, 9, 6)], ids=str)
def test_layers_of_both_kinds_in_bfloat16_on_odd_grids(layers, full, grid):
    size = Sizes(dim=128, ffn=32, rank=2, layers=layers, full=full)
    assert error_in_bfloat16(size, grid, windows=2) < 2e-2


@pytest.mark.parametrize(
    "quirk",
    [
        {"global_keys_from": "key"},
        {"uneven": "split"},
        {"timestep_dtype": "float32"},
        {"crossing": "none"},
    ],
    ids=str,
)
def test_every_quirk_matters(model, weights, quirk):
    """Or else the comparison above would not tell whether it is kept."""
    other = UltraGenTransformer3DModel.from_config({**model.config, **quirk})
    other.load_state_dict(model.state_dict())
    arguments = inputs((2, 8, 12))
    expected = released_forward(weights, *arguments)
    assert error(run(other, arguments, windows=4), expected) > 3e-4


def test_an_unknown_precision_is_refused(small):
    config = {**load_released(small).config, "timestep_dtype": "float8"}
    with pytest.raises(ValueError, match=r"timestep_dtype must be float32 or bfloat16.*float8"):
        UltraGenTransformer3DModel.from_config(config)


@pytest.mark.parametrize("part", ["alpha_time_projection.1", "alpha_time_projection2.1"])
def test_the_gates_weigh_the_finer_side(weights, part):
    """Open gates leave the local branch alone, whatever the coarse ones hold."""
    opened = {
        key: torch.full_like(value, 50.0)
        if "alpha_time_projection" in key and key.endswith("bias")
        else value
        for key, value in weights.items()
    }
    arguments = inputs((1, 8, 12))
    local = run(load_released(opened), arguments, windows=4)
    branch = "_hierachcal" if part.endswith("2.1") else ""
    for key in opened:
        if f"upsample_conv{branch}." in key:
            opened[key] = opened[key] + 1
    torch.testing.assert_close(run(load_released(opened), arguments, windows=4), local)
    for key in opened:
        if key.endswith(f"{part}.bias"):
            opened[key] = -opened[key]
    assert error(run(load_released(opened), arguments, windows=4), local) > 1e-2


@torch.no_grad()
def test_the_pipeline_samples_as_the_authors_do():
    """σ_i = 1 − i/30 shifted by 5, Euler, guidance 5; prompts cleaned, 512 tokens, padding zero."""
    torch.manual_seed(0)
    pipe = build_pipeline(TINY_SIZE, ("a", "calm", "lake", "the", "sea", "&", "sky"))
    size = Sizes(dim=128, ffn=32, text=TINY_SIZE.text_dim, channels=TINY_SIZE.z_dim, layers=2)
    weights = released_weights(Sizes(**{**size.__dict__, "full": (0,)}))
    pipe.transformer = load_released(weights)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    pipe.register_to_config(max_sequence_length=512, prediction="velocity", solver_order=1)
    pipe.tokenizer.model_max_length = 512
    pipe.set_progress_bar_config(disable=True)
    pipe.text_encoder.eval()

    def embed(words: str) -> Tensor:
        ids = torch.tensor([pipe.tokenizer(words).input_ids])
        hidden = pipe.text_encoder(ids).last_hidden_state
        return torch.cat([hidden, hidden.new_zeros(1, 512 - ids.shape[1], hidden.shape[2])], dim=1)

    sigmas = [1 - i / 30 for i in range(30)]
    sigmas = [5 * s / (1 + 4 * s) for s in sigmas] + [0.0]
    noise = torch.randn((1, TINY_SIZE.z_dim, 1, 8, 10), generator=torch.Generator().manual_seed(2))
    x, positive, negative = noise.double(), embed("a calm lake & sky"), embed("the sea")
    for sigma, following in pairwise(sigmas):
        time = torch.tensor([1000 * sigma])
        towards, away = (
            released_forward(weights, x, time, text, windows=2) for text in (positive, negative)
        )
        x = x + (following - sigma) * (away + 5 * (towards - away))

    found = pipe(
        "  a calm  lake &amp;amp; sky\n",
        negative_prompt="the sea",
        height=128,
        width=160,
        num_frames=1,
        windows=2,
        num_inference_steps=30,
        guidance_scale=5.0,
        latents=noise,
        output_type="latent",
    ).frames
    assert error(found, x) < 1e-3
