"""The pipeline: what steers a clip, its outputs, and what it refuses."""

from __future__ import annotations

import warnings
from math import nan

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from pipelines import RUN, latents_of, seed
from tiny import tiny_wan

from ultragen.model.transformer import UltraGenTransformer3DModel
from ultragen.pipeline import UltraGenPipeline
from ultragen.sampling.sampler import GenerationError
from ultragen.training.build import TINY_SIZE

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


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("text_encoder", r"text encoder's output is not finite\. .*weights"),
        ("transformer", r"transformer's output is not finite\. .*seed"),
        ("vae", r"autoencoder's frames are not finite\. .*seed"),
    ],
)
def test_weights_that_are_not_numbers_give_an_error_that_names_the_part(changeable, part, says):
    broken = getattr(changeable, part)
    last = {
        "text_encoder": lambda: list(broken.parameters())[-1],
        "transformer": lambda: broken.proj_out.bias,
        "vae": lambda: broken.decoder[-2].bias,
    }[part]()
    last.data.fill_(nan)
    with pytest.raises(GenerationError, match=says):
        changeable(**RUN, generator=seed())


@pytest.mark.parametrize("kind", ["np", "pt", "uint8"])
def test_a_black_clip_is_an_error(changeable, kind):
    changeable.vae.decoder[-2].weight.zero_()
    changeable.vae.decoder[-2].bias.fill_(-1)
    with pytest.raises(GenerationError, match="autoencoder's frames are all black"):
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
        ({"windows": 3}, "choose an even number up to 2"),
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


# Nothing is passed over


@pytest.mark.parametrize("option", [{"negative_prompt": "x"}, {"guidance_interval": (0.2, 1.0)}])
def test_options_without_effect_are_named(pipe, option):
    run = {**RUN, "num_inference_steps": 1, "output_type": "latent", "generator": seed()}
    with pytest.warns(UserWarning, match=r"no effect: guidance is off, guidance_scale=1\."):
        pipe(**{**run, "guidance_scale": 1.0, **option})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe(**{**run, "guidance_scale": 3.0, **option})


@pytest.mark.parametrize(("words", "number"), [(12, "1[0-9]"), (900, r"16 or more")])
def test_a_prompt_that_is_cut_is_named(pipe, words, number):
    with pytest.warns(UserWarning, match=f"has {number} tokens, and the model reads the first 8:"):
        pipe.encode_prompt("lake " * words, None, False, max_sequence_length=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.encode_prompt("a lake", None, False, max_sequence_length=8)
