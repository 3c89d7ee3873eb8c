"""The compact autoencoder: frame groups, streaming, crops, and the Wan VAE's interface."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import randomise

from ultragen.model.autoencoder import (
    CompactAutoencoder,
    ResidualBlock,
    group_frames,
    ungroup_frames,
)


@pytest.fixture(scope="module")
def vae() -> CompactAutoencoder:
    torch.manual_seed(0)
    model = CompactAutoencoder(
        z_dim=6,
        encoder_channels=(8, 8, 16),
        encoder_blocks=(1, 1, 1),
        decoder_channels=(16, 8, 8),
        decoder_blocks=(1, 1, 1),
    ).eval()
    randomise(model, strength=0.5)
    return model


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


# Frame groups


@settings(deadline=None)
@given(st.integers(0, 6), st.integers(1, 3), st.integers(1, 4))
def test_grouping_frames_can_be_undone(n, b, h):
    video = torch.arange(b * 3 * (4 * n + 1) * h * 2).view(b, 3, 4 * n + 1, h, 2)
    groups = group_frames(video)
    assert groups.shape == (b, n + 1, 12, h, 2)
    assert torch.equal(ungroup_frames(groups), video)


def test_the_first_frame_makes_a_group_of_its_own():
    video = torch.arange(9.0).view(1, 1, 9, 1, 1)
    groups = group_frames(video)[0, :, :, 0, 0].tolist()
    assert groups == [[0, 0, 0, 0], [1, 2, 3, 4], [5, 6, 7, 8]]


@pytest.mark.parametrize(
    "frames, hint",
    [(18, "17 or 21"), (16, "13 or 17"), (4, "1 or 5"), (2, "1 or 5"), (0, "1 or 5")],
)
def test_a_wrong_number_of_frames_names_the_nearest(vae, frames, hint):
    with pytest.raises(ValueError, match=f"not {frames}: choose {hint}"):
        vae.encode(torch.zeros(1, 3, frames, 16, 16))


@pytest.mark.parametrize("height, width", [(24, 32), (32, 40), (15, 16)])
def test_a_wrong_frame_size_is_refused(vae, height, width):
    with pytest.raises(ValueError, match=f"multiples of 16, not {height}×{width}"):
        vae.encode(torch.zeros(1, 3, 5, height, width))


# Shapes and interface


@pytest.mark.parametrize(
    "shape", [(1, 3, 1, 16, 16), (2, 3, 5, 32, 48), (1, 3, 17, 16, 80)], ids=str
)
def test_shapes(vae, shape):
    b, _, t, h, w = shape
    latents = vae.encode(noise(*shape)).latent_dist.mode()
    assert latents.shape == (b, 6, (t - 1) // 4 + 1, h // 16, w // 16)
    assert vae.decode(latents).sample.shape == shape
    assert vae(noise(*shape)).shape == shape


def test_the_interface_is_the_wan_vaes(vae):
    wan = AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True],
    ).eval()  # fmt: skip
    for name in ("encode", "decode"):
        ours, theirs = (inspect.signature(getattr(m, name)).parameters for m in (vae, wan))
        assert list(ours) == list(theirs)
        assert ours["return_dict"].default is theirs["return_dict"].default is True
    shared = {
        "z_dim",
        "latents_mean",
        "latents_std",
        "scale_factor_spatial",
        "scale_factor_temporal",
    }
    assert shared <= set(vae.config) & set(wan.config)
    video = noise(1, 3, 5, 32, 32).clamp(-1, 1)
    for model in (vae, wan):
        with torch.no_grad():
            encoded = model.encode(video)
            assert isinstance(encoded, AutoencoderKLOutput)
            assert isinstance(encoded.latent_dist, DiagonalGaussianDistribution)
            (posterior,) = model.encode(video, return_dict=False)
            assert torch.equal(posterior.mode(), encoded.latent_dist.mode())
            scale = model.config.scale_factor_spatial
            assert posterior.mode().shape == (1, model.config.z_dim, 2, 32 // scale, 32 // scale)
            decoded = model.decode(posterior.mode())
            assert isinstance(decoded, DecoderOutput)
            assert decoded.sample.shape == video.shape
            (plain,) = model.decode(posterior.mode(), return_dict=False)
            assert torch.equal(plain, decoded.sample)


def test_the_posterior_has_the_noise_of_the_configuration(vae):
    posterior = vae.encode(noise(1, 3, 5, 64, 64)).latent_dist
    torch.testing.assert_close(posterior.std, torch.full_like(posterior.std, 0.05))
    spread = (posterior.sample(torch.Generator().manual_seed(0)) - posterior.mode()).std().item()
    assert spread == pytest.approx(0.05, rel=0.2)


def test_saving_and_loading(vae, tmp_path):
    vae.save_pretrained(tmp_path)
    loaded = CompactAutoencoder.from_pretrained(tmp_path)
    weights = loaded.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in vae.state_dict().items())
    assert loaded.config.encoder_channels == [8, 8, 16]


def test_offloading_moves_the_weights_first(vae):
    """diffusers keeps a hook on the module that brings the weights to the device; `decode` and its
    kin have to call it, because they are not `forward`."""
    calls = []
    vae._hf_hook = SimpleNamespace(pre_forward=lambda module: calls.append(module))
    try:
        vae.encode(noise(1, 3, 1, 16, 16))
        vae.decode(noise(1, 6, 1, 1, 1))
        next(iter(vae.decode_groups(noise(1, 6, 1, 1, 1))))
    finally:
        del vae._hf_hook
    assert len(calls) >= 3 and all(module is vae for module in calls)


def test_a_fresh_block_is_the_identity():
    x = noise(1, 4, 5, 5)
    assert torch.equal(ResidualBlock(4)(x), x)


# Time


def test_streaming_gives_what_one_call_gives(vae):
    latents = noise(2, 6, 4, 2, 3)
    at_once = vae.decode(latents.requires_grad_()).sample
    with torch.no_grad():
        pieces = list(vae.decode_groups(latents))
        streamed = vae.decode(latents).sample
    assert [piece.shape[2] for piece in pieces] == [1, 4, 4, 4]
    assert torch.equal(torch.cat(pieces, dim=2), streamed)
    torch.testing.assert_close(streamed, at_once.detach(), rtol=1e-4, atol=1e-5)


def test_streaming_needs_one_group_at_a_time(vae):
    """Groups are decoded when they are asked for, each from its own and the one before."""
    widths = []
    hook = vae.decoder.register_forward_pre_hook(lambda _, args: widths.append(len(args[0])))
    pieces = vae.decode_groups(noise(2, 6, 5, 1, 1))
    next(pieces)
    next(pieces)
    hook.remove()
    assert widths == [2, 2]


@torch.no_grad()
def test_a_group_reaches_its_own_frames_and_the_next(vae):
    latents = noise(1, 6, 5, 1, 1)
    changed = latents.clone()
    changed[:, :, 2] += 1
    difference = (vae.decode(latents).sample - vae.decode(changed).sample).abs().amax((0, 1, 3, 4))
    assert (difference > 0).nonzero().flatten().tolist() == list(range(5, 13))


@torch.no_grad()
@pytest.mark.parametrize("frame, group", [(0, 0), (1, 1), (4, 1), (5, 2)])
def test_a_frame_reaches_its_own_group(vae, frame, group):
    video = noise(1, 3, 9, 16, 16)
    changed = video.clone()
    changed[:, :, frame] += 1
    a, b = (vae.encode(v).latent_dist.mode() for v in (video, changed))
    assert (a - b).abs().amax((0, 1, 3, 4)).nonzero().flatten().tolist() == [group]


# Space


@torch.no_grad()
def test_a_crop_is_encoded_and_decoded_as_in_the_whole(vae):
    """No statistics over the frame: far from a crop's border nothing tells it from the whole."""
    video = noise(1, 3, 5, 16, 16 * 24)
    crop = video[..., 16 * 4 : 16 * 20].contiguous()
    whole, part = (vae.encode(v).latent_dist.mode() for v in (video, crop))
    torch.testing.assert_close(part[..., 6:-6], whole[..., 4:20][..., 6:-6], rtol=1e-4, atol=1e-5)
    assert (part[..., :1] - whole[..., 4:5]).abs().max() > 1e-3

    whole_video = vae.decode(whole).sample
    part_video = vae.decode(whole[..., 4:20].contiguous()).sample
    inner = slice(6 * 16, -6 * 16)
    torch.testing.assert_close(
        part_video[..., inner],
        whole_video[..., 4 * 16 : 20 * 16][..., inner],
        rtol=1e-4,
        atol=1e-5,
    )
    assert (part_video[..., :1] - whole_video[..., 64:65]).abs().max() > 1e-3


def test_every_parameter_learns(vae):
    video = noise(1, 3, 5, 32, 32)
    vae(video).sub(video).square().mean().backward()
    silent = [n for n, p in vae.named_parameters() if p.grad is None or not p.grad.any()]
    vae.zero_grad(set_to_none=True)
    assert silent == []
