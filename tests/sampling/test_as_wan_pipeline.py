"""Scripts that were written for diffusers' `WanPipeline` run with the class name changed."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
)
from diffusers.callbacks import PipelineCallback
from peft import LoraConfig
from PIL import Image
from tiny import tiny_pipeline, tiny_wan

from ultragen.pipeline import UltraGenPipeline
from ultragen.sampling.solvers import check_scheduler
from ultragen.training.build import TINY_SIZE
from ultragen.video import probe_video

RUN = {
    "prompt": "a calm lake",
    "height": 96,
    "width": 128,
    "num_frames": 5,
    "num_inference_steps": 3,
    "guidance_scale": 3.0,
}
# The documented example, with the size of tiny models.
SCRIPT = """
import torch
from diffusers.utils import export_to_video
from {module} import WanPipeline

pipe = WanPipeline.from_pretrained(model_id, torch_dtype=torch.float32)
pipe.set_progress_bar_config(disable=True)
pipe.to("cpu")

prompt = "a calm lake at sunset"
negative_prompt = "the sea"

output = pipe(
    prompt=prompt,
    negative_prompt=negative_prompt,
    height=96,
    width=128,
    num_frames=5,
    num_inference_steps=2,
    guidance_scale=5.0,
    generator=torch.Generator().manual_seed(0),
).frames[0]
export_to_video(output, target, fps=16)
"""


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def unipc(**options) -> UniPCMultistepScheduler:
    settings = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    return UniPCMultistepScheduler(**{**settings, **options})


@pytest.fixture(scope="module")
def built() -> UltraGenPipeline:
    return tiny_pipeline()


@pytest.fixture
def pipe(built: UltraGenPipeline) -> UltraGenPipeline:
    return copy.deepcopy(built)


@pytest.fixture(scope="module")
def both(built: UltraGenPipeline) -> tuple[WanPipeline, UltraGenPipeline]:
    """diffusers' pipeline and ours, of the same tiny parts of Wan."""
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True],
    ).eval()  # fmt: skip
    parts = {
        "tokenizer": built.tokenizer,
        "text_encoder": built.text_encoder,
        "vae": vae,
        "scheduler": unipc(),
        "transformer": tiny_wan(in_channels=16, out_channels=16, text_dim=TINY_SIZE.text_dim),
    }
    wan = WanPipeline(**parts)
    ours = UltraGenPipeline(**{**parts, "scheduler": unipc()}, max_sequence_length=512)
    for each in (wan, ours):
        each.set_progress_bar_config(disable=True)
    return wan, ours


# The same script


def test_the_documented_script_runs_with_another_class(both, built, tmp_path):
    """The same text, but for the class's name and where it comes from."""
    both[0].save_pretrained(tmp_path / "wan")
    built.save_pretrained(tmp_path / "ours")
    theirs = SCRIPT.format(module="diffusers")
    ours = SCRIPT.format(module="ultragen").replace("WanPipeline", "UltraGenPipeline")
    found = {}
    for name, script in (("wan", theirs), ("ours", ours)):
        target = tmp_path / f"{name}.mp4"
        given = {"model_id": tmp_path / name, "target": str(target)}
        exec(script, given)
        info = probe_video(target)
        found[name] = (type(given["output"]), given["output"].dtype, given["output"].shape), info
    assert found["wan"] == found["ours"]
    assert (found["ours"][1].height, found["ours"][1].width) == (96, 128)


@pytest.mark.parametrize("method", ["__call__", "encode_prompt", "check_inputs", "prepare_latents"])
def test_wans_arguments_come_first_and_in_its_order(method):
    theirs = list(inspect.signature(getattr(WanPipeline, method)).parameters)
    ours = inspect.signature(getattr(UltraGenPipeline, method)).parameters
    assert list(ours)[: len(theirs)] == theirs
    further = [ours[name] for name in list(ours)[len(theirs) :]]
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in further)


def test_what_wan_calls_without_an_argument_we_do():
    for method in ("__call__", "encode_prompt", "check_inputs", "prepare_latents"):
        theirs = inspect.signature(getattr(WanPipeline, method)).parameters
        ours = inspect.signature(getattr(UltraGenPipeline, method)).parameters
        for name, parameter in theirs.items():
            if parameter.default is not inspect.Parameter.empty:
                assert ours[name].default is not inspect.Parameter.empty, (method, name)


def test_wans_properties_are_there():
    theirs = {n for n, v in vars(WanPipeline).items() if isinstance(v, property)}
    ours = {n for n in dir(UltraGenPipeline) if isinstance(getattr(UltraGenPipeline, n), property)}
    assert theirs <= ours and "guidance_scale" in theirs


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_the_same_parts_and_seed_give_wans_clip(both, guidance_scale):
    """With Wan's own scheduler, whose steps are taken as it takes them."""
    run = {**RUN, "num_inference_steps": 4, "guidance_scale": guidance_scale}
    run["negative_prompt"] = "the sea"
    for kind in ("latent", "pt", "np"):
        expected, found = (each(**run, generator=seed(), output_type=kind).frames for each in both)
        assert found.shape == expected.shape and type(found) is type(expected)
        torch.testing.assert_close(*map(torch.as_tensor, (found, expected)), rtol=1e-4, atol=1e-4)


