"""Exact decoding by Wan's autoencoder in strips and frame by frame, against diffusers' own."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from allocations import NO_ENGINE, OUT_OF_MEMORY, run_out_of_memory
from diffusers import AutoencoderKLWan
from torch import Tensor
from torch.nn import functional as F

from ultragen.sampling import wan_decoding
from ultragen.sampling import wan_strips as strips_module
from ultragen.sampling.wan_decoding import decode_in_strips, decode_wan, halos
from ultragen.sampling.wan_streaming import streams
from ultragen.sampling.wan_strips import Strips

ROWS, COLUMNS = 11, 6  # of the latents; the features have twice as many


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLWan:
    torch.manual_seed(0)
    made = AutoencoderKLWan(base_dim=8, z_dim=4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    for name, parameter in made.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return made.eval()


@pytest.fixture(scope="module")
def precise(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """In float64: processors add up convolutions in orders of their own, and float32's rounding is
    as large as what is asked for here."""
    return copy.deepcopy(vae).double()


def latents(frames: int, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 4, frames, ROWS, COLUMNS, generator=generator)


@torch.no_grad()
def plain(vae: AutoencoderKLWan, z: Tensor) -> Tensor:
    return vae.decode(z, return_dict=False)[0]


def joined(vae: AutoencoderKLWan, z: Tensor, strips: Strips) -> Tensor:
    return torch.cat(list(decode_in_strips(vae, z, strips)), dim=2)


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "strips",
    [Strips(), Strips(2, 1), Strips(2, 2), Strips(3, 2), Strips(5, 1), Strips(22, 3)],
    ids=lambda strips: f"{strips.number}-{strips.resident}",
)
def test_the_clip_is_that_of_the_whole_frame(precise, frames, strips):
    z = latents(frames).double()
    expected = plain(precise, z)
    assert expected.shape[2] == 4 * frames - 3 and expected.std() > 0.01
    torch.testing.assert_close(joined(precise, z, strips), expected, rtol=0, atol=1e-5)


def test_clips_of_a_batch(precise):
    z = latents(3, batch=2).double()
    found = joined(precise, z, Strips(4, 2))
    torch.testing.assert_close(found, plain(precise, z), rtol=0, atol=1e-5)


def test_values_are_clamped(precise):
    loud, z = copy.deepcopy(precise), latents(2).double()
    loud.decoder.conv_out.weight.data.mul_(50)
    found = joined(loud, z, Strips(3))
    assert found.max() == 1 and found.min() == -1
    torch.testing.assert_close(found, plain(loud, z), rtol=0, atol=1e-4)


def test_bfloat16(vae):
    """The order of sums in the convolutions makes the last digits another matter of chance: the
    result is as near to float32's as diffusers', and the two are nearer to each other."""
    half = copy.deepcopy(vae).bfloat16()
    z = latents(3).bfloat16()
    # oneDNN sums otherwise for every size on processors with AVX-512's bfloat16: there the two
    # would be as far from each other as from float32's, whatever the strips do.
    with torch.backends.mkldnn.flags(enabled=False):
        found, expected = joined(half, z, Strips(3, 1)), plain(half, z)
    assert found.dtype == torch.bfloat16
    exact = plain(copy.deepcopy(half).float(), z.float())
    of_found, of_expected = ((x.float() - exact).abs() for x in (found, expected))
    between = (found.float() - expected.float()).abs()
    assert of_found.mean() < 1.1 * of_expected.mean()
    assert between.mean() < 1e-2 and between.max() < of_expected.max() / 2


def test_one_pixel_changes_no_more_rows_than_the_halo_has(vae):
    """The rows that a block takes beyond a strip are those that matter, and no others."""
    assert halos(vae.decoder) == [12, 10, 7]
    torch.manual_seed(2)
    features = torch.randn(1, 16, 1, 40, 4)
    changed = features.clone()
    changed[..., 0, :] += 10
    with torch.no_grad():
        one, other = (
            next(wan_decoding.fine_strip(vae.decoder, [x], range(40))) for x in (features, changed)
        )
    rows = (one - other).abs().amax((0, 1, 2, 4)).nonzero().max().item() + 1
    assert 4 * 11 < rows <= 4 * 12 + 4


def test_rows_are_computed_strip_by_strip(vae, monkeypatch):
    seen = []
    conv3d = F.conv3d

    def watched(frames, *arguments, **options):
        seen.append(tuple(frames.shape[-2:]))
        return conv3d(frames, *arguments, **options)

    monkeypatch.setattr(F, "conv3d", watched)
    joined(vae, latents(2), Strips(11))
    assert max(rows for rows, columns in seen if columns == 8 * COLUMNS) == 2 * 4 + 2 * 7
    assert max(rows for rows, columns in seen if columns == 4 * COLUMNS) == 2 * 2 + 2 * 10


@pytest.mark.parametrize("strips", [Strips(), Strips(3, 3)])
def test_frames_come_before_the_next_ones_are_computed(vae, strips, monkeypatch):
    frames = []
    post_quant = vae.post_quant_conv.forward
    monkeypatch.setattr(
        vae.post_quant_conv, "forward", lambda x: frames.append(len(frames)) or post_quant(x)
    )
    pieces = decode_in_strips(vae, latents(4), strips)
    assert frames == []
    for number, piece in enumerate(pieces, 1):
        assert piece.shape[2] == (1 if number == 1 else 4)
        assert len(frames) == number


def test_the_lowest_strips_wait_for_the_frame_before(vae, monkeypatch):
    """Those above are done; of the resident ones only the first frame is."""
    outputs = []
    convolve = wan_decoding.convolve

    def watched(conv, x):
        if conv is vae.decoder.conv_out:
            outputs.append(x.shape)
        return convolve(conv, x)

    monkeypatch.setattr(wan_decoding, "convolve", watched)
    pieces = decode_in_strips(vae, latents(5), Strips(4, 3))
    counts = []
    for _ in pieces:
        counts.append(len(outputs))
    assert counts == [5 + 3 * n for n in range(1, 6)]


# What it is chosen for


def pieces_of(vae: AutoencoderKLWan, z: Tensor) -> list[int]:
    with torch.no_grad():
        return [piece.shape[2] for piece in decode_wan(vae, z)]


def test_decoded_piece_by_piece(vae):
    assert pieces_of(vae, latents(3)) == [1, 4, 4]


def runs_out(monkeypatch, holds, error):
    monkeypatch.setattr(strips_module, "SHORTEST", 16)  # the frame has 88 rows
    return run_out_of_memory(monkeypatch, wan_decoding, "decode_in_strips", holds, error)


@pytest.mark.parametrize("error", [OUT_OF_MEMORY, NO_ENGINE], ids=["memory", "no engine"])
def test_less_memory_than_was_counted(precise, monkeypatch, error):
    """The clip is that of the whole frame, each frame once; also where a convolution's work space
    is what does not fit."""
    z = latents(3).double()
    tried = runs_out(monkeypatch, lambda strips: strips.number >= 3, error)
    with pytest.warns(UserWarning, match=r"begins again in \d strips"):
        pieces = list(decode_wan(precise, z))
    assert [piece.shape[2] for piece in pieces] == [1, 4, 4]
    torch.testing.assert_close(torch.cat(pieces, dim=2), plain(precise, z), rtol=0, atol=1e-5)
    assert tried[0] == Strips() and tried[-1].number >= 3 and len(set(tried)) == len(tried)


def test_too_little_memory_for_the_shortest_strips(vae, monkeypatch):
    tried = runs_out(monkeypatch, lambda strips: False, OUT_OF_MEMORY)
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(UserWarning):
        list(decode_wan(vae, latents(3)))
    assert tried[-1] == Strips(5) and len(set(tried)) == len(tried)


def test_another_error_is_passed_on(vae, monkeypatch):
    tried = runs_out(monkeypatch, lambda strips: False, RuntimeError("illegal address"))
    with pytest.raises(RuntimeError, match="illegal address"):
        list(decode_wan(vae, latents(3)))
    assert len(tried) == 1


def test_who_asks_for_tiles_gets_them(vae, monkeypatch):
    monkeypatch.setattr(vae, "use_tiling", True)
    assert pieces_of(vae, latents(3)) == [9]


def test_weights_that_are_elsewhere_decode_as_diffusers_has_it(vae):
    """As where layers come to the device one by one."""
    z = latents(2)
    assert streams(vae, vae.decoder, z.device, z.dtype)
    assert not streams(vae, vae.decoder, torch.device("meta"), z.dtype)
    assert not streams(vae, vae.decoder, z.device, torch.bfloat16)


def test_another_variant_decodes_as_diffusers_has_it():
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=8, decoder_base_dim=8, z_dim=4, is_residual=True, patch_size=2, in_channels=12,
        out_channels=12, scale_factor_spatial=16, latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    ).eval()  # fmt: skip
    z = torch.randn(1, 4, 2, 3, 4)
    with torch.no_grad():
        [found] = decode_wan(vae, z)
    torch.testing.assert_close(found, plain(vae, z))


def test_an_offloaded_autoencoder_is_called_to_its_device(vae, monkeypatch):
    calls = []
    hook = SimpleNamespace(pre_forward=lambda module: calls.append(module))
    monkeypatch.setattr(vae, "_hf_hook", hook, raising=False)
    pieces = decode_wan(vae, latents(1))
    assert calls == [vae]
    assert len(list(pieces)) == 1
