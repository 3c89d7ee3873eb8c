"""`train wan-distill`: the 1.3B model in a few steps, without guidance."""

from __future__ import annotations

from inspect import Signature
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..presets import ASPECTS, PROMPTS, SUGGESTED, WAN, WAN_SHIFT
from .options import Aspect, NumFrames, ResolutionOption
from .train import parameters_of, stages, train
from .train_wan import SHARED, check_can_train, say_written, train_wan, wan_config

OF_TRAIN_WAN = (
    "base",
    "lora_rank",
    "lora_alpha",
    "lora_target",
    "batch",
    "minutes",
    "decay",
    "optimizer",
    "precision",
    "average",
    "recompute",
    "keep_on_host",
    "checkpoint_minutes",
    "checkpoint_every",
    "sample_every",
    "sample_prompt",
    "log_steps",
    "tracker",
)
"""Options that `train wan` has too."""
LEARNING_RATE = 1e-5  # of weights that are good already
LORA_LEARNING_RATE = 1e-4


def train_wan_distill(
    given: dict[str, Any],
    prompts: Annotated[
        Path, typer.Option(help="Text file with a prompt a line; no clips are needed.")
    ],
    start: Annotated[
        str | None,
        typer.Option(
            help="The weights that are distilled, UltraGen's or T3-Video's: a file, a folder, a "
            "repository, or the --out of an earlier training; without it the base model."
        ),
    ] = None,
    steps: Annotated[
        int, typer.Option(min=1, help="Denoising steps of the student; the teacher takes twice.")
    ] = 8,
    teacher_guidance_scale: Annotated[
        float,
        typer.Option(
            "--teacher-guidance-scale",
            "--teacher-guidance",
            help="The teacher's guidance, which the student learns.",
        ),
    ] = WAN.guidance_scale,
    negative_prompt: Annotated[
        str | None,
        typer.Option(help="What this guidance leads away from; without it the model's own."),
    ] = None,
    shift: Annotated[
        float, typer.Option(help="Shift of the noise levels, above 1 towards more noise.")
    ] = WAN_SHIFT,
    resolution: ResolutionOption = None,
    aspect: Aspect = None,
    num_frames: NumFrames = None,
    trained: Annotated[
        Literal["all", "new", "lora"],
        typer.Option(
            "--train",
            help="All weights; what UltraGen adds alone; or a LoRA, beside which no second model "
            "is needed for the teacher.",
        ),
    ] = "all",
    accumulation: Annotated[int, typer.Option(min=1, help="Batches a step in each process.")] = 1,
) -> None:
    """Trains; the first parameter is what other stages and `train wan` have too, all others are
    options."""
    check_can_train()
    from ..training.wan_distillation import train_wan_distill as train_model
    from ..training.wan_options import LORA_TARGETS, LoraOptions, WanDistillOptions

    targets = given.pop("lora_target") or LORA_TARGETS
    options = WanDistillOptions(
        prompts=prompts,
        base=given.pop("base"),
        start=start,
        steps=steps,
        guidance_scale=teacher_guidance_scale,
        negative_prompt=negative_prompt,
        shift=shift,
        resolution=resolution,
        aspect=aspect or ASPECTS[0],
        num_frames=num_frames,
        trained=trained,
        lora=LoraOptions(given.pop("lora_rank"), given.pop("lora_alpha"), tuple(targets)),
        batch_size=given.pop("batch"),
        recomputed=given.pop("recompute"),
        on_host=given.pop("keep_on_host"),
        sample_prompts=tuple(given.pop("sample_prompt") or PROMPTS[:SUGGESTED]),
    )
    shared = {name: given.pop(name) for name in SHARED}
    rate = LORA_LEARNING_RATE if trained == "lora" else LEARNING_RATE
    ends = "--max-steps or --minutes"
    config = wan_config(shared, rate, ends, accumulation=accumulation, **given)
    result = train_model(options, config)
    if trained != "lora":
        say_written(result)
        return
    sampling = f"--steps {steps} --guidance 1 --shift {shift:g} --solver euler"
    say_written(result, f", which clips are made with by --lora {result} {sampling}")


def command(**given: Any) -> None:
    own = {option.name: given.pop(option.name) for option in _own}
    train_wan_distill(given, **own)


_own = parameters_of(train_wan_distill)[1:]
command.__signature__ = Signature(  # type: ignore[attr-defined]
    [
        *(option for option in parameters_of(train) if option.name in SHARED),
        *(option for option in parameters_of(train_wan) if option.name in OF_TRAIN_WAN),
        *_own,
    ]
)
stages.command("wan-distill", help="The 1.3B model in a few steps, without guidance.")(command)
