"""The sampling loop against a plain one, and what its settings mean."""

from __future__ import annotations

from itertools import pairwise
from math import exp, inf, log, sqrt

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from pipelines import RUN, latents_of, seed
from tiny import tiny_wan

from ultragen.model.coordinates import add_coordinates, with_coordinates
from ultragen.pipeline import UltraGenPipeline
from ultragen.sampling.flow import to_velocity
from ultragen.training.build import TINY_SIZE

# The loop


def embed(pipe: UltraGenPipeline, words: str) -> torch.Tensor:
    ids = pipe.tokenizer(words).input_ids
    text = torch.zeros(1, TINY_SIZE.text_length, TINY_SIZE.text_dim)
    hidden = pipe.text_encoder(torch.tensor([ids])).last_hidden_state
    text[:, : len(ids)] = hidden
    return text


def located(latents: torch.Tensor) -> torch.Tensor:
    """Latents and the middle of each one's place on the axes t, h, w, which reach from -1 to 1."""
    axes = [torch.linspace(-1 + 1 / n, 1 - 1 / n, n) for n in latents.shape[2:]]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return torch.cat([latents, places.expand(len(latents), -1, -1, -1, -1)], dim=1)


def clean_latents(output, noisy: torch.Tensor, sigma: float) -> torch.Tensor:
    """c_skip of Karras et al., table 1, for signal 1 − σ; their c_out over d."""
    d = TINY_SIZE.data_std
    scale, noise = 1 - sigma, sigma / (1 - sigma) if sigma < 1 else inf
    if noise == inf:  # x_1 is noise alone, and says nothing
        return output
    skip = d**2 / (d**2 + noise**2)
    out = noise / (d**2 + noise**2) ** 0.5  # of unit size where there is no signal
    return skip * noisy / scale + out * output


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("height, width", [(96, 128), (160, 96)])
def test_the_loop_is_the_second_order_solver(pipe, steps, guidance, height, width):
    """DPM-Solver++(2M) as in its paper, with λ = log((1 − σ)/σ); noise levels u shifted by s^u,
    where s grows with the square root of the tokens in a frame."""
    rows, columns = height // 32, width // 32
    shift = TINY_SIZE.base_shift * sqrt(
        rows * columns / (TINY_SIZE.base_tokens[0] * TINY_SIZE.base_tokens[1])
    )
    even = [1 - i / steps for i in range(steps)] + [0.0]
    sigmas = [shift**u * u / (1 + (shift**u - 1) * u) for u in even]
    positive, negative = embed(pipe, "a calm lake"), embed(pipe, "the sea")
    x = torch.randn((1, TINY_SIZE.z_dim, 2, 2 * rows, 2 * columns), generator=seed(5))
    ratios, data = [], []
    for sigma, following in pairwise(sigmas):
        towards, away = (
            clean_latents(
                pipe.transformer(located(x), torch.tensor([1000 * sigma]), text, windows=2).sample,
                x,
                sigma,
            )
            for text in (positive, negative)
        )
        data.append(away + guidance * (towards - away) if guidance > 1 else towards)
        ratios.append(log((1 - sigma) / sigma) if sigma < 1 else -inf)
        expected = data[-1]
        if following > 0:
            h = log((1 - following) / following) - ratios[-1]
            if len(data) > 1:
                r = (ratios[-1] - ratios[-2]) / h
                expected = (1 + 1 / (2 * r)) * data[-1] - 1 / (2 * r) * data[-2]
            x = following / sigma * x - (1 - following) * (exp(-h) - 1) * expected
        else:
            x = expected

    run = {**RUN, "height": height, "width": width, "num_inference_steps": steps}
    run |= {"guidance_scale": guidance, "negative_prompt": "the sea"}
    latents = pipe(**run, generator=seed(5), output_type="latent").frames
    torch.testing.assert_close(latents, x, rtol=1e-3, atol=1e-3 * x.abs().max().item())

    frames = pipe(**run, generator=seed(5)).frames
    config = pipe.vae.config
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1)
        for values in (config.latents_mean, config.latents_std)
    )
    video = (pipe.vae.decode(latents * std + mean).sample / 2 + 0.5).clamp(0, 1)
    np.testing.assert_allclose(frames, video.permute(0, 2, 3, 4, 1).numpy(), atol=1e-5)


