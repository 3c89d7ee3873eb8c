"""Training: the loop on a line, the stages on tiny models, and what they leave behind."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from math import nan
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from paths import ROOT, SUPPORT
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from ultragen.model.classifier import AttributeClassifier, load_classifier
from ultragen.model.transformer import UltraGenTransformer3DModel
from ultragen.model.upscaler import UpscalerNetwork
from ultragen.pipeline import UltraGenPipeline
from ultragen.presets import EMBEDDED
from ultragen.runs.loading import load_models
from ultragen.sampling.flow import second_order
from ultragen.training import recipe
from ultragen.training.assemble import assemble
from ultragen.training.build import TINY_SIZE, build_autoencoder, build_classifier, build_pipeline
from ultragen.training.clip_sizes import ClipSize
from ultragen.training.data import ClipMaker, Pool, SceneStream, caption_variants, tokenize
from ultragen.training.graphs import GraphedGradients, Recorded
from ultragen.training.loop import Trainer
from ultragen.training.muon import MuonAdamW, hidden_matrices, orthogonalize
from ultragen.training.recipe import STAGES, Sources, train
from ultragen.training.render_processes import Renderers, pack, unpack
from ultragen.training.stage import Stage, TrainingConfig
from ultragen.training.stages import autoencoder_stage, distillation, flow_matching
from ultragen.training.stages.adversary import Adversary, balance
from ultragen.training.stages.autoencoder_stage import AutoencoderStage
from ultragen.training.stages.classifier_stage import ClassifierStage
from ultragen.training.stages.distillation import DistillStage, Trajectories
from ultragen.training.stages.flow_matching import FlowMatchingStage
from ultragen.training.stages.losses import contrast_weight
from ultragen.training.stages.transformer_stage import TextToLatents, mixed_precision
from ultragen.training.tiny import TINY
from ultragen.training.vocabulary import build_tokenizer
from ultragen.world.captions import WEATHERS
from ultragen.world.heldout import named_attributes
from ultragen.world.renderer import render
from ultragen.world.scene import ALLOWED, HELD_OUT_SEEDS, make_scene, sample_scene

# The loop, on a line


class Line(Stage):
    """Learns y = 3x; keeps what the loop asked of it."""

    def __init__(self, poison: int | None = None) -> None:
        torch.manual_seed(7)
        self.model = nn.Linear(1, 1)
        self.poison = poison
        self.steps: list[int] = []
        self.losses: list[float] = []
        self.exported: list[float] = []

    def batch(self, step: int) -> Tensor:
        self.steps.append(step)
        x = torch.randn((16, 1), generator=torch.Generator().manual_seed(step))
        x = x.to(self.model.weight.device)
        return x * nan if step == self.poison else x

    def loss(self, model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        loss = (model(batch) - 3 * batch).square().mean()
        self.losses.append(loss.item())
        return {"loss": loss}

    def sample_sheet(self) -> Image.Image:
        return Image.new("RGB", (8, 8))

    def export(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        assert not self.model.training
        self.exported.append(self.model.weight.item())


def settings(out: Path, steps: int, **changes) -> TrainingConfig:
    config = TrainingConfig(
        out=out, minutes=60, max_steps=steps, learning_rate=0.05, warmup_steps=2, decay=0.0,
        log_steps=1,
    )  # fmt: skip
    return replace(config, **changes)


def run(stage: Line, config: TrainingConfig) -> Line:
    Trainer(stage, config).train()
    return stage


def test_the_loop_learns(tmp_path):
    stage = run(Line(), settings(tmp_path, 60))
    assert stage.steps == list(range(60))
    assert sum(stage.losses[-5:]) < 0.1 * sum(stage.losses[:5])


def test_a_resumed_run_ends_where_a_whole_one_does(tmp_path):
    """Weights, optimiser and averaged weights go on as if nothing had happened."""
    whole = run(Line(), settings(tmp_path / "whole", 9))
    run(Line(), settings(tmp_path / "parts", 5))
    rest = run(Line(), settings(tmp_path / "parts", 9))
    assert rest.steps == [5, 6, 7, 8]
    assert rest.model.weight.item() == whole.model.weight.item()
    assert rest.exported[-1] == whole.exported[-1]


def test_a_finished_training_is_not_trained_on(tmp_path):
    first = run(Line(), settings(tmp_path, 4))
    again = run(Line(), settings(tmp_path, 4))
    assert again.steps == []
    assert again.exported[-1] == first.exported[-1]


def test_a_short_run_stops_with_a_checkpoint(tmp_path):
    """For machines that are lent for a shorter time than the training takes."""
    assert run(Line(), settings(tmp_path, 2, run_minutes=1e-9)).steps == []
    assert (tmp_path / "checkpoint").is_dir()
    assert run(Line(), settings(tmp_path, 2)).steps == [0, 1]


def test_a_profile_names_the_dearest_operations(tmp_path, capsys):
    run(Line(), settings(tmp_path, 8, profile_step=2))
    printed = capsys.readouterr().out
    assert "Self CPU" in printed and "aten::" in printed


def test_a_checkpoint_that_is_replaced_leaves_nothing_beside_it(tmp_path):
    run(Line(), settings(tmp_path, 8, checkpoint_minutes=1e-9))
    assert (tmp_path / "checkpoint").is_dir()
    assert not [path.name for path in tmp_path.iterdir() if path.suffix in (".new", ".old")]


def test_the_averaged_weights_are_exported(tmp_path):
    stage = run(Line(), settings(tmp_path, 30, ema_decay=0.9))
    weight = stage.model.weight.item()
    # The average follows from behind, and training's own weights are put back.
    assert stage.exported[-1] < weight
    assert stage.model.training
    fast = run(Line(), settings(tmp_path / "fast", 30, ema_decay=0.0))
    assert fast.model.weight.item() == weight
    assert fast.exported[-1] == pytest.approx(weight)


def test_a_loss_that_is_no_number_stops_the_training(tmp_path):
    run(Line(), settings(tmp_path, 3))
    with pytest.raises(FloatingPointError, match=r"Step 6.*checkpoint.*learning rate"):
        run(Line(poison=5), settings(tmp_path, 9))
    # What was saved before is untouched.
    assert run(Line(), settings(tmp_path, 4)).steps == [3]


def test_logs_and_sample_sheets(tmp_path):
    run(Line(), settings(tmp_path, 3))
    assert (tmp_path / "samples" / "000003.png").exists()
    assert list(tmp_path.rglob("events.out.tfevents.*"))


def test_the_learning_rate_rises_holds_and_falls(tmp_path):
    trainer = Trainer(Line(), settings(tmp_path, 9, warmup_steps=4, decay=0.5))
    assert trainer.learning_rate(0.0) == pytest.approx(0.05 / 4)
    trainer.progress.step = 100
    rates = [trainer.learning_rate(done) for done in (0.0, 0.5, 0.75, 0.9, 1.0)]
    assert rates == pytest.approx([0.05, 0.05, 0.025, 0.01, 0.0005])


@pytest.mark.parametrize("minutes", [0, -1, nan])
def test_minutes_must_be_positive(tmp_path, minutes):
    with pytest.raises(ValueError, match="minutes must be positive"):
        TrainingConfig(out=tmp_path, minutes=minutes)


# Data


def test_streams_never_meet():
    """Neither each other, nor the scenes that are held out."""
    starts = [(rank, start) for rank in (0, 1, 63) for start in (0, 1, 4000)]
    seeds = [[s.seed for s in SceneStream(*start).take(20)] for start in starts]
    flat = list(itertools.chain.from_iterable(seeds))
    assert len(set(flat)) == len(flat)
    assert not any(seed in HELD_OUT_SEEDS for seed in flat)


def test_a_stream_goes_on():
    stream = SceneStream(0, 0)
    first = [scene.seed for scene in stream.take(3) + stream.take(2)]
    assert first == [scene.seed for scene in SceneStream(0, 0).take(5)]


def test_a_pool_keeps_the_newest():
    numbers = itertools.count()

    def make() -> tuple[Tensor, Tensor]:
        values = torch.tensor([next(numbers) for _ in range(3)])
        return values, -values

    pool = Pool(make, capacity=4, share=0.0, first=3)
    pool.refresh()
    made = pool.made
    assert len(pool) == min(made, 4)
    while pool.made < made + 9:
        pool.put(make())
    values, negatives = pool.sample(200)
    assert set(values.tolist()) == set(range(pool.made - 4, pool.made))
    assert torch.equal(negatives, -values)


def test_a_pool_that_is_not_full_gives_only_what_was_made():
    pool = Pool(None, capacity=100, share=0.0, first=3)
    pool.put((torch.full((3,), 5.0),))
    pool.rings[0][3:] = nan
    assert torch.equal(pool.sample(50)[0], torch.full((50,), 5.0))


def test_captions_vary_and_some_say_less():
    scene = sample_scene(3)
    texts = caption_variants(scene, 6)
    assert len(texts) == 6 and all(texts)
    assert texts == caption_variants(scene, 6)
    assert len(set(texts)) > 1


def test_every_second_wording_names_the_side_of_the_sun_or_moon():
    """Of those that lack no clauses."""
    scenes = [make_scene(seed, celestial=body) for seed in range(60) for body in ("sun", "moon")]
    shares = []
    for number in range(5):
        texts = [(caption_variants(scene, 6)[number], scene.attributes) for scene in scenes]
        shares.append(sum("celestial_side" in named_attributes(a, text) for text, a in texts))
    assert shares[1] == shares[3] == len(scenes)
    assert max(shares[0], shares[2], shares[4]) < 0.7 * len(scenes)


def test_foul_weather_is_never_left_unsaid():
    """Who does not name the weather is shown fair weather."""
    scenes = [make_scene(seed, weather=weather) for seed in range(40) for weather in WEATHERS]
    for scene in scenes:
        weather = scene.attributes.weather
        unsaid = [
            text
            for text in caption_variants(scene, 6)
            if not any(clause in text for clause in WEATHERS[weather])
        ]
        assert not unsaid or weather in ("clear", "scattered"), (weather, unsaid)


def test_tokens_have_one_length():
    tokenizer = build_tokenizer(["a", "lake"], 8)
    ids = tokenize(tokenizer, ["a lake", "", "A lake, a Zorgon.", "lake " * 50])
    assert ids.shape == (4, 8)
    names = [tokenizer.convert_ids_to_tokens(row) for row in ids.tolist()]
    assert names[0][:4] == ["a", "lake", "</s>", "<pad>"]
    assert names[1][:2] == ["</s>", "<pad>"]
    assert names[2][:7] == ["a", "lake", ",", "a", "<unk>", ".", "</s>"]


def test_clips_are_normalised_latents_with_their_captions():
    pipe = build_pipeline(TINY_SIZE, ["a"])
    pipe.vae.register_to_config(latents_mean=[0.5] * 8, latents_std=[2.0] * 8)
    make = ClipMaker(SceneStream(0, 0), pipe.vae, pipe.tokenizer, 64, 96, 5, number=2, wordings=3)
    latents, ids = make()
    assert latents.shape == (2, 8, 2, 4, 6) and ids.shape == (2, 3, TINY_SIZE.text_length)
    video = render(SceneStream(0, 0).take(2), 64, 96, 5)
    with torch.no_grad():
        expected = (pipe.vae.encode(2 * video - 1).latent_dist.mode() - 0.5) / 2
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-5)


# Objectives


def test_the_autoencoder_learns_a_small_pool():
    stage = small_autoencoder_stage()
    stage.setup(torch.device("cpu"), 0, 1)
    stage.pool.put(stage.pool.make())
    batch = stage.pool.sample(2)[0].float() / 127.5 - 1
    optimizer = torch.optim.Adam(stage.model.parameters(), lr=3e-3)
    losses = []
    for _ in range(120):
        loss = stage.loss(stage.model, batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def small_autoencoder_stage(**settings) -> AutoencoderStage:
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autoencoder_stage, "Adversary", partial(Adversary, channels=(8, 16, 16)))
        return AutoencoderStage(
            build_autoencoder(TINY_SIZE), batch_size=2, crop=32, num_frames=5, pool=2,
            frame_sizes=((64, 96),), **settings,
        )  # fmt: skip


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


def flow_stage(sizes: tuple[ClipSize, ...], render_on: tuple[str, ...] = ()) -> FlowMatchingStage:
    torch.manual_seed(0)
    pipe = build_pipeline(TINY_SIZE, ["a", "lake"])
    stage = FlowMatchingStage(pipe, sizes, train_text=True, render_on=render_on)
    if not render_on:
        stage.setup(torch.device("cpu"), 0, 1)
    return stage


SMALL = ClipSize(96, 128, num_frames=5, batch_size=2, pool=2, first=2, chunk=2, windows=(2,))


def test_the_flow_matching_loss_is_of_noise_minus_data(monkeypatch):
    """At x_σ = (1 − σ)x + σε, a model that answers ε − x has no loss."""
    stage = flow_stage((SMALL,))
    stage.pipeline.register_to_config(prediction="velocity")
    clean, noise = torch.randn(2, 8, 2, 6, 8), torch.randn(2, 8, 2, 6, 8)
    monkeypatch.setattr(torch, "randn_like", lambda *_: noise)
    seen = {}

    def perfect(noisy, timestep, ids, **extra):
        sigma = timestep.view(-1, 1, 1, 1, 1) / 1000
        torch.testing.assert_close(noisy[:, :8], (1 - sigma) * clean + sigma * noise)
        seen.update(extra)
        return noise - clean

    losses = stage.loss(perfect, (SMALL, 2, clean, torch.zeros(2, 64, dtype=torch.long)))
    assert losses["loss"] == 0
    assert seen == {"windows": 2}


@pytest.mark.parametrize("side", [1, 2, 4])
def test_noise_levels_are_shifted_as_the_schedule_is(side):
    """The median is the shifted half: where the pipeline's schedule has its middle."""
    stage = flow_stage((SMALL,))
    size = replace(SMALL, height=288 * side, width=512 * side)
    sigmas = stage.draw_sigmas(20_001, size, torch.device("cpu"))
    _, schedule = stage.pipeline.prepare_schedule(2, 144 * side**2, torch.device("cpu"))
    assert sigmas.min() > 0 and sigmas.max() < 1
    assert sigmas.median().item() == pytest.approx(schedule[1].item(), abs=0.02)


