"""Bad input: a message with the values and the way out."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ultragen.presets import EMBEDDED, FAST, RESOLUTIONS, T3_4K, WAN
from ultragen.runs.request import MAX_SEED, Request, check_fast

PROMPT = "a calm lake"


def check(**settings) -> Request:
    return Request(**{"prompt": PROMPT, **settings}).validate(EMBEDDED)


def test_defaults_are_the_models():
    request = check()
    assert request.num_inference_steps == EMBEDDED.num_inference_steps
    assert request.guidance_scale == EMBEDDED.guidance_scale
    assert request.negative_prompt == EMBEDDED.negative_prompt
    assert request.windows == "auto"
    assert request.validate(EMBEDDED) == request


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prompt": ""}, ["empty", "describe"]),
        ({"prompt": " \n\t "}, ["empty"]),
        ({"prompt": "\u200b\u200d"}, ["empty"]),
        ({"prompt": None}, ["prompt", "text"]),
        ({"prompt": 7}, ["prompt", "7"]),
        ({"prompt": "x" * 10_000}, ["10,000", "2,000", "8,000"]),
        ({"prompt": "a\x00b"}, ["U+0000", "position 2"]),
        ({"prompt": "a \x1b[31m lake"}, ["U+001B"]),
        ({"prompt": "\ud800"}, ["lone surrogate U+D800"]),
        ({"upscaler": "u" * 300}, ["'uuu", "network, lanczos"]),
        ({"upscaler": "\ud800"}, ["ud800", "network, lanczos"]),
        ({"seed": 10**5000}, ["more than 4,300 digits", "from 0"]),
        ({"seed": "9" * 5000}, ["'999", "whole number"]),
        ({"num_frames": 10**5000}, ["more than 4,300 digits", "from 1"]),
        ({"guidance_scale": 10**5000}, ["more than 4,300 digits", "from 0"]),
        ({"windows": 10**5000}, ["more than 4,300 digits", "up to 16"]),
        ({"windows": -(10**5000)}, ["more than 4,300 digits", "Choose 2"]),
        ({"windows": "9" * 5000}, ["windows '999", "auto"]),
        ({"windows": 101}, ["windows 101", "up to 16"]),
        ({"negative_prompt": "y" * 2001}, ["negative_prompt", "2,001"]),
        ({"negative_prompt": ["a"]}, ["negative_prompt", "text"]),
        ({"resolution": "999p"}, ["999p", "544p, 720p, 1080p, 2k, 4k"]),
        ({"resolution": 544}, ["544", "720p"]),
        ({"num_frames": 18}, ["18", "17 or 21", "33"]),
        ({"num_frames": 32}, ["29 or 33"]),
        ({"num_frames": 0}, ["0", "1"]),
        ({"num_frames": -3}, ["-3", "1"]),
        ({"num_frames": 37}, ["37", "33"]),
        ({"num_frames": 17.5}, ["17.5", "whole"]),
        ({"num_frames": "17"}, ["'17'", "whole"]),
        ({"num_frames": True}, ["True", "whole"]),
        ({"windows": 3}, ["3", "2", "4"]),
        ({"windows": "5"}, ["5", "4", "6"]),
        ({"windows": 0}, ["0", "2"]),
        ({"windows": 64}, ["17 × 30", "16"]),
        ({"windows": "many"}, ["many", "auto"]),
        ({"windows": None}, ["None", "auto"]),
        ({"windows": 2.5}, ["2.5", "auto"]),
        ({"num_inference_steps": 0}, ["0", "1", "100"]),
        ({"num_inference_steps": 10_000}, ["10000", "100"]),
        ({"num_inference_steps": "ten"}, ["'ten'"]),
        ({"guidance_scale": float("nan")}, ["nan", "0 to 100", "1 switches it off"]),
        ({"guidance_scale": float("inf")}, ["inf"]),
        ({"guidance_scale": -1}, ["-1"]),
        ({"guidance_scale": 1e9}, ["1000000000", "100"]),
        ({"guidance_scale": "3"}, ["'3'"]),
        ({"seed": -1}, ["-1", "0"]),
        ({"seed": MAX_SEED + 1}, ["seed", str(MAX_SEED)]),
        ({"seed": 10**400}, ["seed", "..."]),
        ({"seed": "seven"}, ["'seven'", "whole"]),
        ({"seed": 3.7}, ["3.7"]),
        ({"seed": float("nan")}, ["nan"]),
        ({"upscaler": "magic"}, ["magic", "network, lanczos"]),
        ({"upscaler": "/nowhere/x.pth"}, ["/nowhere/x.pth"]),
        ({"upscaler": None}, ["None"]),
        ({"base_native": True}, ["True", "off, on"]),
        ({"noise": "pink"}, ["pink", "independent, spectral"]),
        ({"aspect": "3:2"}, ["'3:2'", "16:9, 9:16, 1:1, 4:3, 21:9", "nearest are 4:3 and 16:9"]),
        ({"aspect": "2:3"}, ["'2:3'", "nearest are 9:16 and 1:1"]),
        ({"aspect": "1:0"}, ["'1:0'", "choose from 16:9"]),
        ({"aspect": "9" * 5000 + ":1"}, ["'999", "choose from 16:9"]),
        ({"aspect": None}, ["None", "choose from 16:9"]),
        ({"fps": 30}, ["30", "12, 15, 16, 24", "frames stay the same"]),
        ({"fps": 12.5}, ["12.5", "12, 15, 16, 24"]),
        ({"fps": True}, ["True", "12, 15, 16, 24"]),
        ({"fps": "24"}, ["'24'", "12, 15, 16, 24"]),
        ({"guidance_interval": "0.6"}, ["'0.6'", "two rising noise levels", "0-1"]),
        ({"guidance_interval": "1-0.6"}, ["'1-0.6'", "two rising noise levels"]),
        ({"guidance_interval": "0.5-0.5"}, ["two rising noise levels"]),
        ({"guidance_interval": "0-2"}, ["'0-2'", "from 0 to 1"]),
        ({"guidance_interval": "-0.5-1"}, ["from 0 to 1"]),
        ({"guidance_interval": "9" * 5000 + "-1"}, ["'999", "from 0 to 1"]),
        ({"guidance_interval": [True, 1]}, ["True"]),
        ({"guidance_interval": None}, ["None"]),
        ({"guidance_interval": ""}, ["''"]),
        ({"cache": "on"}, ["'on'", "off, taylor-2, taylor-3"]),
        ({"cache": None}, ["None", "off, taylor-2, taylor-3"]),
        (
            {"cache": "taylor-2", "num_inference_steps": 5},
            ["'taylor-2'", "nothing out of 5 steps", "choose off, or 6 steps"],
        ),
        ({"shift": 0}, ["shift", "from 0.01 to 100, not 0"]),
        ({"shift": float("nan")}, ["not nan"]),
        ({"shift": "5"}, ["not '5'"]),
        ({"shift": True}, ["not True"]),
        ({"shift": 10**5000}, ["more than 4,300 digits", "to 100"]),
        ({"solver": "heun"}, ["'heun'", "own, euler, unipc"]),
        ({"solver": None}, ["None", "own, euler, unipc"]),
        ({"solver": "unipc"}, ["unipc needs a fixed shift", "add a shift, such as 5"]),
        ({"base_num_inference_steps": 0}, ["base_num_inference_steps", "1 is the nearest"]),
        ({"base_num_inference_steps": "7"}, ["base_num_inference_steps", "whole number", "'7'"]),
        ({"base_guidance_scale": -1}, ["base_guidance_scale must", "from 0 to 100, not -1"]),
        ({"base_guidance_scale": "5"}, ["base_guidance_scale must", "not '5'"]),
        ({"progressive": "yes"}, ["'yes'", "auto, on, off"]),
        ({"progressive": None}, ["None", "auto, on, off"]),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_way_out(settings, words):
    with pytest.raises(ValueError) as error:
        check(**settings)
    for word in words:
        assert word in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("settings", "name", "value"),
    [
        ({"prompt": "  a\tcalm\n lake "}, "prompt", "a calm lake"),
        ({"prompt": "<script>alert(1)</script> 🏔️ & lake"}, "prompt",
         "<script>alert(1)</script> 🏔️ & lake"),
        ({"prompt": "👩‍🌾"}, "prompt", "👩‍🌾"),
        ({"prompt": "x" * 2000}, "prompt", "x" * 2000),
        ({"negative_prompt": ""}, "negative_prompt", ""),
        ({"resolution": "4K"}, "resolution", "4k"),
        ({"resolution": None}, "resolution", "544p"),
        ({"num_frames": None}, "num_frames", 17),
        ({"num_frames": 17.0}, "num_frames", 17),
        ({"num_frames": 1}, "num_frames", 1),
        ({"windows": "4"}, "windows", 4),
        ({"windows": "AUTO"}, "windows", "auto"),
        ({"windows": 16}, "windows", 16),
        ({"guidance_scale": 1}, "guidance_scale", 1.0),
        ({"seed": MAX_SEED}, "seed", MAX_SEED),
        ({"base_native": "on"}, "base_native", "on"),
        ({"aspect": " 9 : 16"}, "aspect", "9:16"),
        ({"fps": None}, "fps", 12),
        ({"fps": 24.0}, "fps", 24),
        ({}, "guidance_interval", "0-1"),
        ({"guidance_interval": " 0.60 - 1.0 "}, "guidance_interval", "0.6-1"),
        ({"guidance_interval": "0.25 to .75"}, "guidance_interval", "0.25-0.75"),
        ({"guidance_interval": "[0.6, 1.0]"}, "guidance_interval", "0.6-1"),
        ({"guidance_interval": [0.6, 1]}, "guidance_interval", "0.6-1"),
        ({}, "cache", "off"),
        ({"cache": " Taylor-2 ", "num_inference_steps": 6}, "cache", "taylor-2"),
        ({}, "shift", None),
        ({"shift": 8}, "shift", 8.0),
        ({}, "solver", "own"),
        ({"solver": "UniPC", "shift": 3}, "solver", "unipc"),
        ({"guidance_interval": [1e-5, 1]}, "guidance_interval", "0.00001-1"),
        ({"guidance_interval": "0.00001-1"}, "guidance_interval", "0.00001-1"),
        ({}, "base_num_inference_steps", None),
        ({"base_num_inference_steps": 30.0}, "base_num_inference_steps", 30),
        ({}, "base_guidance_scale", None),
        ({"base_guidance_scale": 5}, "base_guidance_scale", 5.0),
    ],
)  # fmt: skip
def test_what_can_be_used_is_kept(settings, name, value):
    assert getattr(check(**settings), name) == value


def test_the_grid_of_the_larger_model_is_finer():
    assert Request(PROMPT, windows=32).validate(WAN).windows == 32


def test_the_defaults_of_the_larger_model_are_its_own():
    request = Request(PROMPT).validate(WAN)
    assert (request.resolution, request.num_frames) == ("1080p", 81)
    assert (request.num_inference_steps, request.guidance_scale) == (30, 5.0)
    assert request.negative_prompt == WAN.negative_prompt
    assert request.token_grid(WAN) == (68, 120)
    assert (request.size, request.frames) == (RESOLUTIONS["1080p"], 81)
    assert Request(PROMPT, num_frames=121).validate(WAN).frames == 121
    with pytest.raises(ValueError, match="from 1 to 121, not 125"):
        Request(PROMPT, num_frames=125).validate(WAN)


def test_a_model_with_a_fixed_shift_needs_no_other_for_unipc():
    request = Request(PROMPT, solver="unipc").validate(WAN)
    assert (request.solver, request.shift) == ("unipc", None)


def test_the_base_model_s_clips_are_sampled_as_the_native_one_or_by_settings_of_their_own():
    both = Request(PROMPT, num_inference_steps=20, guidance_scale=4).validate(WAN)
    assert both.of_base == both
    apart = replace(both, base_num_inference_steps=12).validate(WAN)
    assert apart.of_base == replace(apart, num_inference_steps=12)
    student = replace(
        WAN,
        num_inference_steps=4,
        guidance_scale=1.0,
        base_num_inference_steps=30,
        base_guidance_scale=5.0,
    )
    for given in ({}, {"num_inference_steps": 6, "guidance_scale": 2, "shift": 3}):
        request = Request(PROMPT, **given).validate(student)
        base = request.of_base
        assert (base.num_inference_steps, base.guidance_scale) == (30, 5.0)
        assert base.shift == given.get("shift")
        # What was made by one machine's settings is made again by them on another.
        assert Request.from_metadata({"request": request.to_dict()}).validate(WAN) == request
    request = Request(PROMPT, base_num_inference_steps=8, base_guidance_scale=0).validate(student)
    assert (request.of_base.num_inference_steps, request.of_base.guidance_scale) == (8, 0.0)


def test_fast_is_for_guided_clips_of_some_steps():
    check_fast(check(guidance_scale=3.0))
    check_fast(check(guidance_scale=3.0, num_inference_steps=6, **FAST))
    for settings, says in (
        ({"guidance_scale": 1, "num_inference_steps": 8}, "guidance 1,.*: 6 steps in place of 8"),
        ({"guidance_scale": 0, "num_inference_steps": 2}, "guidance 0,.*a smaller size saves"),
        ({"guidance_scale": 3, "num_inference_steps": 5}, "nothing out of 5 steps"),
    ):
        with pytest.raises(ValueError, match=says):
            check_fast(check(**settings))


def test_metadata_gives_the_request_back():
    request = check(prompt="ein See 🏔️", windows=4, seed=5, guidance_scale=2.5)
    metadata = {"request": request.to_dict(), "other": 1}
    assert Request.from_metadata(metadata) == request
    assert Request.from_metadata(json.dumps(metadata)) == request


def test_metadata_of_before_there_were_shapes_and_rates_give_the_request_back():
    request = check(loras={}, noise="independent")
    settings = {k: v for k, v in request.to_dict().items() if k not in ("aspect", "fps")}
    assert Request.from_metadata({"request": settings, "fps": 12}) == request
    assert Request.from_metadata({"request": settings}).validate(EMBEDDED) == request


@pytest.mark.parametrize(
    "name",
    ["guidance_interval", "cache", "shift", "solver", "base_num_inference_steps",
     "base_guidance_scale"],
)  # fmt: skip
def test_metadata_of_before_there_was_a_setting_give_the_request_back(name):
    settings = check(loras={}).to_dict()
    without = {other: value for other, value in settings.items() if other != name}
    assert Request.from_metadata({"request": without}).validate(EMBEDDED) == check(loras={})


def test_clips_of_before_there_were_compositions_began_at_their_own_size():
    settings = check(resolution="4k").to_dict()
    del settings["progressive"]
    assert Request.from_metadata({"request": settings}).validate(EMBEDDED).progressive == "off"


def test_a_models_own_frame_rate_can_be_chosen():
    assert Request(PROMPT).validate(T3_4K).frame_rate == 30
    assert Request(PROMPT, fps=30).validate(T3_4K).frame_rate == 30


@pytest.mark.parametrize("text", ["{}", "[]", '{"request": {"prompt": "x"}}', '{"request": 3}'])
def test_other_json_is_no_metadata(text):
    with pytest.raises(ValueError, match="metadata"):
        Request.from_metadata(text)
