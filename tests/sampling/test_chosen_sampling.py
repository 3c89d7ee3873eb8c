"""Another solver and another shift for a run, while the pipeline stays as it is."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from tiny import tiny_pipeline

from ultragen.pipeline import UltraGenPipeline
from ultragen.sampling.solvers import check_scheduler, chosen_scheduler

RUN = {
    "prompt": "a calm lake",
    "height": 96,
    "width": 128,
    "num_frames": 5,
    "num_inference_steps": 4,
    "guidance_scale": 3.0,
    "output_type": "latent",
}
EULER = FlowMatchEulerDiscreteScheduler(shift=5.0)
UNIPC = UniPCMultistepScheduler(
    prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
)


@pytest.fixture(scope="module")
def built() -> UltraGenPipeline:
    """Its own shift grows with the frame, and its own solver is of second order."""
    return tiny_pipeline()


@pytest.fixture
def pipe(built: UltraGenPipeline) -> UltraGenPipeline:
    return copy.deepcopy(built)


def latents_of(pipe: UltraGenPipeline) -> torch.Tensor:
    return pipe(**RUN, generator=torch.Generator().manual_seed(0)).frames


def levels(scheduler) -> list[float]:
    scheduler = copy.deepcopy(scheduler)
    if isinstance(scheduler, UniPCMultistepScheduler):
        scheduler.set_timesteps(4)
    else:
        scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    return scheduler.sigmas.tolist()


@pytest.mark.parametrize("own", [EULER, UNIPC], ids=["euler", "unipc"])
def test_what_is_not_chosen_is_the_models_own(own):
    name = "unipc" if own is UNIPC else "euler"
    for solver in ("own", name):
        assert chosen_scheduler(own, solver, None) is own
    for solver in ("euler", "unipc"):
        kind = UniPCMultistepScheduler if solver == "unipc" else FlowMatchEulerDiscreteScheduler
        for shift in (None, 5.0):
            found = chosen_scheduler(own, solver, shift)
            check_scheduler(found)
            assert type(found) is kind
            assert levels(found) == levels(UNIPC if solver == "unipc" else EULER)
    assert type(chosen_scheduler(own, "own", 8.0)) is type(own)


@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
def test_a_fixed_shift_takes_the_place_of_one_that_grows(pipe, shift):
    expected = [shift * u / (1 + (shift - 1) * u) for u in (1.0, 0.75, 0.5, 0.25)] + [0.0]
    for own in (pipe.scheduler, EULER):
        found = chosen_scheduler(own, "own", shift)
        assert not found.config.use_dynamic_shifting
        assert levels(found) == pytest.approx(expected)


@pytest.mark.parametrize("scheduler", [EULER, UNIPC], ids=["euler", "unipc"])
def test_a_run_is_as_one_with_such_a_scheduler(built, pipe, scheduler):
    expected = copy.deepcopy(built)
    expected.scheduler = copy.deepcopy(scheduler)
    expected.register_to_config(solver_order=1)
    plain = latents_of(copy.deepcopy(built))
    name = "unipc" if scheduler is UNIPC else "euler"
    found = latents_of(pipe.with_sampling(name, 5.0))
    assert torch.equal(found, latents_of(expected)) and not torch.equal(found, plain)
    assert torch.equal(latents_of(pipe), plain)


def test_euler_takes_the_place_of_the_second_order(built, pipe):
    assert built.config.solver_order == 2
    first = copy.deepcopy(built)
    first.register_to_config(solver_order=1)
    assert torch.equal(latents_of(pipe.with_sampling("euler")), latents_of(first))
    assert not torch.equal(latents_of(pipe), latents_of(first))


def test_no_part_is_copied_and_the_pipeline_stays_as_it_is(built, pipe, tmp_path):
    scheduler = pipe.scheduler
    other = pipe.with_sampling("unipc", 3.0)
    assert pipe.with_sampling() is pipe
    assert other.transformer is pipe.transformer and other.vae is pipe.vae
    assert pipe.scheduler is scheduler and pipe.config == built.config
    assert other.config.scheduler[1] == "UniPCMultistepScheduler"
    other.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())
    assert settings["flow_shift"] == 3.0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("heun", None), "solver must be one of .*'euler', 'unipc'.*not 'heun'"),
        (("own", 0), "shift must be a number from 0.01 to 100, not 0"),
        (("own", float("nan")), "not nan"),
        (("unipc", None), "needs a fixed shift, and the model's own grows with the frame"),
    ],
)
def test_what_cannot_be_used_is_refused(pipe, settings, says):
    with pytest.raises(ValueError, match=says):
        pipe.with_sampling(*settings)