def test_latents_get_coordinates_only_where_a_transformer_has_channels_for_them():
    latents = torch.randn(2, 8, 2, 3, 5)
    assert with_coordinates(latents, 8) is latents
    torch.testing.assert_close(with_coordinates(latents, 11), located(latents))
    with pytest.raises(ValueError, match=r"9 input channels does not fit latents of 8.*11"):
        with_coordinates(latents, 9)


def test_a_transformer_that_gets_coordinates_draws_as_before():
    transformer = tiny_wan()
    channels = transformer.config.in_channels
    x, text = torch.randn(1, channels, 2, 4, 4), torch.randn(1, 3, transformer.config.text_dim)
    before = transformer(x, torch.tensor([500.0]), text).sample
    for _ in range(2):  # once more changes nothing
        add_coordinates(transformer)
        assert transformer.config.in_channels == channels + 3
    after = transformer(with_coordinates(x, channels + 3), torch.tensor([500.0]), text).sample
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize("steps, shift", [(30, 5.0), (4, 3.0), (1, 5.0)])
def test_a_fixed_shift_spaces_the_steps_as_wan_does(changeable, steps, shift):
    changeable.scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    timesteps, sigmas = changeable.prepare_schedule(steps, 2040, torch.device("cpu"))
    even = 1 - torch.arange(steps + 1).double() / steps
    expected = shift * even / (1 + (shift - 1) * even)
    torch.testing.assert_close(sigmas.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(timesteps.double(), 1000 * expected[:-1], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("tokens, expected", [(144, 12.0), (144 * 4, 24.0), (144 * 16, 48.0)])
def test_the_shift_doubles_with_the_side_of_the_frame_and_falls_with_the_noise(
    pipe, tokens, expected
):
    _, sigmas = pipe.prepare_schedule(2, tokens, torch.device("cpu"))
    half = sqrt(expected)  # s^u at u = ½
    assert sigmas[1].item() == pytest.approx(half * 0.5 / (1 + (half - 1) * 0.5), rel=1e-5)
    assert pipe.scheduler.config.base_shift == pytest.approx(log(12.0))


# What the output means


@pytest.mark.parametrize("sigma", [1e-4, 0.02, 0.3, 0.5, 0.9, 0.999])
def test_a_preconditioned_output_stands_for_clean_latents(sigma):
    output, noisy = torch.randn(2, 3, 4, 2, 2, 2).double()
    velocity = to_velocity(output, noisy, torch.full((3,), sigma), "preconditioned", 0.5)
    expected = (noisy - clean_latents(output, noisy, sigma)) / sigma
    # The expected values themselves are differences of nearly equal numbers at little noise.
    torch.testing.assert_close(velocity.double(), expected, rtol=1e-3, atol=1e-3)


def test_a_velocity_is_taken_as_it_is():
    output, noisy = torch.randn(2, 3, 4, 2, 2, 2)
    assert torch.equal(to_velocity(output, noisy, torch.rand(3), "velocity", 0.5), output)


@pytest.mark.parametrize("sigma", [0.02, 0.3, 0.7, 1.0])
def test_noise_levels_differ_within_a_batch(sigma):
    output, noisy = torch.randn(2, 2, 4, 2, 2, 2)
    both = to_velocity(output, noisy, torch.tensor([sigma, 0.5]), "preconditioned", 0.5)
    one = to_velocity(output[:1], noisy[:1], torch.tensor(sigma), "preconditioned", 0.5)
    torch.testing.assert_close(both[:1], one)


@pytest.mark.parametrize("guidance, passes", [(1.0, 1), (3.0, 2)])
def test_windows_move_in_every_second_step(changeable, guidance, passes):
    """In both passes of a guided step; the dense base model has none."""
    pipe, seen = changeable, []
    at_rest = latents_of(pipe, guidance_scale=guidance)
    pipe.register_to_config(window_motion="alternate")

    def look(module, args, kwargs):
        seen.append(kwargs.get("moved"))

    hook = pipe.transformer.register_forward_pre_hook(look, with_kwargs=True)
    moving = latents_of(pipe, guidance_scale=guidance)
    assert seen == [moved for moved in (False, True, False) for _ in range(passes)]
    assert not torch.allclose(moving, at_rest, atol=1e-3)
    pipe.register_to_config(window_motion="none")
    assert torch.equal(latents_of(pipe, guidance_scale=guidance), at_rest)
    assert seen[-1] is None
    hook.remove()
    base = pipe.base_pipeline()
    assert latents_of(base, windows=None).isfinite().all()


@pytest.mark.parametrize(
    "setting, hint",
    [
        ({"prediction": "noise"}, "prediction"),
        ({"solver_order": 3}, "1 or 2"),
        ({"window_motion": "swim"}, "'none', 'alternate'"),
    ],
)
def test_unknown_settings_of_the_sampler_are_refused(pipe, setting, hint):
    with pytest.raises(ValueError, match=hint):
        UltraGenPipeline(**pipe.components, **setting)


def test_the_sampler_s_settings_are_kept(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    for loaded in (UltraGenPipeline.from_pretrained(tmp_path), pipe.base_pipeline()):
        assert loaded.config.prediction == "preconditioned" and loaded.config.solver_order == 2
    loaded = UltraGenPipeline.from_pretrained(tmp_path, window_motion="alternate")
    assert loaded.config.window_motion == "alternate"


@pytest.mark.parametrize("guidance, calls", [(0.0, 3), (1.0, 3), (1.01, 6), (5.0, 6)])
def test_guidance_costs_a_second_pass_only_above_one(pipe, guidance, calls):
    seen = []
    hook = pipe.transformer.register_forward_hook(lambda *_: seen.append(1))
    latents_of(pipe, guidance_scale=guidance)
    hook.remove()
    assert len(seen) == calls


def test_padding_is_zero_and_long_prompts_are_cut(pipe):
    [short, long], [empty, _] = pipe.encode_prompt(["a calm lake", "lake " * 500], "")
    assert short[:4].abs().amax(-1).min() > 0 and not short[4:].any()
    assert empty[:1].any() and not empty[1:].any()
    assert long.shape == (TINY_SIZE.text_length, TINY_SIZE.text_dim)
    assert long.abs().amax(-1).min() > 0


# Callback


def test_the_callback_sees_and_changes_the_latents(pipe):
    steps, times = [], []

    def zero(pipeline, step, timestep, tensors):
        assert pipeline is pipe
        assert set(tensors) == {"latents", "prompt_embeds"}
        steps.append(step)
        times.append(timestep.item())
        return {"latents": torch.zeros_like(tensors["latents"]), "note": "of no matter"}

    names = ("latents", "prompt_embeds")
    latents = latents_of(pipe, callback_on_step_end=zero, callback_on_step_end_tensor_inputs=names)
    assert steps == [0, 1, 2]
    assert times[0] == 1000 and times == sorted(times, reverse=True)
    assert not latents.any()


def test_a_callback_may_return_nothing(pipe):
    assert torch.equal(latents_of(pipe, callback_on_step_end=lambda *_: None), latents_of(pipe))


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("name", ["interrupt", "_interrupt"])
def test_interrupt_skips_the_steps_that_are_left(pipe, last, name):
    seen, kept = [], []

    def stop(pipeline, step, timestep, tensors):
        seen.append(step)
        kept.append(tensors["latents"])
        setattr(pipeline, name, step == last)
        return {}

    latents = latents_of(pipe, callback_on_step_end=stop)
    assert seen == list(range(last + 1))
    assert torch.equal(latents, kept[-1])
    # As in diffusers, the clip is decoded as far as it came.
    frames = pipe(**RUN, generator=seed(), callback_on_step_end=stop).frames
    np.testing.assert_array_equal(frames, pipe.decode(latents))
    # The next run is a whole one.
    assert pipe(**RUN, generator=seed()).frames.shape == (1, 5, 96, 128, 3)
