"""Distillation: what the teacher does, and what the student learns of it."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from training_stages import SMALL, steps

from ultragen.sampling.flow import second_order
from ultragen.training.build import TINY_SIZE, build_pipeline
from ultragen.training.stage_order import train
from ultragen.training.stages.distillation import RECORD, DistillStage
from ultragen.training.stages.trajectories import Trajectories
from ultragen.training.stages.transformer_stage import mixed_precision
from ultragen.training.tiny import TINY


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
    guided = trajectory.teacher.guided(latents, sigma, ids)
    torch.testing.assert_close(guided, plain + 3 * (told - plain), rtol=1e-3, atol=1e-3)
    assert not torch.equal(velocity, guided)  # the mean of a step, not its start
    before = [p.clone() for p in stage.teacher.parameters()]
    stage.loss(stage.model, stage.batch(1))["loss"].backward()
    with torch.no_grad():
        for parameter in stage.model.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, stage.teacher.parameters(), strict=True))
    assert all(p.grad is None for p in stage.teacher.parameters())


@pytest.mark.slow
def test_a_student_is_resumed_with_as_many_steps(trained, tmp_path, capsys):
    shutil.copytree(trained / "model", tmp_path / "model")
    three = replace(TINY, distill=(*TINY.distill, ("steps", 3)))
    train("distill", steps(tmp_path, 1), three)
    record = tmp_path / "model" / "distilled" / "transformer" / RECORD
    assert json.loads(record.read_text()) == {"steps": 3}
    with pytest.raises(ValueError, match="another student: 3 steps, not 2 steps"):
        train("distill", steps(tmp_path, 2), TINY)
    train("distill", steps(tmp_path, 2), three)
    assert "resumed at step 1" in capsys.readouterr().out
