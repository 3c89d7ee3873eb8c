"""Noise from one spectrum: white, the same scene at every size, the same numbers everywhere."""

from __future__ import annotations

import subprocess
import sys
from math import sqrt

import numpy as np
import pytest
import torch
from paths import ROOT
from tiny import tiny_pipeline

from ultragen.pipeline import UltraGenPipeline
from ultragen.sampling.spectral_noise import BLOCK, cosines, draw_key, spectral_noise

SHAPE = (3, 5, 9, 16)
KNOWN = [
    -0.9794129,
    -1.3214417,
    1.1155504,
    -0.1952488,
    1.203168,
    -0.2744122,
    0.2383827,
    1.3190283,
]  # of key 2026
# Sizes above and below a block's, odd ones, and lines of one.
SIZES = [(1, 9, 15), (2, 34, 60), (3, 18, 32), (5, 1, 33), (9, 64, 7), (17, 31, 32)]


def spectrum(noise: torch.Tensor) -> torch.Tensor:
    """The orthonormal cosine transform of c t h w, each coefficient by the sum that defines it."""
    found = noise.double()
    for axis, size in enumerate(noise.shape[1:], 1):
        place = torch.arange(size, dtype=torch.float64)
        rows = [torch.cos(torch.pi * f * (2 * place + 1) / (2 * size)) for f in range(size)]
        matrix = torch.stack([row / row.norm() for row in rows])
        found = torch.tensordot(matrix, found, ([1], [axis])).movedim(0, axis)
    return found


@pytest.mark.parametrize("size", SIZES)
def test_sizes_share_their_low_frequencies(size):
    """Also with other numbers of channels."""
    largest = tuple(max(lengths) for lengths in zip(*SIZES, strict=True))
    whole = spectrum(spectral_noise(7, (4, *largest)))
    found = spectrum(spectral_noise(7, (3, *size)))
    t, h, w = size
    torch.testing.assert_close(found, whole[:3, :t, :h, :w], rtol=0, atol=1e-5)


def test_a_small_grid_is_the_large_one_seen_from_afar():
    """Its noise is that of a large one without high frequencies, as bright as white noise is."""
    small, large = (spectral_noise(1, (1, 1, 16 * n, 16 * n))[0, 0] for n in (1, 4))
    means = 4 * large.reshape(16, 4, 16, 4).mean((1, 3))
    assert np.corrcoef(small.ravel(), means.ravel())[0, 1] > 0.7
    assert small.std() == pytest.approx(1, abs=0.15)


def test_it_is_white():
    """Mean, variance and correlation with neighbours, of each place and of all together."""
    samples = torch.stack([spectral_noise(key, SHAPE) for key in range(1000)])
    few = 5 / sqrt(len(samples))
    assert samples.mean(0).abs().max() < few
    assert (samples.var(0) - 1).abs().max() < sqrt(2) * few
    mean, variance = samples.mean(), samples.var()
    assert abs(mean) < 5 / sqrt(samples.numel())
    assert abs(variance - 1) < 5 * sqrt(2 / samples.numel())
    for axis, size in enumerate(samples.shape[1:], 1):
        near, far = samples.narrow(axis, 0, size - 1), samples.narrow(axis, 1, size - 1)
        together = near * far
        assert abs(together.mean()) < 5 / sqrt(together.numel())
        assert together.mean(0).abs().max() < few * 1.2
    assert (samples[:-1] * samples[1:]).mean().abs() < 5 / sqrt(samples.numel())
    # As far out as a Gaussian goes.
    assert (samples**4).mean() == pytest.approx(3, abs=0.02)


def test_blocks_and_channels_differ():
    noise = spectrum(spectral_noise(3, (2, *(2 * length for length in BLOCK))))
    first = noise[0, : BLOCK[0], : BLOCK[1], : BLOCK[2]].ravel()
    others = [
        noise[1, : BLOCK[0], : BLOCK[1], : BLOCK[2]],
        noise[0, BLOCK[0] :, : BLOCK[1], : BLOCK[2]],
        noise[0, : BLOCK[0], BLOCK[1] :, : BLOCK[2]],
        noise[0, : BLOCK[0], : BLOCK[1], BLOCK[2] :],
        spectrum(spectral_noise(4, (1, *BLOCK)))[0],
    ]
    for other in others:
        assert abs(np.corrcoef(first, other.ravel())[0, 1]) < 5 / sqrt(len(first))


def test_the_basis_is_orthonormal():
    for size in (1, 2, 9, 34):
        basis = cosines(size)
        torch.testing.assert_close(basis @ basis.T, torch.eye(size, dtype=basis.dtype))