def test_texts_are_encoded_as_wan_does(both):
    arguments = (["a calm lake", "the sea"], "at sunset", True, 2, None, None, 20)
    expected, found = (each.encode_prompt(*arguments) for each in both)
    for theirs, ours in zip(expected, found, strict=True):
        assert ours.shape == (4, 20, TINY_SIZE.text_dim)
        torch.testing.assert_close(ours, theirs)


def test_noise_is_drawn_as_wan_does(both):
    sizes = {"height": 64, "width": 96, "num_frames": 9}
    expected, found = (
        each.prepare_latents(2, 16, **sizes, device=torch.device("cpu"), generator=seed())
        for each in both
    )
    assert torch.equal(found, expected)


# Each argument


def test_a_model_has_a_size_of_its_own(pipe, both):
    assert pipe.default_size == (544, 960, 17)
    assert pipe.base_pipeline().default_size == (288, 512, 17)
    wan, ours = both
    defaults = inspect.signature(wan.__call__).parameters
    assert ours.default_size == tuple(
        defaults[name].default for name in ("height", "width", "num_frames")
    )
    text = {**RUN, "num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "latent"}
    del text["height"], text["num_frames"]
    assert pipe(**text).frames.shape == (1, TINY_SIZE.z_dim, 5, 34, 8)
    pipe.vae.register_to_config(scale_factor_spatial=64)
    with pytest.raises(ValueError, match="give height, width and num_frames"):
        pipe("a lake")


def test_positional_arguments_of_before_are_refused(pipe):
    with pytest.raises(ValueError, match=r"not 96: .* prompt, negative_prompt, height"):
        pipe("a lake", 96, 128, 5)


def test_pictures(pipe):
    run = {**RUN, "prompt": ["a calm lake", "the sea"]}
    pictures = pipe(**run, generator=seed(), output_type="pil").frames
    expected = pipe(**run, generator=seed(), output_type="uint8").frames
    assert [len(clip) for clip in pictures] == [5, 5]
    assert all(isinstance(picture, Image.Image) for clip in pictures for picture in clip)
    np.testing.assert_array_equal([[np.asarray(p) for p in clip] for clip in pictures], expected)


def test_a_tuple_is_given_where_it_is_asked_for(pipe):
    run = {**RUN, "output_type": "latent"}
    (frames,) = pipe(**run, generator=seed(), return_dict=False)
    assert torch.equal(frames, pipe(**run, generator=seed()).frames)


@pytest.mark.parametrize("encoded", [False, True])
def test_several_clips_of_each_prompt(pipe, encoded):
    run = {**RUN, "prompt": ["a calm lake", "the sea"], "output_type": "latent"}
    text = {}
    if encoded:
        text = dict(zip(("prompt_embeds", "negative_prompt_embeds"),
                        pipe.encode_prompt(run["prompt"]), strict=True))  # fmt: skip
        run["prompt"] = None
    seeds = [seed(number) for number in range(4)]
    found = pipe(**run, **text, num_videos_per_prompt=2, generator=seeds).frames
    assert len(found) == 4
    for place, prompt in enumerate(("a calm lake", "a calm lake", "the sea", "the sea")):
        alone = pipe(**{**run, "prompt": prompt}, generator=seed(place)).frames
        torch.testing.assert_close(found[place : place + 1], alone, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="4 clips need as many generators, not 2"):
        pipe(**run, **text, num_videos_per_prompt=2, generator=seeds[:2])


def test_the_text_has_the_length_that_is_asked_for(pipe):
    seen = []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["encoder_hidden_states"].shape[1]),
        with_kwargs=True,
    )
    for length in (None, 3):
        pipe(**RUN, output_type="latent", max_sequence_length=length)
    assert set(seen[:6]) == {TINY_SIZE.text_length} and set(seen[6:]) == {3}


def test_attention_kwargs_reach_the_transformer(pipe):
    def latents(**changes) -> torch.Tensor:
        return pipe(**RUN, generator=seed(), output_type="latent", **changes).frames

    plain = latents()
    pipe.transformer.add_adapter(
        LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    )
    adapted = latents()
    assert not torch.allclose(adapted, plain, atol=1e-3)
    torch.testing.assert_close(latents(attention_kwargs={"scale": 0.0}), plain)
    assert pipe.attention_kwargs == {"scale": 0.0}
    assert torch.equal(latents(attention_kwargs={"scale": 1.0}), adapted)
    for scale in (float("nan"), 1e9):
        with pytest.raises(ValueError, match="scale must be a number from -10 to 10"):
            latents(attention_kwargs={"scale": scale})
    for given, says in (({"scael": 1.0}, "has 'scael', .* there is scale"), ([1], "a dictionary")):
        with pytest.raises(ValueError, match=says):
            latents(attention_kwargs=given)


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"guidance_scale_2": 3.0}, "Wan 2.2's second transformer, .* leave out 3.0"),
        ({"num_videos_per_prompt": 0}, "num_videos_per_prompt must be at least 1, not 0"),
        ({"num_videos_per_prompt": None}, "must be a whole number, not None"),
        ({"max_sequence_length": 0}, "max_sequence_length must be at least 1, not 0"),
        ({"negative_prompt": 3}, "a text or a list of texts, not 3"),
    ],
)
def test_what_is_refused(pipe, change, hint):
    with pytest.raises(ValueError, match=hint):
        pipe(**{**RUN, **change})


