"""What fits on which GPU: pure functions of its memory, and what they count on."""

from __future__ import annotations

import os
from math import inf
from types import SimpleNamespace

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel
from wan_files import make_random_wan

from ultragen import hardware
from ultragen.estimates.memory import (
    GROWING_VALUES_PER_TOKEN,
    VALUES_PER_TOKEN,
    WAN_PARAMETERS,
    Memory,
    Weights,
    values_per_token,
    weights_of,
)
from ultragen.hardware import AUTO_MEMORY, GIB, Hardware, find_hardware, free_memory, has_amx
from ultragen.model.transformer import UltraGenTransformer3DModel
from ultragen.model.wan_1_3b import RELEASED
from ultragen.presets import RESOLUTIONS, WAN

BF16 = WAN_PARAMETERS.scaled(2)


def memory(gigabytes: float) -> Memory:
    return Memory(int(gigabytes * GIB), BF16)


def test_the_sizes_are_those_of_the_true_models():
    true = make_random_wan.SIZES["true"]
    with init_empty_weights():
        text = UMT5EncoderModel(UMT5Config(**true.text))
        text.set_input_embeddings(text.shared)
        parts = (
            text,
            UltraGenTransformer3DModel(**{**RELEASED, "full_attention_layers": true.full}),
            WanTransformer3DModel(**true.transformer),
            AutoencoderKLWan(**true.vae),
        )
    counted = [sum(p.numel() for p in part.parameters()) for part in parts]
    assert Weights(*counted) == WAN_PARAMETERS


def test_weights_are_counted_in_the_type_they_have():
    part = torch.nn.Linear(3, 5).to(torch.bfloat16)
    pipe = SimpleNamespace(
        text_encoder=part, transformer=part.float(), base_transformer=None, vae=part
    )
    assert weights_of(pipe) == Weights(80, 80, 0, 80)


@pytest.mark.parametrize(
    ("gigabytes", "placement"),
    [
        (80, "whole"),
        (47, "whole"),
        (39, "whole"),
        (24, "in turn"),
        (23, "in turn"),
        (22, "in turn"),
        (14, "in turn"),
    ],
)
def test_parts_stay_on_the_gpu_only_where_there_is_room(gigabytes, placement):
    assert memory(gigabytes).place() == placement


@pytest.mark.parametrize("gigabytes", [0, 6, 10])
def test_too_little_memory_names_the_way_out(gigabytes):
    with pytest.raises(ValueError, match=r"at least, and .* are free: .*ULTRAGEN_MODEL=embedded"):
        memory(gigabytes).place()


@pytest.mark.parametrize("placement", ["whole", "in turn"])
def test_the_peak_grows_with_the_clip_and_shrinks_in_turn(placement):
    room = memory(80)
    peaks = [room.peak(placement, size.height, size.width, 81) for size in RESOLUTIONS.values()]
    assert peaks == sorted(peaks)
    assert room.peak(placement, 1088, 1920, 81) >= room.peak(placement, 1088, 1920, 49)
    assert room.peak("in turn", 1088, 1920, 81) < room.peak("whole", 1088, 1920, 81)
    # Never less than the largest part, or all of them.
    at_least = BF16.together if placement == "whole" else BF16.text_encoder
    assert room.peak(placement, 544, 960, 1) > at_least


def test_the_models_own_clip_fits_24_gb_in_turn():
    size = RESOLUTIONS[WAN.resolution]
    assert memory(22).peak("in turn", size.height, size.width, WAN.num_frames) < AUTO_MEMORY