def test_a_preconditioned_model_without_error_has_no_loss(monkeypatch):
    """Its output, made from the data, gives the data's velocity."""
    stage = flow_stage((SMALL,))
    clean, noise = torch.randn(2, 8, 2, 6, 8), torch.randn(2, 8, 2, 6, 8)
    monkeypatch.setattr(torch, "randn_like", lambda *_: noise)

    def perfect(noisy, timestep, ids, **extra):
        sigma = timestep.view(-1, 1, 1, 1, 1) / 1000
        signal = TINY_SIZE.data_std**2 * (1 - sigma)
        square = signal * (1 - sigma) + sigma**2
        return (clean - signal / square * noisy[:, :8]) * square.sqrt() / sigma

    losses = stage.loss(perfect, (SMALL, 2, clean, torch.zeros(2, 64, dtype=torch.long)))
    assert losses["loss"].item() < 1e-6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_recorded_steps_give_the_gradients_of_steps_one_by_one():
    model = torch.nn.Linear(4, 3).cuda()
    parameters = list(model.parameters())
    recorded = GraphedGradients(
        lambda batch: {"loss": model(batch[1]).square().mean() * batch[0]},
        parameters,
        nullcontext,
    )
    for factor, number in ((1, 2), (3, 2), (1, 5), (3, 2)):
        x = torch.randn(number, 4, device="cuda")
        loss = recorded((factor, x))["loss"]
        expected = model(x).square().mean() * factor
        torch.testing.assert_close(loss, expected.detach())
        wanted = torch.autograd.grad(expected, parameters)
        for parameter, gradient in zip(parameters, wanted, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)
    assert len(recorded.recordings) == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_recorded_function_gives_what_it_gave_for_every_kind_of_batch():
    recorded = Recorded(lambda batch: batch[0] * batch[1].sin())
    for factor, number in ((1, 2), (3, 2), (1, 5), (3, 2)):
        x = torch.randn(number, 4, device="cuda")
        torch.testing.assert_close(recorded((factor, x)), factor * x.sin())
    assert len(recorded.recordings) == 3


