"""A small clip gives a large one its composition: enlarged exactly, noised, and fewer steps."""

from __future__ import annotations

import copy
from threading import Event

import pytest
import torch
from fakes import fake_models
from tiny import tiny_pipeline

from ultragen.estimates import cost
from ultragen.estimates.coefficients import CPU
from ultragen.model.autoencoder import CompactAutoencoder
from ultragen.pipeline import UltraGenPipeline
from ultragen.presets import EMBEDDED, RESOLUTIONS, T3_4K, WAN, steps_taken
from ultragen.runs.clip import Composition, composition_of, encode_text, job, make_clip
from ultragen.runs.progress import Cancelled, RunState
from ultragen.runs.request import Request
from ultragen.sampling.composition import composed, enlarged
from ultragen.sampling.flow import noised
from ultragen.sampling.spectral_noise import spectral_noise

LARGE, SMALL = (160, 192), (96, 128)
FIRST = Composition(SMALL, 0.2)
CALL = {"prompt": "a calm lake", "num_frames": 5, "output_type": "latent"}


@pytest.fixture(scope="module")
def built() -> UltraGenPipeline:
    return tiny_pipeline()


@pytest.fixture
def pipe(built: UltraGenPipeline) -> UltraGenPipeline:
    return copy.deepcopy(built)


def sampled(pipe: UltraGenPipeline, size: tuple[int, int], steps: int = 8, **more) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    sides = {"height": size[0], "width": size[1], "num_inference_steps": steps}
    return pipe(**CALL, **sides, generator=generator, noise="spectral", **more).frames


# Enlarging


def test_what_is_even_stays_as_it_is_and_waves_become_longer():
    even = torch.full((1, 2, 3, 5, 6), 0.7)
    assert torch.allclose(enlarged(even, 11, 24), torch.tensor(0.7), atol=1e-6)
    place = torch.arange(6, dtype=torch.float32)
    wave = torch.cos(torch.pi * 2 * (place + 0.5) / 6).expand(1, 1, 1, 5, 6)
    long = torch.cos(torch.pi * 2 * (torch.arange(24) + 0.5) / 24).expand(1, 1, 1, 5, 24)
    assert torch.allclose(enlarged(wave, 5, 24), long, atol=1e-5)
    assert torch.allclose(enlarged(wave, 5, 6), wave, atol=1e-6)


def test_noise_of_one_spectrum_becomes_the_low_frequencies_of_the_larger_one():
    """Four times as loud, because so much more of it is averaged away."""
    small, large = (spectral_noise(7, (2, 1, 8 * n, 8 * n))[None] for n in (1, 4))
    back = enlarged(small, 32, 32) / 4
    assert ((large - back) * back).mean().abs() < 1e-3 * back.square().mean()


@pytest.mark.parametrize("size", [(4, 16), (16, 5)])
def test_a_larger_one_is_no_composition(size):
    with pytest.raises(ValueError, match="6 × 6 positions, more than the clip's"):
        enlarged(torch.zeros(1, 1, 1, 6, 6), *size)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (1, 3, 2, 4, 4), (1, 4, 3, 4, 4), (2, 3, 3, 4, 4)])
def test_other_latents_are_refused_with_what_is_needed(shape):
    with pytest.raises(ValueError, match=r"3 × 3 × 3 × rows × columns, not \d"):
        composed(torch.zeros(shape), torch.zeros(3, 3, 3, 8, 8), torch.tensor(0.9))


def test_one_composition_is_for_all_clips():
    noise = torch.randn(3, 2, 1, 8, 8)
    found = composed(torch.ones(1, 2, 1, 4, 4), noise, torch.tensor(0.25))
    assert torch.allclose(found, 0.75 + 0.25 * noise, atol=1e-5)


# Steps


def test_some_steps_are_left_out():
    assert [steps_taken(n) for n in (1, 2, 5, 8, 30, 100)] == [1, 1, 3, 5, 19, 62]
    assert steps_taken(8, 1) == 8


@pytest.mark.parametrize("strength", [0, -0.5, 1.01, float("nan"), "half", None])
def test_no_such_part_of_the_steps(strength):
    with pytest.raises(ValueError, match="strength must be above 0 and up to 1"):
        steps_taken(8, strength)