# During a run


def test_the_properties_say_what_runs(pipe):
    seen = []

    def look(pipeline, step, timestep, tensors):
        seen.append(
            (
                pipeline.guidance_scale,
                pipeline.do_classifier_free_guidance,
                pipeline.num_timesteps,
                pipeline.current_timestep == pytest.approx(timestep.item()),
                pipeline.interrupt,
            )
        )

    pipe(**RUN, output_type="latent", callback_on_step_end=look)
    assert seen == [(3.0, True, 3, True, False)] * 3
    assert pipe.current_timestep is None
    pipe(**{**RUN, "guidance_scale": 1.0}, output_type="latent", callback_on_step_end=look)
    assert seen[-1] == (1.0, False, 3, True, False)


class EndGuidance(PipelineCallback):
    """As those of diffusers, which change the pipeline's private scale."""

    tensor_inputs = ["prompt_embeds"]  # noqa: RUF012 - as there

    def callback_fn(self, pipeline, step_index, timesteps, callback_kwargs):
        assert set(callback_kwargs) == {"prompt_embeds"}
        pipeline._guidance_scale = 0.0
        return callback_kwargs


def test_a_callback_of_diffusers_ends_the_guidance(pipe):
    calls = []
    pipe.transformer.register_forward_hook(lambda *_: calls.append(1))
    pipe(**RUN, output_type="latent", callback_on_step_end=EndGuidance())
    assert len(calls) == 2 + 1 + 1


# A scheduler that is swapped


def test_another_shift_is_used(pipe):
    def latents(scheduler) -> torch.Tensor:
        pipe.scheduler = scheduler
        return pipe(**RUN, generator=seed(), output_type="latent").frames

    one, other = (latents(FlowMatchEulerDiscreteScheduler(shift=s)) for s in (1.0, 7.0))
    assert not torch.allclose(one, other, atol=1e-3)


def test_wans_scheduler_is_used_with_both_predictions(pipe):
    """Many steps of either solver end at the same clip; the base model takes it over."""
    noise = torch.randn((1, TINY_SIZE.z_dim, 2, 6, 8), generator=seed())
    run = {**RUN, "num_inference_steps": 40, "latents": noise, "output_type": "latent"}
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    expected = pipe(**run).frames
    pipe.scheduler = unipc()
    found = pipe(**run).frames
    assert not torch.equal(found, expected)
    assert (found - expected).norm() < 0.05 * expected.norm()
    base = pipe.base_pipeline()
    assert isinstance(base.scheduler, UniPCMultistepScheduler)


def test_a_pipeline_with_wans_scheduler_is_saved_and_loaded(pipe, tmp_path):
    pipe.scheduler = unipc()
    pipe.save_pretrained(tmp_path)
    loaded = UltraGenPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    found, expected = (
        each(**RUN, generator=seed(), output_type="latent").frames for each in (loaded, pipe)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("scheduler", "hint"),
    [
        (FlowMatchHeunDiscreteScheduler(), "with a FlowMatchHeun.*FlowMatchEulerDiscreteScheduler"),
        (DDIMScheduler(), "with a DDIMScheduler: take FlowMatchEuler"),
        (UniPCMultistepScheduler(), 'prediction_type="flow_prediction", use_flow_sigmas=True'),
        (unipc(use_dynamic_shifting=True), "use_dynamic_shifting=False"),
        (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "stochastic_sampling"),
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else None,
)
def test_a_scheduler_that_can_not_be_used_is_refused(pipe, scheduler, hint):
    pipe.scheduler = scheduler
    with pytest.raises(ValueError, match=hint) as error:
        pipe(**RUN)
    assert "\n" not in str(error.value)


def test_the_way_out_of_a_wrong_scheduler_is_one(pipe):
    """The documented line, on a pipeline whose scheduler is not UniPC already."""
    config = pipe.scheduler.config
    with pytest.raises(ValueError, match="not set for flow matching"):
        check_scheduler(UniPCMultistepScheduler.from_config(config, flow_shift=5.0))
    check_scheduler(unipc())
    check_scheduler(FlowMatchEulerDiscreteScheduler(shift=5.0))


def test_wans_folder_is_loaded_in_another_way(both, tmp_path: Path):
    both[0].save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="from_wan"):
        UltraGenPipeline.from_pretrained(tmp_path)