def launch(*command: str | Path) -> None:
    """Runs a program in two processes."""
    root = ROOT
    ended = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         *map(str, command)],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path):
    launch(SUPPORT / "distributed.py", tmp_path)
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert one == two
    assert one["processes"] == 2
    assert one["start"] == 5  # the first one's
    assert one["gradients"] == [1.5] * 3
    assert one["end"] < one["start"]


@pytest.mark.slow
def test_two_processes_finish_a_stage(tmp_path):
    """From the command line, to the weights that later stages start from."""
    command = ("train", "autoencoder", "--tiny", "--max-steps", "2", "--out", tmp_path)
    launch("-m", "ultragen", *command)
    assert (tmp_path / "model" / "vae" / "config.json").is_file()


def test_all_processes_choose_the_same_clips():
    sizes = tuple(replace(SMALL, height=96 + 32 * i, windows=(2, 4)) for i in range(3))
    stages = [flow_stage(()) for _ in range(2)]
    for seed, stage in enumerate(stages):
        stage.sizes, stage.seed = sizes, seed
    choices = [[stage.choose(step) for step in range(40)] for stage in stages]
    assert choices[0] == choices[1]
    assert len(set(choices[0])) == 6


def test_text_encoder_and_transformer_learn_together():
    stage = flow_stage((SMALL,))
    stage.loss(stage.model, stage.batch(0))["loss"].backward()
    for part in ("text_encoder", "transformer"):
        assert any(p.grad is not None and p.grad.any()
                   for p in getattr(stage.model, part).parameters()), part  # fmt: skip
    assert all(p.grad is None for p in stage.pipeline.vae.parameters())