@pytest.mark.parametrize("solver", ["own", "euler", "unipc"])
def test_the_last_steps_are_taken_from_the_composition_in_noise(pipe, solver):
    """As by hand: the steps that a whole run would take from these latents on."""
    pipe = pipe.with_sampling(solver, 3.0)
    small, levels = sampled(pipe, SMALL), []

    def after_step(pipe, step, timestep, tensors):
        levels.append(float(timestep))
        return {}

    found = sampled(pipe, LARGE, composition=small, callback_on_step_end=after_step)
    timesteps, sigmas = pipe.prepare_schedule(8, LARGE[0] // 32 * (LARGE[1] // 32), small.device)
    assert levels == timesteps[3:].tolist()
    key = int(torch.randint(2**63 - 1, (), generator=torch.Generator().manual_seed(3)))
    vae: CompactAutoencoder = pipe.vae
    rows, columns = (side // vae.config.scale_factor_spatial for side in LARGE)
    noise = spectral_noise(key, (small.shape[1], small.shape[2], rows, columns))[None]
    start = noised(enlarged(small, rows, columns), noise, sigmas[3].reshape(1))
    starts: list[torch.Tensor] = []
    plain = type(pipe).denoise
    pipe.denoise = lambda latents, *given: starts.append(latents) or plain(pipe, latents, *given)
    assert torch.equal(sampled(pipe, LARGE, composition=small), found)
    assert torch.allclose(starts[0], start, atol=1e-5)
    del pipe.denoise
    # The next run has its whole schedule again.
    assert sampled(pipe, LARGE).shape == found.shape and len(pipe.scheduler.timesteps) == 8


def test_at_full_noise_a_composition_says_nothing(pipe):
    small, plain = sampled(pipe, SMALL), sampled(pipe, LARGE)
    assert torch.equal(sampled(pipe, LARGE, composition=small, strength=1.0), plain)
    found, other = (sampled(pipe, LARGE, composition=each) for each in (small, -small))
    assert not torch.equal(found, other) and not torch.equal(found, plain)


# Runs


def run_of(pipe: UltraGenPipeline, first=None, stop_after: int | None = None, **settings):
    """A clip's frames, and what was told of its steps."""
    given = {"num_inference_steps": 8, "num_frames": 5, **settings}
    request = Request("a calm lake", **given).validate(EMBEDDED)
    told: list[tuple[int, int]] = []
    parts: list[float] = []
    cancelled = Event()

    def report(progress) -> None:
        if progress.stage == "denoise":
            told.append((progress.step, progress.steps))
            parts.append(progress.fraction)
            if len(told) == stop_after:
                cancelled.set()

    run = RunState(report, cancelled, {"denoise": 1.0, "decode": 1.0})
    text = encode_text(run, pipe, [request])
    frames = make_clip(run, pipe, request, text, LARGE, "", {"windows": 2}, first=first)
    share = first.share if first else 0.0  # denoising is half of the estimate
    assert parts[8 if first else 0] == pytest.approx(share / 2) and parts[-1] == 0.5
    assert parts == sorted(parts)
    return frames, told


@pytest.mark.parametrize("settings", [{}, {"cache": "taylor-2", "guidance_scale": 3.0}])
def test_a_run_makes_the_small_clip_first_and_counts_the_large_ones_steps(pipe, settings):
    plain, told = run_of(pipe, **settings)
    assert [step for step, _ in told] == list(range(9))
    progressive, told = run_of(pipe, FIRST, **settings)
    # The small clip's eight steps, then its own five.
    assert told == [(n, 13) for n in range(14)]
    assert progressive.shape == plain.shape and (progressive != plain).any()
    assert (run_of(pipe, FIRST, **settings)[0] == progressive).all()
    assert (run_of(pipe, **settings)[0] == plain).all()


@pytest.mark.parametrize("stop_after", [3, 12])
def test_a_run_stops_within_a_step_of_either_clip(pipe, stop_after):
    with pytest.raises(Cancelled):
        run_of(pipe, FIRST, stop_after)


# Requests


@pytest.mark.parametrize(
    ("preset", "resolution", "asked", "kept", "first"),
    [
        (EMBEDDED, "544p", "auto", "auto", None),
        (EMBEDDED, "544p", "on", "on", None),
        (EMBEDDED, "1080p", "auto", "auto", None),
        (EMBEDDED, "1080p", "off", "off", None),
        (EMBEDDED, "1080p", "on", "on", "544p"),
        (EMBEDDED, "2k", "auto", "auto", "544p"),
        (EMBEDDED, "4k", " ON ", "on", "544p"),
        (EMBEDDED, "4k", "off", "off", None),
        (WAN, "4k", "auto", "auto", None),
        (WAN, "4k", "off", "auto", None),
        (WAN, "1080p", "on", "on", None),
        (WAN, "4k", "on", "on", "1080p"),
        (T3_4K, "4k", "on", "on", None),
    ],
)
def test_large_frames_of_the_embedded_model_begin_small(preset, resolution, asked, kept, first):
    """What was asked for is kept, for another size that may be chosen later."""
    request = Request("a lake", resolution, progressive=asked).validate(preset)
    assert request.progressive == kept
    assert request.first_size(preset) == (RESOLUTIONS[first] if first else None)
    assert request.validate(preset) == request


@pytest.mark.parametrize("aspect", ["9:16", "1:1", "4:3", "21:9"])
@pytest.mark.parametrize("resolution", ["720p", "1080p", "2k", "4k"])
def test_the_small_clip_has_the_large_ones_shape(aspect, resolution):
    request = Request("a lake", resolution, aspect=aspect, progressive="on").validate(EMBEDDED)
    first, size = request.first_size(EMBEDDED), request.size
    assert first.height <= size.height and first.width <= size.width
    assert first.width / first.height == pytest.approx(size.width / size.height, rel=0.05)


def test_an_estimate_counts_both_clips():
    models = fake_models()
    small, plain, progressive = (
        job(Request("a lake", name, progressive=asked, **steps).validate(EMBEDDED), models)
        for name, asked, steps in (
            ("544p", "off", {"num_inference_steps": 8}),
            ("4k", "off", {"num_inference_steps": 8}),
            ("4k", "on", {"num_inference_steps": 8}),
        )
    )
    first, whole, both = (cost.estimate(each, CPU) for each in (small, plain, progressive))
    assert both["denoise"] == pytest.approx(5 / 8 * whole["denoise"] + first["denoise"])
    assert {**both, "denoise": 0} == {**whole, "denoise": 0}
    assert 0.6 < both["denoise"] / whole["denoise"] < 0.75
    request = Request("a lake", "4k", num_inference_steps=8, aspect="9:16").validate(EMBEDDED)
    found = composition_of(request, models)
    assert found.size == (960, 544) and 0.05 < found.share < 0.15


def test_a_clip_of_one_step_has_no_composition():
    """It would start at full noise, where a composition says nothing."""
    request = Request("a lake", "4k", num_inference_steps=1).validate(EMBEDDED)
    assert request.first_size(EMBEDDED) is None
    assert composition_of(request, fake_models()) is None


def test_a_cache_must_leave_something_out_of_the_steps_that_are_taken():
    words = "leaves nothing out of 5 steps, .* choose off, or 9 steps or more"
    with pytest.raises(ValueError, match=words):
        Request("a lake", "4k", num_inference_steps=8, cache="taylor-2").validate(EMBEDDED)
    Request("a lake", "4k", num_inference_steps=9, cache="taylor-2").validate(EMBEDDED)
    Request("a lake", num_inference_steps=8, cache="taylor-2").validate(EMBEDDED)


def test_guidance_is_counted_in_the_steps_that_are_taken():
    models = fake_models()
    given = {"num_inference_steps": 8, "guidance_scale": 3.0, "progressive": "on"}
    whole = job(Request("a lake", "4k", **given).validate(EMBEDDED), models)
    assert (whole.steps, whole.passes, whole.base_forwards) == (5, 2, 16)
    high = Request("a lake", "4k", guidance_interval="0.99-1", **given).validate(EMBEDDED)
    assert job(high, models).passes == 1  # all of them are left out
