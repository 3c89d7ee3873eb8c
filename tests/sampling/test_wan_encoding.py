"""Exact encoding by Wan's autoencoder in strips and frame by frame, against diffusers' own."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from accelerate import cpu_offload
from allocations import NO_ENGINE, OUT_OF_MEMORY, run_out_of_memory
from diffusers import AutoencoderKLWan
from torch import Tensor
from torch.nn import functional as F

from ultragen.model.autoencoder import denormalize, normalize
from ultragen.sampling import wan_encoding
from ultragen.sampling import wan_strips as strips_module
from ultragen.sampling.decoding import decode_pieces
from ultragen.sampling.wan_encoding import (
    encode_in_strips,
    encode_wan,
    fine_strip,
    group_pictures,
    levels,
    rows_seen,
)
from ultragen.sampling.wan_streaming import streams
from ultragen.sampling.wan_strips import Strips

ROWS, COLUMNS = 88, 24  # 22 rows of what strips end with


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLWan:
    torch.manual_seed(0)
    mean, std = [0.3, -0.2, 0.1, 0.0], [0.5, 2.0, 1.0, 0.8]
    made = AutoencoderKLWan(base_dim=8, z_dim=4, latents_mean=mean, latents_std=std)
    for name, parameter in made.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return made.eval()


@pytest.fixture(scope="module")
def precise(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """In float64: see the decoding's tests."""
    return copy.deepcopy(vae).double()


def pictures(frames: int, batch: int = 1, height: int = ROWS, width: int = COLUMNS) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, 3, frames, height, width, generator=generator) * 2 - 1


@torch.no_grad()
def plain(vae: AutoencoderKLWan, x: Tensor) -> Tensor:
    return vae.encode(x, return_dict=False)[0].mean


def joined(vae: AutoencoderKLWan, x: Tensor, strips: Strips) -> Tensor:
    return torch.cat(list(encode_in_strips(vae, group_pictures([x]), strips)), dim=2)


@pytest.mark.parametrize("frames", [1, 5, 9, 17])
@pytest.mark.parametrize(
    "strips",
    [Strips(1, 0), Strips(1, 1), Strips(2, 0), Strips(3, 3), Strips(5, 0), Strips(8, 2)],
    ids=lambda strips: f"{strips.number}-{strips.resident}",
)
def test_latents_are_those_of_the_whole_frame(precise, frames, strips):
    x = pictures(frames).double()
    expected = plain(precise, x)
    assert expected.shape == (1, 4, (frames + 3) // 4, ROWS // 8, COLUMNS // 8)
    assert expected.std() > 0.01
    torch.testing.assert_close(joined(precise, x, strips), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 40), (40, 16), (43, 27), (50, 30)])