# Distillation


def straight(velocity: Tensor):
    """A teacher whose trajectories are straight lines."""
    return lambda x, sigma, ids: velocity.expand_as(x) * (1 + ids.view(-1, 1, 1, 1, 1))


def test_trajectories_hold_all_steps_and_begin_anew():
    torch.manual_seed(0)
    starts = itertools.count()

    def start(number: int) -> tuple[Tensor, Tensor]:
        ids = torch.tensor([next(starts) for _ in range(number)])
        return torch.randn(number, 2, 1, 2, 2), ids

    sigmas = torch.tensor([1.0, 0.8, 0.5, 0.3, 0.2, 0.1, 0.0])
    velocity = torch.randn(1, 2, 1, 2, 2)
    clips = Trajectories(sigmas, start, straight(velocity), 7)
    assert clips.steps == 3
    assert clips.step == [0, 1, 2, 0, 1, 2, 0]
    seen = set()
    for _ in range(6):
        latents, sigma, ids, learnt = clips.advance()
        assert set(sigma.tolist()) <= {1.0, 0.5, sigmas[4].item()}
        # A straight line's mean velocity is the line's own.
        torch.testing.assert_close(learnt, straight(velocity)(latents, sigma, ids))
        seen |= set(ids.tolist())
    assert len(seen) == 18  # a clip on its way is replaced when it arrives, and only then


FALLING = [1.0, 0.95, 0.85, 0.6, 0.45, 0.2, 0.0]  # three steps, and one between each two


def bent(x: Tensor, sigma: Tensor, ids: Tensor) -> Tensor:
    """A teacher whose trajectories are not straight."""
    return torch.sin(3 * x) * (1 + sigma.view(-1, 1, 1, 1, 1)) + x


def four_numbers(number: int) -> tuple[Tensor, Tensor]:
    return torch.randn(number, 1, 1, 2, 2, dtype=torch.double), torch.zeros(number)


def test_the_teacher_goes_where_its_sampler_does():
    """The pipeline's sampler of second order, with twice as many steps as the student has."""
    torch.manual_seed(0)
    clips = Trajectories(torch.tensor(FALLING, dtype=torch.double), four_numbers, bent, 1)
    x, clean = clips.latents, []
    for step in range(3):
        latents, _, ids, velocity = clips.advance()
        torch.testing.assert_close(latents, x)
        for half in range(2 * step, 2 * step + 2):
            level = torch.tensor([FALLING[half]])
            taken = bent(x, level, ids)
            clean = [*clean[-1:], x - FALLING[half] * taken]
            taken = second_order(taken, clean, FALLING[max(half - 1, 0) : half + 2])
            x = x + (FALLING[half + 1] - FALLING[half]) * taken
        length = FALLING[2 * step + 2] - FALLING[2 * step]
        torch.testing.assert_close(latents + length * velocity, x)
    assert not torch.equal(clips.latents, x)  # the next clip's noise