def test_the_numbers_are_those_of_every_other_process_and_version():
    """A clip that was made must be made again, so that these must never change."""
    found = spectral_noise(2026, (1, 2, 2, 2)).ravel().tolist()
    assert found == pytest.approx(KNOWN, abs=1e-6)
    code = (
        "import torch; from ultragen.sampling.spectral_noise import spectral_noise;"
        "torch.set_num_threads(2); torch.set_float32_matmul_precision('medium');"
        "print(spectral_noise(2026, (1, 2, 2, 2)).ravel().tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(found)


# In the pipeline


@pytest.fixture(scope="module")
def pipe() -> UltraGenPipeline:
    return tiny_pipeline()


def latents(pipe: UltraGenPipeline, clips: int = 1, **settings) -> torch.Tensor:
    settings = {"height": 64, "width": 96, "num_frames": 9, "noise": "spectral", **settings}
    settings.setdefault("generator", torch.Generator().manual_seed(5))
    return pipe.prepare_latents(clips, **settings)


@pytest.mark.parametrize("frames", [1, 5, 9, 17])
def test_a_seed_has_one_spectrum_for_both_models(pipe, frames):
    whole = spectrum(latents(pipe, height=160, width=192, num_frames=33)[0])
    for each in (pipe, pipe.base_pipeline()):
        found = spectrum(latents(each, num_frames=frames)[0])
        c, t, h, w = found.shape
        assert t == (frames - 1) // 4 + 1
        torch.testing.assert_close(found, whole[:c, :t, :h, :w], rtol=0, atol=1e-5)


def test_clips_of_a_batch_are_those_of_their_generators(pipe):
    """Each clip alone as with others, and one generator goes on from clip to clip."""
    seeds = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    both = latents(pipe, 2, generator=seeds)
    assert torch.equal(both[:1], latents(pipe))
    one = torch.Generator().manual_seed(5)
    in_turn = torch.cat([latents(pipe, generator=one) for _ in range(2)])
    assert torch.equal(in_turn, latents(pipe, 2))
    assert not torch.allclose(in_turn[0], in_turn[1])
    torch.manual_seed(5)
    assert torch.equal(latents(pipe, generator=None), latents(pipe))


def test_seeds_have_keys_of_their_own():
    keys = {draw_key(torch.Generator().manual_seed(seed)) for seed in range(1000)}
    assert len(keys) == 1000 and min(keys) >= 0 and max(keys) > 2**62


def test_the_setting_is_kept_and_a_call_can_have_another(pipe, tmp_path):
    assert pipe.config.noise == "independent"
    independent = latents(pipe, noise=None)
    assert torch.equal(independent, latents(pipe, noise="independent"))
    assert not torch.allclose(independent, latents(pipe))
    given = torch.randn(independent.shape)
    assert torch.equal(latents(pipe, latents=given), given)
    pipe.save_pretrained(tmp_path)
    loaded = UltraGenPipeline.from_pretrained(tmp_path, noise="spectral")
    for each in (loaded, loaded.base_pipeline()):
        assert torch.equal(latents(each, noise=None), latents(pipe))
    loaded.save_pretrained(tmp_path / "spectral")
    again = UltraGenPipeline.from_pretrained(tmp_path / "spectral")
    assert again.config.noise == "spectral"


def test_a_call_draws_as_it_is_told(pipe):
    run = {"prompt": "a lake", "height": 96, "width": 128, "num_frames": 5,
           "num_inference_steps": 1, "output_type": "latent"}  # fmt: skip

    def made(**settings) -> torch.Tensor:
        return pipe(**run, generator=torch.Generator().manual_seed(5), **settings).frames

    noise = latents(pipe, height=96, width=128, num_frames=5)
    assert torch.equal(made(noise="spectral"), pipe(**run, latents=noise).frames)
    assert torch.equal(made(), made(noise="independent"))


def test_an_unknown_noise_is_refused(pipe):
    with pytest.raises(ValueError, match=r"'independent', 'spectral'.*not 'pink'"):
        latents(pipe, noise="pink")
    with pytest.raises(ValueError, match="not 'pink'"):
        UltraGenPipeline(**pipe.components, noise="pink")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_has_the_same_noise(pipe):
    found = latents(pipe, device=torch.device("cuda"))
    assert torch.equal(found.cpu(), latents(pipe))
    own = latents(pipe, generator=torch.Generator("cuda").manual_seed(5))
    assert own.isfinite().all()