@pytest.mark.parametrize("number", [1, 2, 4, 7])
def test_sizes(precise, height, width, number):
    """Also of a single row of latents, with strips of one row each, and of what eight does not
    divide, where rows and columns are left out at the end."""
    x = pictures(5, height=height, width=width).double()
    found = joined(precise, x, Strips(number, 0))
    torch.testing.assert_close(found, plain(precise, x), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {"num_res_blocks": 1},
        {"dim_mult": [1, 2], "temperal_downsample": [True], "scale_factor_spatial": 2},
        {"dim_mult": [1, 1, 2, 2, 2], "temperal_downsample": [True, False, False, True]},
    ],
    ids=str,
)
def test_other_depths(options):
    torch.manual_seed(0)
    config = {"base_dim": 4, "z_dim": 4, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    vae = AutoencoderKLWan(**config, **options).double().eval()
    x = pictures(9, height=48, width=32).double()
    found = joined(vae, x, Strips(3, 0))
    torch.testing.assert_close(found, plain(vae, x), rtol=0, atol=1e-9)


def test_clips_of_a_batch(precise):
    x = pictures(9, batch=2).double()
    expected = plain(precise, x)
    torch.testing.assert_close(joined(precise, x, Strips(4, 0)), expected, rtol=0, atol=1e-9)
    assert (expected[0] - expected[1]).abs().max() > 0.01


@pytest.mark.parametrize("lengths", [(9,), (1, 4, 4), (4, 5), (2, 2, 2, 3), (1,) * 9, (0, 8, 1)])
def test_pieces_of_any_lengths(precise, lengths):
    x = pictures(9).double()
    found = encode_wan(precise, iter(x.split(lengths, dim=2)))
    torch.testing.assert_close(found, plain(precise, x), rtol=0, atol=1e-9)


def test_float32(vae):
    x = pictures(9)
    torch.testing.assert_close(encode_wan(vae, x), plain(vae, x), rtol=0, atol=1e-5)


def test_bfloat16(vae):
    """From pictures in float32; see the decoding's test."""
    half = copy.deepcopy(vae).bfloat16()
    x = pictures(9).bfloat16()
    with torch.backends.mkldnn.flags(enabled=False):
        whole, found = encode_wan(half, x.float()), joined(half, x, Strips(3, 0))
        expected = plain(half, x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-2)
    exact = plain(copy.deepcopy(half).float(), x.float())
    of_found, of_expected = ((z.float() - exact).abs() for z in (found, expected))
    between = (found.float() - expected.float()).abs()
    assert of_found.mean() < 1.1 * of_expected.mean()
    assert between.mean() < 1e-2 and between.max() < 1.5 * of_expected.max()


# Strips


def test_the_rows_that_a_strip_sees_are_those_that_matter(precise):
    """13 above and 16 below of the pictures, and no others."""
    height, strip = 160, range(20, 22)
    fine = levels(precise.encoder)[:-2]
    taken, halved = rows_seen(fine, strip, height)
    seen = range(taken[0].start - 1, taken[0].stop + 1)  # by the first convolution
    assert (4 * strip.start - seen.start, seen.stop - 4 * strip.stop) == (13, 16)
    assert [len(rows) for rows in taken] == [35, 13, 2] and [len(rows) for rows in halved] == [
        27,
        5,
    ]
    x = pictures(5, height=height, width=8).double()

    @torch.no_grad()
    def result(*rows: int) -> Tensor:
        changed = x.clone()
        changed[..., rows, :] += 1
        groups = group_pictures([changed])
        return torch.cat(list(fine_strip(precise.encoder, groups, range(height // 4))), dim=2)

    unchanged = result()
    for row in (seen.start - 1, seen.start, seen.stop - 1, seen.stop):
        apart = (result(row) - unchanged)[..., strip.start : strip.stop, :].abs().max()
        assert (apart > 0) == (row in seen)


def test_rows_are_computed_strip_by_strip(vae, monkeypatch):
    seen = []
    conv3d = F.conv3d

    def watched(frames, *arguments, **options):
        seen.append(tuple(frames.shape[-2:]))
        return conv3d(frames, *arguments, **options)

    monkeypatch.setattr(F, "conv3d", watched)
    joined(vae, pictures(5), Strips(11, 0))
    assert max(rows for rows, columns in seen if columns == COLUMNS) == 2 * 4 + 12 + 15
    assert max(rows for rows, columns in seen if columns == COLUMNS // 2) == 2 * 2 + 4 + 5


def test_pictures_are_read_a_few_at_a_time(vae, monkeypatch):
    shapes = []
    read = wan_encoding.read

    def watched(*arguments):
        found = read(*arguments)
        shapes.append(found.shape)
        return found

    monkeypatch.setattr(wan_encoding, "read", watched)
    joined(vae, pictures(9), Strips(2, 0))
    assert [shape[2] for shape in shapes] == [1, 4, 4] * 2
    assert [shape[3] - ROWS // 2 for shape in shapes] == [16] * 3 + [13] * 3


@pytest.mark.parametrize(("resident", "order"), [(0, [3, 3, 3]), (2, [2, 4, 6])])
def test_whole_frames_follow_when_the_strips_are_done(vae, monkeypatch, resident, order):
    """Or with the strips, where all go through time side by side."""
    outputs, counts = [], []
    shrink = wan_encoding.shrink

    def watched(conv, x):
        outputs.append(x.shape)
        return shrink(conv, x)

    monkeypatch.setattr(wan_encoding, "shrink", watched)
    number = resident or 1
    for _ in encode_in_strips(vae, group_pictures([pictures(9)]), Strips(number, resident)):
        # Two for each strip's group, and one for each whole frame.
        counts.append((len(outputs) - len(counts) - 1) // 2)
    assert counts == order


# What it is chosen for


def runs_out(monkeypatch, holds, error):
    monkeypatch.setattr(strips_module, "SHORTEST", 16)  # the frame has 88 rows
    return run_out_of_memory(monkeypatch, wan_encoding, "encode_in_strips", holds, error)


@pytest.mark.parametrize("error", [OUT_OF_MEMORY, NO_ENGINE], ids=["memory", "no engine"])
def test_less_memory_than_was_counted(precise, monkeypatch, error):
    """The pieces come from an iterator, which can't be read twice."""
    x = pictures(9).double()
    tried = runs_out(monkeypatch, lambda strips: strips.number >= 3, error)
    with pytest.warns(UserWarning, match=r"Encoding ran out .* begins again in \d strips"):
        found = encode_wan(precise, iter(x.split(2, dim=2)))
    torch.testing.assert_close(found, plain(precise, x), rtol=0, atol=1e-9)
    assert tried[0].number == 1 and tried[-1].number >= 3 and len(set(tried)) == len(tried)


def test_too_little_memory_for_the_shortest_strips(vae, monkeypatch):
    tried = runs_out(monkeypatch, lambda strips: False, OUT_OF_MEMORY)
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(UserWarning):
        encode_wan(vae, pictures(9))
    assert tried[-1] == Strips(5, 0) and len(set(tried)) == len(tried)


def test_latents_of_unit_variance_are_decoded_as_the_pipeline_does(vae):
    x = pictures(5)
    own = encode_wan(vae, x)
    latents = normalize(vae, own)
    torch.testing.assert_close(denormalize(vae, latents), own)
    torch.testing.assert_close(latents[:, 1], (own[:, 1] + 0.2) / 2)
    found = torch.cat(list(decode_pieces(vae, latents)), dim=2)
    with torch.no_grad():
        expected = vae.decode(plain(vae, x), return_dict=False)[0] / 2 + 0.5
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_who_asks_for_tiles_gets_them(vae, monkeypatch):
    x = pictures(5, height=64, width=48)
    exact = encode_wan(vae, x)
    for name, size in (("min_height", 32), ("min_width", 32), ("stride_height", 16)):
        monkeypatch.setattr(vae, f"tile_sample_{name}", size)
    monkeypatch.setattr(vae, "tile_sample_stride_width", 16)
    monkeypatch.setattr(vae, "use_tiling", True)
    found = encode_wan(vae, x.split(2, dim=2))
    torch.testing.assert_close(found, plain(vae, x))
    assert (found - exact).abs().max() > 1e-3


def test_weights_that_come_layer_by_layer_encode_as_diffusers_has_it(vae):
    x = pictures(5)
    expected = plain(vae, x)
    offloaded = cpu_offload(copy.deepcopy(vae), "cpu")
    assert offloaded.device.type == "meta"
    assert not streams(offloaded, offloaded.encoder, offloaded.device, offloaded.dtype)
    assert not streams(offloaded, offloaded.encoder, x.device, x.dtype)
    torch.testing.assert_close(encode_wan(offloaded, x.split(4, dim=2)), expected)


def test_another_variant_encodes_as_diffusers_has_it():
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=8, decoder_base_dim=8, z_dim=4, is_residual=True, patch_size=2, in_channels=12,
        out_channels=12, scale_factor_spatial=16, latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    ).eval()  # fmt: skip
    x = pictures(5, height=32, width=32)
    torch.testing.assert_close(encode_wan(vae, [x]), plain(vae, x))


def test_an_offloaded_autoencoder_is_called_to_its_device(vae, monkeypatch):
    calls = []
    hook = SimpleNamespace(pre_forward=lambda module: calls.append(module))
    monkeypatch.setattr(vae, "_hf_hook", hook, raising=False)
    encode_wan(vae, pictures(1))
    assert calls == [vae]


@pytest.mark.parametrize(
    ("pieces", "says"),
    [
        ([], "no frames"),
        (pictures(4), "4n.* not 4: choose 1 or 5"),
        ([pictures(5), pictures(2)], "not 7: choose 5 or 9"),
        ([pictures(1), pictures(4, height=40)], r"alike but for t, not .*88, 24\), .*40, 24\)"),
        (pictures(1)[0], "b 3 t h w"),
        (pictures(1).transpose(1, 2), r"b 3 t h w, .* not \(1, 1, 3, 88, 24\)"),
        (pictures(1).to(torch.uint8), "not torch.uint8"),
        (pictures(1).expand(-1, -1, 0, -1, -1), "not 0: choose 1 or 5"),
    ],
)
def test_frames_that_are_refused(vae, pieces, says):
    with pytest.raises(ValueError, match=says):
        encode_wan(vae, pieces)