def test_clips_that_begin_half_way_have_the_teacher_s_past():
    torch.manual_seed(0)
    sigmas = torch.tensor(FALLING, dtype=torch.double)
    noise, ids = four_numbers(1)
    all_way = Trajectories(sigmas, lambda number: (noise, ids), bent, 1)
    half_way = Trajectories(
        sigmas, lambda number: (noise.expand(number, -1, -1, -1, -1), ids.expand(number)), bent, 3
    )
    _, _, _, velocity = half_way.advance()
    for step in range(3):
        _, _, _, alone = all_way.advance()
        torch.testing.assert_close(velocity[step : step + 1], alone)


def test_the_student_leads_every_second_clip():
    """It is taught what the teacher would do at the states that it led to itself."""
    torch.manual_seed(0)
    asked = []

    def student(x: Tensor, sigma: Tensor, ids: Tensor) -> Tensor:
        asked.append(sigma)
        return torch.full_like(x, 2.0)

    sigmas = torch.tensor(FALLING, dtype=torch.double)
    clips = Trajectories(sigmas, four_numbers, bent, 3, student)
    led = 0
    for _ in range(12):
        before, step, own = clips.latents, list(clips.step), list(clips.own)
        _, _, _, velocity = clips.advance()
        for clip in range(3):
            if step[clip] == 2:  # arrived, and began anew
                continue
            after = sigmas[2 * step[clip] + 2] - sigmas[2 * step[clip]]
            by = 2.0 if own[clip] else velocity[clip]
            torch.testing.assert_close(clips.latents[clip], before[clip] + after * by)
            led += own[clip]
    assert 8 <= led <= 16  # of 24
    assert asked


def test_the_teacher_is_guided_and_stays_as_it_was():
    torch.manual_seed(0)
    pipe = build_pipeline(TINY_SIZE, ["a", "lake"])
    for parameter in pipe.transformer.parameters():
        parameter.data.normal_(0, 0.1)
    stage = DistillStage(pipe, (SMALL,), steps=2, guidance_scale=3.0)
    stage.setup(torch.device("cpu"), 0, 1)
    _, _, latents, sigma, ids, velocity = stage.batch(0)
    [trajectory] = stage.trajectories.values()
    with torch.no_grad(), mixed_precision(latents.device):
        told = stage.velocity(stage.model, latents, sigma, ids, 2)
        plain = stage.velocity(stage.model, latents, sigma, stage.empty.expand_as(ids), 2)
    guided = trajectory.guided(latents, sigma, ids)
    torch.testing.assert_close(guided, plain + 3 * (told - plain), rtol=1e-3, atol=1e-3)
    assert not torch.equal(velocity, guided)  # the mean of a step, not its start
    before = [p.clone() for p in stage.teacher.parameters()]
    stage.loss(stage.model, stage.batch(1))["loss"].backward()
    with torch.no_grad():
        for parameter in stage.model.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, stage.teacher.parameters(), strict=True))
    assert all(p.grad is None for p in stage.teacher.parameters())


# Muon


def test_orthogonalised_matrices_have_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((3, 8, 20), (2, 20, 8), (1, 12, 12)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
        assert values.min() > 0.3 and values.max() < 1.3


def test_matrices_of_one_shape_do_not_touch_each_other():
    torch.manual_seed(0)
    together = [nn.Parameter(torch.randn(6, 4)) for _ in range(3)]
    alone = [nn.Parameter(p.detach().clone()) for p in together]
    gradients = torch.randn(3, 6, 4)
    both = [MuonAdamW(together, [], lr=0.01), *(MuonAdamW([p], [], lr=0.01) for p in alone)]
    for _ in range(3):
        for parameters in (together, alone):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
        for optimizer in both:
            optimizer.step()
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b)


def test_muon_leaves_other_parameters_to_adamw():
    torch.manual_seed(0)
    hidden, bias = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4))
    plain = nn.Parameter(bias.detach().clone())
    ours = MuonAdamW([hidden], [bias], lr=0.01, weight_decay=0.1)
    adamw = torch.optim.AdamW([plain], lr=0.01, weight_decay=0.1)
    start = hidden.detach().clone()
    for _ in range(5):
        hidden.grad, bias.grad = torch.randn(4, 4), torch.randn(4)
        plain.grad = bias.grad.clone()
        ours.step()
        adamw.step()
    assert torch.equal(bias, plain)
    assert not torch.equal(hidden, start) and hidden.grad is not None


def test_hidden_matrices_are_those_of_the_blocks():
    pipe = build_pipeline(TINY_SIZE, ["a", "lake"])
    model = TextToLatents(pipe.text_encoder, pipe.transformer)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)] for p in hidden_matrices(model)}
    assert "transformer.blocks.0.attn1.to_q.weight" in found
    assert any(name.startswith("text_encoder.encoder.block.0") for name in found)
    assert not any(
        word in name
        for name in found
        for word in ("lora", "gate", "embed", "proj_out", "norm", "table", "conv")
    )


# Devices that render


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.long, torch.float32, torch.uint8])
def test_packed_tensors_arrive_as_they_were(dtype):
    x = torch.arange(24).reshape(2, 3, 4).to(dtype).transpose(0, 1)
    values, kind = pickle.loads(pickle.dumps(pack(x)))
    assert torch.equal(unpack(values, kind), x) and kind == dtype


def numbers(device: torch.device, rank: int):
    """Two kinds of examples that tell who made them."""
    counts = [itertools.count(), itertools.count()]

    def make(kind: int) -> tuple[Tensor, ...]:
        time.sleep(0.02)
        return (torch.tensor([[rank, kind, next(counts[kind])]]),)

    return [partial(make, kind) for kind in (0, 1)]


