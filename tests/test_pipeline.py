"""The pipeline: its sampling loop against a plain one, its outputs, and what it refuses."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from itertools import pairwise
from math import exp, inf, log, nan, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, FirstBlockCacheConfig, FlowMatchEulerDiscreteScheduler
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from tiny import tiny_pipeline, tiny_wan

from ultragen.model.coordinates import add_coordinates, with_coordinates
from ultragen.model.transformer import UltraGenTransformer3DModel
from ultragen.pipeline import UltraGenPipeline
from ultragen.sampling.flow import to_velocity
from ultragen.sampling.sampler import GenerationError
from ultragen.training.build import TINY_SIZE

SIZE = {"height": 96, "width": 128, "num_frames": 5}
RUN = {**SIZE, "prompt": "a calm lake", "windows": 2, "num_inference_steps": 3}


@pytest.fixture(scope="module")
def built() -> UltraGenPipeline:
    return tiny_pipeline()


@pytest.fixture
def pipe(built: UltraGenPipeline) -> UltraGenPipeline:
    return built


@pytest.fixture
def changeable(built: UltraGenPipeline) -> UltraGenPipeline:
    """A copy whose weights and configuration a test may change."""
    return copy.deepcopy(built)


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def latents_of(pipe: UltraGenPipeline, **changes) -> torch.Tensor:
    settings = {**RUN, "generator": seed(), "output_type": "latent", **changes}
    return pipe(**settings).frames


# The same seed, the same clip


@torch.no_grad()
def test_texts_that_are_encoded_already_make_the_same_clip(pipe):
    """The base model takes them too, which has the same text encoder."""
    given = {**RUN, "prompt": None}
    negative = "the sea"
    for guided in (True, False):
        positive, negatives = pipe.encode_prompt(RUN["prompt"], negative, guided)
        assert (negatives is not None) == guided
        embeds = {"prompt_embeds": positive, "negative_prompt_embeds": negatives}
        scale = {"guidance_scale": 3.0 if guided else 1.0}
        typed = {**RUN, **scale, "negative_prompt": negative}
        for one, extra in ((pipe, {}), (pipe.base_pipeline(), {"windows": None})):
            expected = latents_of(one, **{**typed, **extra})
            assert torch.equal(latents_of(one, **{**given, **scale, **embeds, **extra}), expected)
    only = {"prompt_embeds": pipe.encode_prompt(RUN["prompt"])[0]}
    typed = {"guidance_scale": 3.0, "negative_prompt": negative}
    expected = latents_of(pipe, **{**RUN, **typed})
    assert torch.equal(latents_of(pipe, **{**given, **typed, **only}), expected)


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"prompt_embeds": torch.zeros(1, 4, 8)}, "either prompt or prompt_embeds"),
        ({"prompt": None, "prompt_embeds": torch.zeros(4, 8)}, "prompt_embeds must be b × n × "),
        ({"negative_prompt_embeds": torch.zeros(1, 4, 1)}, "not 1 × 4 × 1"),
        ({"prompt": None}, "describe a scene"),
    ],
)
def test_encoded_texts_of_another_model_are_refused(pipe, change, hint):
    with pytest.raises(ValueError, match=hint):
        pipe(**{**RUN, **change})


def test_the_same_seed_gives_the_same_clip(pipe):
    first, second, other = (pipe(**RUN, generator=seed(n)).frames for n in (1, 1, 2))
    assert first.shape == (1, 5, 96, 128, 3)
    assert np.array_equal(first, second)
    assert not np.allclose(first, other, atol=1e-2)


def test_the_prompt_and_the_negative_prompt_steer(pipe):
    clips = [
        latents_of(pipe),
        latents_of(pipe, prompt="snowy mountains at sunset"),
        latents_of(pipe, negative_prompt="the sea"),
        latents_of(pipe, guidance_scale=2.0),
    ]
    for other in clips[1:]:
        assert (clips[0] - other).abs().max() > 1e-3


def test_a_batch_is_each_prompt_alone(pipe):
    prompts = ["a calm lake", "snowy mountains at sunset over the sea"]
    negatives = ["the sea", ""]
    together = latents_of(
        pipe, prompt=prompts, negative_prompt=negatives, generator=[seed(3), seed(4)]
    )
    for i, number in enumerate((3, 4)):
        alone = latents_of(
            pipe, prompt=prompts[i], negative_prompt=negatives[i], generator=seed(number)
        )
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("negative", ["", None, [""], ("",)], ids=repr)
def test_no_negative_prompt_is_an_empty_one(pipe, negative):
    assert torch.equal(latents_of(pipe, negative_prompt=negative), latents_of(pipe))


def test_latents_can_be_given(pipe):
    noise = torch.randn((1, TINY_SIZE.z_dim, 2, 6, 8), generator=seed())
    assert torch.equal(latents_of(pipe, latents=noise, generator=None), latents_of(pipe))


def test_the_dense_transformer_needs_no_windows(pipe):
    assert torch.equal(
        latents_of(pipe, windows=None, num_inference_steps=1),
        latents_of(pipe, windows="auto", num_inference_steps=1),
    )


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


# Outputs


def test_output_types_show_the_same_clip(pipe):
    np_, pt, uint8, latent = (
        pipe(**RUN, generator=seed(), output_type=kind).frames
        for kind in ("np", "pt", "uint8", "latent")
    )
    assert np_.shape == uint8.shape == (1, 5, 96, 128, 3)
    assert np_.dtype == np.float32 and uint8.dtype == np.uint8
    assert np_.min() >= 0 and np_.max() <= 1
    assert pt.shape == (1, 5, 3, 96, 128)
    np.testing.assert_array_equal(pt.permute(0, 1, 3, 4, 2).numpy(), np_)
    np.testing.assert_array_equal(uint8, (np_ * np.float32(255)).round().astype(np.uint8))
    assert latent.shape == (1, TINY_SIZE.z_dim, 2, 6, 8)
    np.testing.assert_array_equal(pipe.decode(latent), np_)


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_weights_that_are_not_numbers_give_an_error(changeable, part):
    broken = getattr(changeable, part)
    last = broken.proj_out if part == "transformer" else broken.decoder[-2]
    last.bias.fill_(nan)
    with pytest.raises(GenerationError, match=r"not finite\. .*seed"):
        changeable(**RUN, generator=seed())


@pytest.mark.parametrize("kind", ["np", "pt", "uint8"])
def test_a_black_clip_is_an_error(changeable, kind):
    changeable.vae.decoder[-2].weight.zero_()
    changeable.vae.decoder[-2].bias.fill_(-1)
    with pytest.raises(GenerationError, match="black"):
        changeable(**RUN, generator=seed(), output_type=kind)


@pytest.mark.parametrize("kind", ["np", "pt", "uint8"])
def test_a_dark_clip_is_none(changeable, kind):
    """A night is dark, too."""
    changeable.vae.decoder[-2].weight.zero_()
    changeable.vae.decoder[-2].bias.fill_(-1 + 2 * 8 / 255)
    frames = changeable(**RUN, generator=seed(), output_type=kind).frames
    assert frames.max() == pytest.approx(8 if kind == "uint8" else 8 / 255, abs=1e-4)


def test_a_stream_of_frames_keeps_no_gradients(changeable):
    changeable.vae.requires_grad_(True)
    latents = latents_of(changeable)
    pieces = list(changeable.decode_stream(latents))
    assert [piece.shape[2] for piece in pieces] == [1, 4]
    assert not any(piece.requires_grad for piece in pieces)


# Words


@pytest.mark.parametrize(
    "prompt, expected",
    [
        ("a calm lake", []),
        ("A Calm LAKE, at sunset.", []),
        ("a zorgon at a lake, a zorgon at Gniewkowo", ["zorgon", "gniewkowo"]),
        ("a lake\tat\nsunset!!!", []),
        ("", []),
        ("🙂 <b>lake</b>", ["b"]),
        ("ёлка", ["ёлка"]),
    ],
    ids=repr,
)
def test_unknown_words(pipe, prompt, expected):
    assert pipe.unknown_words(prompt) == expected


# The base model


def test_the_base_pipeline_shares_everything_but_the_transformer(pipe):
    base = pipe.base_pipeline()
    for name in ("tokenizer", "text_encoder", "vae"):
        assert getattr(base, name) is getattr(pipe, name)
    assert base.transformer is pipe.base_transformer
    assert base.scheduler is not pipe.scheduler
    assert base.scheduler.config == pipe.scheduler.config
    base.set_progress_bar_config(disable=True)
    run = {name: value for name, value in RUN.items() if name != "windows"}
    clip = base(**run, generator=seed()).frames
    assert clip.shape == (1, 5, 96, 128, 3)
    assert not np.allclose(clip, pipe(**RUN, generator=seed()).frames, atol=1e-2)
    with pytest.raises(ValueError, match="leave out `windows`"):
        base(**RUN)


def test_a_pipeline_without_base_model_says_so(changeable):
    changeable.register_modules(base_transformer=None)
    with pytest.raises(ValueError, match="base_transformer"):
        changeable.base_pipeline()


def test_the_same_pipeline_runs_wans_vae_and_transformer(pipe):
    """The parts of the 1.3B model, tiny: 8 × 8 pixels a latent, 2 × 2 latents a token."""
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )  # fmt: skip
    dense = tiny_wan(in_channels=16, out_channels=16, text_dim=TINY_SIZE.text_dim)
    native = UltraGenTransformer3DModel.from_wan(dense, lora_rank=2, gate_dim=4)
    for transformer, windows in ((dense, None), (native, 2)):
        wan = UltraGenPipeline(
            pipe.tokenizer, pipe.text_encoder, vae.eval(),
            FlowMatchEulerDiscreteScheduler(shift=5.0), transformer, max_sequence_length=16,
        )  # fmt: skip
        wan.set_progress_bar_config(disable=True)
        assert wan.pixels_per_token == 16
        frames = wan(
            "a lake", None, 64, 80, 5, windows=windows, num_inference_steps=2, generator=seed()
        ).frames
        assert frames.shape == (1, 5, 64, 80, 3)
        assert frames.std() > 0


# Settings that are refused


@pytest.mark.parametrize(
    "change, hint",
    [
        ({"prompt": ""}, "describe a scene"),
        ({"prompt": " \n\t"}, "describe a scene"),
        ({"prompt": []}, "describe a scene"),
        ({"prompt": ["a lake", ""]}, "describe a scene"),
        ({"prompt": None}, "describe a scene"),
        ({"prompt": 3}, "describe a scene"),
        ({"height": 100}, "height must be a multiple of 32, not 100: choose 96 or 128"),
        ({"width": 8}, "width must be a multiple of 32, not 8: choose 32 or 64"),
        ({"width": 0}, "choose 32 or 64"),
        ({"height": -32}, "choose 32 or 64"),
        ({"height": 96.5}, "height must be"),
        ({"width": "128"}, "width must be"),
        ({"num_frames": 18}, "4n + 1, not 18: choose 17 or 21"),
        ({"num_frames": 0}, "choose 1 or 5"),
        ({"num_frames": -3}, "choose 1 or 5"),
        ({"num_frames": "5"}, "num_frames must be"),
        ({"windows": 3}, "Choose 2 or 4"),
        ({"windows": 4}, "even number up to 2"),
        ({"windows": "many"}, "'auto'"),
        ({"height": 64}, "at least 3 × 3 tokens"),
        ({"height": 64, "windows": "auto"}, "at least 3 × 3 tokens"),
        ({"num_inference_steps": 0}, "at least 1, not 0"),
        ({"num_inference_steps": -5}, "at least 1, not -5"),
        ({"num_inference_steps": 2.5}, "num_inference_steps must be"),
        ({"guidance_scale": nan}, "from 0 to 100, not nan"),
        ({"guidance_scale": -1.0}, "from 0 to 100, not -1.0"),
        ({"guidance_scale": 1e9}, "from 0 to 100"),
        ({"guidance_scale": "5"}, "from 0 to 100"),
        ({"guidance_interval": (0.5, 0.5)}, "from 0 to 1, not (0.5, 0.5): (0, 1) guides every"),
        ({"guidance_interval": (0.9, 0.1)}, "not (0.9, 0.1)"),
        ({"guidance_interval": (-0.1, 0.5)}, "not (-0.1, 0.5)"),
        ({"guidance_interval": (0.2, 80)}, "not (0.2, 80)"),
        ({"guidance_interval": (0.0, nan)}, "not (0.0, nan)"),
        ({"guidance_interval": (0.0,)}, "not (0.0,)"),
        ({"guidance_interval": ("0", "1")}, "not ('0', '1')"),
        ({"guidance_interval": None}, "not None"),
        ({"negative_prompt": ["a", "b"]}, "1 prompts need as many negative prompts, not 2"),
        ({"generator": [seed(), seed()]}, "1 clips need as many generators, not 2"),
        ({"latents": torch.zeros(1, 8, 2, 6, 6)}, "1 × 8 × 2 × 6 × 8"),
        ({"callback_on_step_end_tensor_inputs": ("noise",)}, "'latents', 'prompt_embeds'"),
        ({"output_type": "gif"}, "('np', 'pil', 'pt', 'uint8', 'latent'): 'gif'"),
    ],
    ids=lambda value: None if isinstance(value, str) else ",".join(map(str, value)),
)
def test_wrong_settings_are_refused_before_any_work(pipe, change, hint):
    ran = []
    hook = pipe.transformer.register_forward_hook(lambda *_: ran.append(1))
    try:
        with pytest.raises(ValueError) as error:
            pipe(**{**RUN, **change}, callback_on_step_end=lambda *_: {})
    finally:
        hook.remove()
    assert hint in str(error.value)
    assert not ran


# What diffusers offers


def test_saving_and_loading(pipe, tmp_path):
    pipe.save_pretrained(tmp_path, max_shard_size="500KB")
    loaded = UltraGenPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.transformer) is UltraGenTransformer3DModel
    assert loaded.config.max_sequence_length == TINY_SIZE.text_length
    assert loaded.vae.config.latents_mean == pipe.vae.config.latents_mean
    assert loaded.unknown_words("a calm zorgon") == ["zorgon"]
    expected, found = (p(**RUN, generator=seed()).frames for p in (pipe, loaded))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    expected, found = (
        p.base_pipeline()(**{**RUN, "windows": None}, generator=seed()).frames
        for p in (pipe, loaded)
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.fixture
def cached(changeable: UltraGenPipeline) -> Iterator[UltraGenPipeline]:
    yield changeable
    changeable.transformer.disable_cache()


def test_a_cache_that_never_answers_changes_nothing(cached):
    expected = latents_of(cached)
    cached.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    assert torch.equal(latents_of(cached), expected)


def test_a_cache_that_always_answers_skips_the_later_blocks(cached):
    expected, calls = latents_of(cached), []
    cached.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    cached.transformer.blocks[1].attn1.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(2):
        found = latents_of(cached)
        # The first step of each run, with and without the prompt.
        assert len(calls) == 2
        calls.clear()
    assert not torch.allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize("end", ["frames", "latent", "interrupt", "error"])
def test_a_cache_does_not_outlive_its_run(cached, end):
    """However a run ends, the next one, of another size, does not meet its leftovers."""
    cached.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))

    def stop(pipeline, *_):
        if end == "error":
            raise KeyboardInterrupt
        pipeline.interrupt = end == "interrupt"

    try:
        cached(**RUN, callback_on_step_end=stop, output_type="latent" if end == "latent" else "np")
    except KeyboardInterrupt:
        assert end == "error"
    other = {**RUN, "width": 160}
    assert cached(**other, generator=seed()).frames.shape == (1, 5, 96, 160, 3)


def test_a_lora_is_saved_and_loaded(pipe, changeable, tmp_path):
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    changeable.transformer.add_adapter(
        LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights=False)
    )
    expected = latents_of(changeable)
    adapter = get_peft_model_state_dict(changeable.transformer)
    # The compressed branches' own updates are part of the model, not of the adapter.
    assert not any(".branches." in name for name in adapter)
    UltraGenPipeline.save_lora_weights(tmp_path, transformer_lora_layers=adapter)
    fresh = copy.deepcopy(pipe)
    plain = latents_of(fresh)
    fresh.load_lora_weights(tmp_path, adapter_name="style")
    assert fresh.get_list_adapters() == {"transformer": ["style"]}
    torch.testing.assert_close(latents_of(fresh), expected, rtol=1e-4, atol=1e-4)
    assert (expected - plain).abs().max() > 1e-2
    fresh.set_adapters("style", 0.0)
    torch.testing.assert_close(latents_of(fresh), plain, rtol=1e-4, atol=1e-4)
    fresh.unload_lora_weights()
    assert torch.equal(latents_of(fresh), plain)


def test_a_lora_of_the_original_names_is_loaded(changeable):
    """Published LoRAs of Wan name its parts as the authors did."""
    a, b = torch.randn(2, 64, generator=seed()), torch.randn(64, 2, generator=seed(1))
    key = "diffusion_model.blocks.{}.{}.lora_{}.weight"
    names = [f"{part}.{x}" for part in ("self_attn", "cross_attn") for x in "qkvo"]
    lora = {
        key.format(i, name, side): value.clone()
        for i in range(TINY_SIZE.layers)
        for name in names
        for side, value in (("A", a), ("B", b))
    }
    plain = latents_of(changeable)
    changeable.load_lora_weights(lora)
    adapted = changeable.transformer.blocks[1].attn1.to_q.lora_A["default_0"].weight
    assert torch.equal(adapted, a)
    assert (latents_of(changeable) - plain).abs().max() > 1e-2


# Folders


@pytest.fixture(scope="module")
def saved(built, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    built.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("part", ["text_encoder", "vae", "transformer", "base_transformer"])
@pytest.mark.parametrize("damage", ["missing", "unexpected", "misshapen"])
def test_a_part_that_lacks_a_weight_is_refused(part, damage, saved, tmp_path):
    """Loaders alone would make one up, or stumble over it much later."""
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    [path] = (tmp_path / part).glob("*.safetensors")
    weights = load_file(path)
    name = next(key for key in sorted(weights) if weights[key].ndim > 1)
    if damage == "missing":
        del weights[name]
    elif damage == "unexpected":
        name = "stranger.weight"
        weights[name] = torch.zeros(1)
    else:
        weights[name] = weights[name][:-1].contiguous()
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{part} does not fit its config.json: {damage}") as error:
        UltraGenPipeline.from_pretrained(tmp_path)
    assert name in str(error.value)
    given = {part: getattr(UltraGenPipeline.from_pretrained(saved), part)}
    assert UltraGenPipeline.from_pretrained(tmp_path, **given)  # it is not taken from there


def test_memory_that_runs_out_says_what_takes_less(changeable, monkeypatch):
    def full(*arguments, **options):
        raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(changeable.transformer, "forward", full)
    says = r"for 5 frames of 96 × 128: .* pipe\.enable_model_cpu_offload\(\)\. .* 20 GiB"
    with pytest.raises(torch.OutOfMemoryError, match=says):
        changeable(**RUN)