@pytest.mark.parametrize(
    ("gigabytes", "placement", "resolution", "frames", "fits"),
    [
        (80, "whole", "1080p", 121, True),
        (80, "whole", "4k", 29, True),
        (22, "in turn", "1080p", 81, True),
        (22, "in turn", "4k", 29, True),
        (22, "in turn", "4k", 81, False),
        (12, "in turn", "1080p", 121, False),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(
    gigabytes, placement, resolution, frames, fits
):
    room = memory(gigabytes)
    if fits:
        room.check(placement, resolution, frames)
        return
    with pytest.raises(ValueError) as caught:
        room.check(placement, resolution, frames)
    text = str(caught.value)
    assert text.startswith(f"{resolution} with {frames} frames needs about ")
    offered = text.split("choose ")[1].rstrip(".").split(" or ")
    for offer in offered:
        name, _, count, _ = offer.split()
        assert (name, int(count)) != (resolution, frames)
        room.check(placement, name, int(count))
        longer = int(count) + 4
        if (name, longer) != (resolution, frames) and longer <= frames:
            with pytest.raises(ValueError):  # the longest that fits is offered
                room.check(placement, name, longer)


def test_what_ran_out_of_memory_is_followed_by_something_clearly_smaller():
    """The rule has let it through: the next frame less would most likely end as well."""
    room = memory(44)
    room.check("whole", "1080p", 81)
    first, second = room.clearly_smaller("whole", "1080p", 81)
    assert first.startswith("1080p with ") and int(first.split()[2]) <= 65
    assert second == "720p with 81 frames"
    assert memory(80).clearly_smaller("whole", "544p", 5) == []


def test_nothing_that_fits_leaves_the_embedded_model():
    with pytest.raises(ValueError, match=r"choose the embedded model\."):
        memory(5).check("in turn", "544p", 5)


def test_float32_takes_twice_as_much():
    wide = Memory(80 * GIB, WAN_PARAMETERS.scaled(4), 4)
    once = memory(80).peak("in turn", 1088, 1920, 81) - hardware.RESERVE
    assert wide.peak("in turn", 1088, 1920, 81) - hardware.RESERVE == 2 * once


def test_the_cpu_has_all_memory_that_is_asked_for():
    assert free_memory(torch.device("cpu")) == inf


# This machine's GPU

ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def card(monkeypatch, major: int, total: int = 24 * GIB, free: int = 22 * GIB) -> None:
    monkeypatch.setattr(hardware, "release", lambda: "6.8.0-generic")
    monkeypatch.setattr(torch, "empty", lambda *shape, device: None)
    for name in ALLOCATOR:  # set first, so that what the program sets is taken back
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    properties = SimpleNamespace(name="Card", major=major, minor=0, total_memory=total)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index=0: (free, total))


@pytest.mark.parametrize(
    ("major", "dtype", "size"), [(7, "float32", 4), (8, "bfloat16", 2), (12, "bfloat16", 2)]
)
def test_cards_before_ampere_compute_in_float32(major, dtype, size, monkeypatch):
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    card(monkeypatch, major)
    found = find_hardware()
    assert found == Hardware("cuda", "Card", 22 * GIB, major >= 8, growing=True)
    assert (found.dtype, found.bytes_per_value) == (dtype, size)
    values = GROWING_VALUES_PER_TOKEN if major >= 8 else VALUES_PER_TOKEN
    assert values_per_token(found) == values


@pytest.mark.parametrize("size, lent", [(101_973_950_464, 48 * 10**9), (40 * GIB, 40 * GIB)])
def test_on_zero_gpu_the_card_is_not_touched(size, lent, monkeypatch):
    """What it tells before a run is the whole card, and `large` is half of it."""
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    card(monkeypatch, 12, size)
    monkeypatch.setattr(torch.cuda, "mem_get_info", None)
    assert find_hardware() == Hardware("cuda", "Card", lent, True, True)


def test_the_allocators_segments_grow_unless_someone_set_it_up(monkeypatch):
    card(monkeypatch, 9)
    assert find_hardware().growing
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    assert find_hardware().growing  # the second time too
    for name in ALLOCATOR:
        for chosen in ("max_split_size_mb:512", "expandable_segments:True,max_split_size_mb:512"):
            card(monkeypatch, 9)
            monkeypatch.setenv(name, chosen)
            assert find_hardware().growing == ("expandable" in chosen)
            assert os.environ[name] == chosen


def test_a_driver_that_can_not_do_it_keeps_fixed_segments(monkeypatch):
    """The first allocation tells."""

    def refuse(*shape, device):
        assert (device, os.environ["PYTORCH_CUDA_ALLOC_CONF"]) == ("cuda", hardware.GROWING)
        raise RuntimeError("CUDA driver error: operation not supported")

    said: list[str] = []
    card(monkeypatch, 9)
    monkeypatch.setattr(torch, "empty", refuse)
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", said.append, raising=False)
    for _ in range(2):
        assert not find_hardware().growing
        assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:False"
    assert said == ["expandable_segments:False"]
    monkeypatch.delattr(torch._C, "_accelerator_setAllocatorSettings")
    monkeypatch.setattr(torch.cuda.memory, "_set_allocator_settings", said.append)
    card(monkeypatch, 9)
    monkeypatch.setattr(torch, "empty", refuse)
    assert not find_hardware().growing
    assert len(said) == 2


def test_windows_linux_keeps_fixed_segments(monkeypatch):
    card(monkeypatch, 9)
    monkeypatch.setattr(hardware, "release", lambda: "5.15.153.1-microsoft-standard-WSL2")
    assert not find_hardware().growing
    assert "PYTORCH_CUDA_ALLOC_CONF" not in os.environ


def test_an_allocator_that_is_in_use_is_left_alone(monkeypatch):
    card(monkeypatch, 9)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert not find_hardware().growing
    assert "PYTORCH_CUDA_ALLOC_CONF" not in os.environ


def test_growing_segments_leave_room_for_longer_clips():
    """Measured on a card of 24 GB were 65 frames at 4K, and 45 without (docs/hardware.md)."""
    room = {
        values: Memory(22 * GIB, BF16, 2, values)
        for values in (VALUES_PER_TOKEN, GROWING_VALUES_PER_TOKEN)
    }
    for values, frames in ((VALUES_PER_TOKEN, 45), (GROWING_VALUES_PER_TOKEN, 61)):
        room[values].check("in turn", "4k", frames)
        with pytest.raises(ValueError, match=f"choose 4k with {frames} frames or 2k with "):
            room[values].check("in turn", "4k", frames + 4)


QUESTIONS = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")


@pytest.mark.parametrize(
    "answers, dtype",
    [
        ((False, False), "float32"),
        ((False, True), "bfloat16"),
        ((True, False), "bfloat16"),
        ((True, True), "bfloat16"),
    ],
)
def test_a_machine_without_gpu(monkeypatch, answers, dtype):
    """Computes in bfloat16 where its processor is faster so."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for question, answer in zip(QUESTIONS, answers, strict=True):
        monkeypatch.setattr(torch.cpu, question, lambda answer=answer: answer, raising=False)
    found = find_hardware()
    assert (found.device, found.dtype) == ("cpu", dtype)
    assert has_amx() == answers[0]
    for question in QUESTIONS:
        monkeypatch.delattr(torch.cpu, question)
    assert find_hardware().dtype == "float32"  # another torch may not have the questions


@pytest.mark.parametrize("asked", ["float32", "bfloat16"])
def test_the_type_that_is_asked_for(monkeypatch, asked):
    monkeypatch.setenv("ULTRAGEN_DTYPE", asked)
    assert find_hardware().dtype == asked
    card(monkeypatch, 8)
    assert find_hardware().dtype == asked
    monkeypatch.setenv("ULTRAGEN_DTYPE", "float8")
    with pytest.raises(ValueError, match="auto, float32, bfloat16, not 'float8'"):
        find_hardware()


def test_half_a_card_of_zero_gpu_is_enough():
    """`large` is 48 GB, and weights above 45.1e9 bytes would take the whole card."""
    assert BF16.together < 45.1e9
    room = Memory(48 * 10**9, BF16)
    assert room.place() == "whole"
    room.check("whole", "1080p", 121)