def failing(device: torch.device, rank: int):
    raise OSError("no such device")


def failing_later(device: torch.device, rank: int):
    left = itertools.count()

    def make() -> tuple[Tensor, ...]:
        if next(left) == 2:
            raise OSError("device lost")
        return (torch.zeros(1, 1),)

    return [make]


@pytest.mark.slow
def test_renderers_make_what_training_starts_with_and_go_on():
    renderers = Renderers(numbers, weights=[0.8, 0.2], first=[4, 2], devices=["cpu", "cpu"])
    try:
        made: list[list[int]] = []
        while any(sum(m[0] == rank for m in made) < 25 for rank in (0, 1)):
            made += [x[0].tolist() for _, (x,) in renderers.collect(wait=True)]
    finally:
        renderers.stop()
    for rank in (0, 1):
        kinds = [kind for r, kind, _ in made if r == rank]
        assert kinds[:3] == [0, 0, 1]
        # After these, time is shared as asked; both kinds take equally long.
        assert 0.6 < kinds[3:].count(0) / len(kinds[3:]) < 1
    assert not any(process.is_alive() for process in renderers.processes)


@pytest.mark.slow
def test_a_renderer_that_ends_is_reported():
    renderers = Renderers(failing, weights=[1.0], first=[1], devices=["cpu"])
    with pytest.raises(RuntimeError, match="rendering processes ended"):
        renderers.collect(wait=True)
    renderers.stop()


@pytest.mark.slow
def test_a_renderer_that_ends_while_training_goes_on_is_reported():
    renderers = Renderers(failing_later, weights=[1.0], first=[1], devices=["cpu"])
    assert renderers.collect(wait=True)
    with pytest.raises(RuntimeError, match="rendering processes ended"):
        for _ in range(1000):
            renderers.collect(wait=False)
            time.sleep(0.05)
    renderers.stop()
    renderers.stop()


@pytest.mark.slow
def test_renderers_end_with_the_training_that_is_killed(tmp_path):
    """Also while they wait for room."""
    script = tmp_path / "training.py"
    script.write_text(
        "import time\n"
        "from test_training import Renderers, numbers\n"
        "if __name__ == '__main__':\n"
        "    made = Renderers(numbers, [0.5, 0.5], [1, 1], ['cpu'])\n"
        "    made.collect(wait=True)\n"
        "    print(*(p.pid for p in made.processes), flush=True)\n"
        "    time.sleep(600)\n"
    )
    path = os.pathsep.join(map(str, (Path(__file__).parent, SUPPORT, ROOT)))
    training = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert training.stdout is not None
    pids = [int(pid) for pid in training.stdout.readline().split()]
    training.kill()
    training.wait()
    assert pids
    for _ in range(200):
        if not any(running(pid) for pid in pids):
            return
        time.sleep(0.1)
    pytest.fail(f"{pids} are still running")


def running(pid: int) -> bool:
    """Whether a process is there and not a zombie that nobody has asked for its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("world, devices", [(1, 1), (2, 4), (4, 8), (3, 5)])
def test_no_two_processes_see_the_same_scenes(monkeypatch, world, devices):
    seen: list[int] = list(range(world))  # those that train

    class Listed:
        def __init__(self, makers, weights, first, devices):
            seen.extend(makers.rank + makers.stride * number for number in range(len(devices)))

    monkeypatch.setattr(flow_matching, "Renderers", Listed)
    for rank in range(world):
        stage = flow_stage((SMALL,), tuple(f"cuda:{i}" for i in range(devices)))
        stage.start_rendering(torch.device("cpu"), rank, world)
    assert len(set(seen)) == len(seen) == world + devices


def test_fewer_devices_than_processes_are_refused():
    stage = flow_stage((SMALL,), ("cuda:1",))
    with pytest.raises(ValueError, match="at least 2 devices"):
        stage.start_rendering(torch.device("cpu"), 0, 2)


def test_a_training_that_fails_is_torn_down(tmp_path):
    class Torn(Line):
        torn = 0

        def teardown(self) -> None:
            self.torn += 1

    stage = Torn(poison=1)
    with pytest.raises(FloatingPointError):
        run(stage, settings(tmp_path, 3))
    assert stage.torn == 1


# Stages


def test_an_unknown_stage_names_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="Unknown stage 'upscale': choose from autoencoder, "):
        train("upscale", TrainingConfig(out=tmp_path), TINY)


@pytest.mark.parametrize(
    "stage, first",
    [("decoder", "autoencoder"), ("base", "autoencoder"), ("ultragen", "base"),
     ("upscaler", "autoencoder")],
)  # fmt: skip
def test_a_stage_names_the_one_to_train_first(tmp_path, stage, first):
    with pytest.raises(ValueError, match=f"run `train {first}` with the same --out first"):
        train(stage, TrainingConfig(out=tmp_path), TINY)


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize(
    "stage, options",
    [("autoencoder", replace(TINY, autoencoder=(*TINY.autoencoder, ("anchor", 0.01)))),
     ("base", replace(TINY, freeze_text=True))],
)  # fmt: skip
def test_what_shall_stay_must_be_there(tmp_path, stage, options, start):
    """Also where the folder to start from lacks the part."""
    with pytest.raises(ValueError, match=r"name (its|the) pipeline folder to start from"):
        train(stage, TrainingConfig(out=tmp_path / "out"), options, tmp_path if start else None)


def steps(out: Path, number: int) -> TrainingConfig:
    return TrainingConfig(out=out, minutes=60, max_steps=number, log_steps=2, warmup_steps=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """All stages, a few steps each."""
    out = tmp_path_factory.mktemp("training")
    for stage in STAGES:
        assert train(stage, steps(out, 3), TINY) == out / "model"
    return out


def weights(folder: Path) -> dict[str, Tensor]:
    [file] = folder.glob("*.safetensors")
    return load_file(file)


@pytest.mark.slow
@pytest.mark.parametrize(
    "folder, load",
    [
        ("vae", type(build_autoencoder(TINY_SIZE)).from_pretrained),
        ("base_transformer", WanTransformer3DModel.from_pretrained),
        ("transformer", UltraGenTransformer3DModel.from_pretrained),
        ("upscaler", UpscalerNetwork.from_pretrained),
        ("classifier", AttributeClassifier.from_pretrained),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_exported_folders_load(trained, folder, load):
    model = load(trained / "model" / folder)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


@pytest.mark.slow
def test_stages_build_on_each_other(trained):
    model = trained / "model"
    config = json.loads((model / "vae" / "config.json").read_text())
    assert len(config["latents_mean"]) == len(config["latents_std"]) == TINY_SIZE.z_dim
    assert min(config["latents_std"]) > 0
    # The decoder's stage leaves the encoder, and so every latent, as it is.
    before, after = weights(trained / "autoencoder/export/vae"), weights(model / "vae")
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder"}
    assert len(set(config["latents_std"])) == 1
    # UltraGen starts from the base model, and all of it learns.
    base, native = weights(model / "base_transformer"), weights(model / "transformer")
    shared = [name for name in base if name.endswith("attn1.to_q.weight")]
    assert shared
    for name in shared:
        difference = (native[name] - base[name]).abs().max()
        assert 0 < difference < 0.5 * base[name].abs().max()


@pytest.mark.slow
def test_the_text_encoder_can_be_left_as_it_is(trained, tmp_path):
    options = replace(TINY, freeze_text=True)
    model = train("base", steps(tmp_path, 2), options, start=trained / "model")
    for part, same in (("text_encoder", True), ("base_transformer", False)):
        before, after = weights(trained / "model" / part), weights(model / part)
        assert all(torch.equal(before[name], after[name]) for name in before) == same


@pytest.fixture
def older(trained, tmp_path):
    """Weights whose text encoder reads whole prompts, as it did before clauses."""
    folder = tmp_path / "older"
    shutil.copytree(trained / "model", folder)
    path = folder / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    del config["clause_ends"]  # a text encoder that is built afresh has them
    path.write_text(json.dumps(config))
    return folder


def reads_by_clauses(model):
    return "clause_ends" in json.loads((model / "text_encoder" / "config.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("clauses", [False, True])
def test_the_text_encoder_reads_by_clauses_with_the_weights_that_it_has(older, tmp_path, clauses):
    options = replace(TINY, freeze_text=True, clauses=clauses)
    model = train("base", steps(tmp_path, 2), options, start=older)
    before, after = weights(older / "text_encoder"), weights(model / "text_encoder")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert reads_by_clauses(model) == clauses


@pytest.mark.slow
def test_the_text_encoder_can_learn_to_read_by_clauses(older, trained, tmp_path, monkeypatch):
    """From weights that read whole prompts; stages after it, and the pipeline, read so too."""
    options = replace(TINY, clauses=True)
    model = train("base", steps(tmp_path, 2), options, start=older)
    assert reads_by_clauses(model)
    read = []
    stage = recipe.with_trained_parts

    def with_trained_parts(*arguments):
        read.append(stage(*arguments))
        return read[-1]

    monkeypatch.setattr(recipe, "with_trained_parts", with_trained_parts)
    train("ultragen", steps(tmp_path, 2), TINY, start=older)
    assert read[0].text_encoder.config.clause_ends  # this training's, not that of the start
    for part in ("vae", "upscaler"):
        shutil.copytree(trained / "model" / part, model / part)
    assemble(model, tmp_path / "pipeline", TINY)
    pipe = UltraGenPipeline.from_pretrained(tmp_path / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.text_encoder.config.clause_ends
    prompts = [f"the sun, pan {side}" for side in ("left", "right")]
    [sun, other], _ = pipe.encode_prompt(prompts, do_classifier_free_guidance=False)
    assert torch.equal(sun[:3], other[:3])
    assert not torch.equal(sun[3:], other[3:])
    settings = {"height": 96, "width": 128, "num_frames": 5, "num_inference_steps": 2}
    assert torch.isfinite(pipe("a lake, the sun", output_type="pt", **settings).frames[0]).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, part", [("base-distill", "base_transformer"), ("distill", "transformer")]
)
def test_the_teacher_of_a_distillation_stays(trained, tmp_path, monkeypatch, stage, part):
    """The undistilled weights, also for a training that goes on; what it learns lies beside."""
    undistilled = weights(trained / "model" / part)
    teachers = []
    seen = distillation.DistillStage.setup

    def setup(self, *arguments):
        seen(self, *arguments)
        teachers.append({k: v.clone() for k, v in self.teacher.transformer.state_dict().items()})

    monkeypatch.setattr(distillation.DistillStage, "setup", setup)
    for number in (2, 4):
        train(stage, steps(tmp_path, number), TINY, start=trained / "model")
    assert len(teachers) == 2
    for teacher in teachers:
        assert all(torch.equal(teacher[name], value) for name, value in undistilled.items())
    learnt = weights(tmp_path / "model" / "distilled" / part)
    assert any(not torch.equal(learnt[name], value) for name, value in undistilled.items())


@pytest.mark.slow
def test_a_stage_trains_on_what_others_render(trained, tmp_path):
    options = replace(TINY, render_on=("cpu",))
    train("ultragen", steps(tmp_path, 3), options, start=trained / "model")
    assert (tmp_path / "model" / "transformer").is_dir()
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_stage_is_resumed_at_its_step(trained, capsys):
    train("base", steps(trained, 5), TINY)
    printed = capsys.readouterr().out
    assert "resumed at step 3" in printed
    assert "step      4" in printed and "step      6" not in printed
    assert (trained / "base" / "samples" / "000005.png").exists()


@pytest.mark.slow
def test_the_assembled_pipeline_loads_and_runs(trained, tmp_path):
    assemble(trained / "model", tmp_path, TINY)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert max(path.stat().st_size for path in files) < 9_000_000
    texts = [path.read_text() for path in files if path.suffix == ".json"]
    assert not any(str(trained) in text for text in texts)  # they go to other people
    stored = [load_file(path) for path in files if path.suffix == ".safetensors"]
    assert len(stored) >= 5
    assert {v.dtype for part in stored for v in part.values()} == {torch.float16}
    pipe = UltraGenPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.config.solver_order == 1  # both are distilled
    preset = load_models(tmp_path).preset
    assert preset.num_inference_steps == dict(TINY.distill)["steps"]
    assert preset.guidance_scale == 1  # it is in the weights
    size = {"height": 96, "width": 128, "num_frames": 5, "num_inference_steps": 2}
    frames = pipe("a calm lake at sunset", **size).frames
    assert frames.shape == (1, 5, 96, 128, 3)
    base = pipe.base_pipeline()("a calm lake at sunset", **size).frames
    assert base.shape == frames.shape
    assert pipe.unknown_words("a calm zorgon lake") == ["zorgon"]
    small = torch.rand(1, 3, 8, 8)
    assert UpscalerNetwork.from_pretrained(tmp_path / "upscaler")(small).shape == (1, 3, 32, 32)
    judge = load_classifier(tmp_path / "classifier")
    assert judge.classify(judge.reduce(torch.rand(5, 3, 64, 96)))["water"] in ALLOWED["water"]
    assert (tmp_path / "classifier/accuracy.json").exists()


def test_a_classifier_that_was_saved_is_trained_on_with_its_heads_in_their_places(tmp_path):
    """A saved configuration lists attributes by the alphabet, labels come in the world's order."""
    network = build_classifier(TINY_SIZE)
    network.save_pretrained(tmp_path)
    again = AttributeClassifier.from_pretrained(tmp_path)
    assert list(again.heads) != list(network.heads)
    settings = dict(TINY.classifier)
    stages = [ClassifierStage(x, **settings) for x in (network, again)]
    numbers = torch.tensor([[len(values) - 1 for values in ALLOWED.values()]] * 2)
    config = network.config
    video = torch.rand(2, 3, config.num_frames, config.height, config.width)
    losses = [stage.loss(stage.model, (video, numbers))["loss"] for stage in stages]
    torch.testing.assert_close(*losses)
    for stage in stages:
        stage.device = torch.device("cpu")
    assert torch.equal(*(stage.predictions() for stage in stages))


def test_a_classifier_of_another_world_is_not_trained_on():
    other = AttributeClassifier({"water": ["none"]}, channels=(8,), blocks=(1,))
    with pytest.raises(ValueError, match="start afresh"):
        ClassifierStage(other)


@pytest.mark.slow
def test_what_is_not_distilled_is_sampled_in_second_order(trained, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(trained / "model", model)
    assemble(model, tmp_path / "teachers", TINY, undistilled=True)
    shutil.rmtree(model / "distilled" / "transformer")
    with pytest.raises(ValueError, match="run `train distill` too"):
        assemble(model, tmp_path / "half", TINY)
    shutil.rmtree(model / "distilled")
    assemble(model, tmp_path / "plain", TINY)
    for folder in (tmp_path / "teachers", tmp_path / "plain"):
        pipe = UltraGenPipeline.from_pretrained(folder)
        assert pipe.config.solver_order == 2
        assert load_models(folder).preset == EMBEDDED
        taken, teacher = pipe.transformer.state_dict(), weights(model / "transformer")
        assert all(torch.equal(taken[name].half(), value.half()) for name, value in teacher.items())


@pytest.mark.slow
@pytest.mark.parametrize("stage, part", [("base", "base_transformer"), ("ultragen", "transformer")])
def test_a_stage_starts_from_given_weights(trained, tmp_path, stage, part):
    sources = Sources(tmp_path / "model", trained / "model")
    started = STAGES[stage](sources, TINY, 0).pipeline.transformer.state_dict()
    given = weights(trained / "model" / part)
    assert all(torch.equal(started[name], value) for name, value in given.items())


def test_a_start_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no folder .*nowhere to start from"):
        train("base", steps(tmp_path, 1), TINY, start=tmp_path / "nowhere")
