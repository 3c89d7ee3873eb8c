"""`train wan`: the 1.3B model on people's own clips."""

from __future__ import annotations

import os
from importlib.util import find_spec
from inspect import Signature
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from ..presets import FRAMES_PER_LATENT, PROMPTS, RESOLUTIONS, SUGGESTED
from . import console
from .train import parameters_of, stages, train

SHARED = (
    "out",
    "run_minutes",
    "max_steps",
    "seed",
    "learning_rate",
    "warmup_steps",
    "sample_minutes",
    "profile_step",
)
"""Options that other stages have too."""
TRACKERS = ("tensorboard", "trackio")
LEARNING_RATE = 1e-4  # the paper's (appendix C)


def train_wan(
    shared: dict[str, Any],
    data: Annotated[Path, typer.Option(help="Folder that `dataset` wrote.")],
    base: Annotated[
        str | None,
        typer.Option(
            help="Dense Wan2.1-T2V in diffusers' layout, a folder or a repository; without it "
            "ULTRAGEN_WAN, or the published one."
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            help="UltraGen's weights to start from: a file, a folder, a repository, or the --out "
            "of an earlier training; without it the base model is converted."
        ),
    ] = None,
    preset: Annotated[
        Literal["wan-1080p", "wan-4k"] | None,
        typer.Option(help="The paper's settings; what is given beside it counts more."),
    ] = None,
    resolution: Annotated[
        str | None,
        typer.Option(
            help=f"One of {', '.join(RESOLUTIONS)}: only clips of so many pixels, in any shape."
        ),
    ] = None,
    num_frames: Annotated[
        int | None,
        typer.Option(
            "--num-frames",
            "--frames",
            help=f"Cut longer clips to so many frames, {FRAMES_PER_LATENT}n + 1.",
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            help="How the base model is converted: paper, without full layers; released, as the "
            "published weights; or t3, as T3-Video's. Without it the paper's."
        ),
    ] = None,
    windows: Annotated[
        int, typer.Option(min=2, help="K at the size that is trained, an even number.")
    ] = 4,
    trained: Annotated[
        Literal["all", "new", "lora"],
        typer.Option(
            "--train", help="All weights, as the paper; what UltraGen adds alone; or a LoRA."
        ),
    ] = "all",
    lora_rank: Annotated[int, typer.Option(min=1, help="Of a LoRA's updates.")] = 32,
    lora_alpha: Annotated[
        int | None,
        typer.Option(min=1, help="A LoRA's strength times its rank; without it the rank."),
    ] = None,
    lora_target: Annotated[
        list[str] | None,
        typer.Option(help="End of the names of layers that get a LoRA; may be repeated."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Clips of a batch in each process.")] = 1,
    accumulation: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Batches a step in each process; without it one, or with a preset as many as make "
            "the paper's 32 clips.",
        ),
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(min=0.001, help="Passes over all clips, then it ends.")
    ] = None,
    minutes: Annotated[
        float, typer.Option(help="Minutes, all its runs together, then it ends.")
    ] = inf,
    decay: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Last part, over which the learning rate falls to 0."),
    ] = 0.0,
    optimizer: Annotated[
        Literal["adamw", "adamw8bit", "muon"],
        typer.Option(help="AdamW; AdamW with states of 8 bits; Muon for matrices."),
    ] = "adamw",
    precision: Annotated[
        Literal["bfloat16", "float32"] | None,
        typer.Option(
            help="What is computed in, over weights in float32; without it bfloat16 where it is "
            "fast."
        ),
    ] = None,
    average: Annotated[
        bool, typer.Option("--average", help="Average the weights over steps, and export these.")
    ] = False,
    recompute: Annotated[
        Literal["all", "half", "none"],
        typer.Option(
            help="Blocks that are computed again in the backward pass: more take less memory and "
            "more time."
        ),
    ] = "all",
    keep_on_host: Annotated[
        bool,
        typer.Option("--keep-on-host", help="Keep what these blocks need in the host's memory."),
    ] = False,
    checkpoint_minutes: Annotated[
        float, typer.Option(min=0.0, help="Minutes between checkpoints.")
    ] = 30.0,
    checkpoint_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between checkpoints, besides.")
    ] = None,
    sample_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between sample sheets, besides.")
    ] = None,
    sample_prompt: Annotated[
        list[str] | None,
        typer.Option(help="What samples show; may be repeated. Without it landscapes."),
    ] = None,
    sample_steps: Annotated[
        int, typer.Option(min=1, help="Denoising steps of the samples' clips.")
    ] = 20,
    log_steps: Annotated[int, typer.Option(min=1, help="Steps between log lines.")] = 10,
    tracker: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Where losses are shown, {' or '.join(TRACKERS)}; may be repeated. Without it "
            "tensorboard."
        ),
    ] = None,
) -> None:
    """Trains; the first parameter is what `train` has too, all others are options."""
    check_can_train()
    from ..training.loop import check_processes
    from ..training.wan_options import LORA_TARGETS, PRESETS, LoraOptions, WanOptions
    from ..training.wan_training import train_wan as train_model

    paper = PRESETS[preset] if preset else None
    if paper:
        resolution, num_frames = resolution or paper.resolution, num_frames or paper.num_frames
        epochs = epochs or paper.epochs
        processes = check_processes().num_processes
        accumulation = accumulation or -(-paper.batch // (batch * processes))
    options = WanOptions(
        data=data,
        base=base,
        start=start,
        layout=layout,
        windows=windows,
        resolution=resolution,
        num_frames=num_frames,
        trained=trained,
        lora=LoraOptions(lora_rank, lora_alpha, tuple(lora_target or LORA_TARGETS)),
        batch_size=batch,
        recomputed=recompute,
        on_host=keep_on_host,
        sample_prompts=tuple(sample_prompt or PROMPTS[:SUGGESTED]),
        sample_steps=sample_steps,
    )
    config = wan_config(
        shared,
        LEARNING_RATE,
        "" if epochs else "--epochs, --max-steps, --minutes or --preset",
        minutes=minutes,
        decay=decay,
        optimizer=optimizer,
        accumulation=accumulation,
        precision=precision,
        average=average,
        checkpoint_minutes=checkpoint_minutes,
        checkpoint_every=checkpoint_every,
        sample_every=sample_every,
        log_steps=log_steps,
        tracker=tracker,
    )
    say_written(train_model(options, config, epochs))


def check_can_train() -> None:
    """Checks that what training needs is installed, and quiets libraries before they are
    imported."""
    if find_spec("tensorboard") is None:
        raise OSError(
            "Training needs one more package: pip install -e '.[train]' in the clone's folder."
        )
    console.quiet_libraries()


def wan_config(
    shared: dict[str, Any],
    learning_rate: float,
    ends: str,
    *,
    minutes: float,
    accumulation: int | None,
    checkpoint_every: int | None,
    sample_every: int | None,
    tracker: list[str] | None,
    **own: Any,
) -> Any:
    """The `TrainingConfig` of a training of the 1.3B model.

    Args:
        shared: Options that other stages have too.
        learning_rate: If none of them says another.
        ends: Options that say when it ends, one of which has to; empty if another one does.
        minutes: After which it ends, and other options as they are typed.
        own: Options that are called as the config calls them.

    Raises:
        ValueError: if nothing says when it ends, or a tracker is unknown.
    """
    from ..training.stage import TrainingConfig

    for name in tracker or ():
        if name not in TRACKERS:
            raise ValueError(f"Unknown --tracker {name!r}: choose from {', '.join(TRACKERS)}.")
    if ends and minutes == inf and shared["max_steps"] is None:
        raise ValueError(f"Nothing says when the training ends: give {ends}.")
    return TrainingConfig(
        **{**shared, "learning_rate": shared["learning_rate"] or learning_rate},
        minutes=minutes,
        betas=(0.9, 0.999),
        accumulation=accumulation or 1,
        checkpoint_steps=checkpoint_every,
        sample_steps=sample_every,
        trackers=cast(Any, tuple(tracker or TRACKERS[:1])),
        **own,
    )


def say_written(result: Path, more: str = "") -> None:
    """Says where the result is, once for all processes."""
    if os.environ.get("RANK", "0") == "0":
        print(f"Written: {result}{more}")


def command(**given: Any) -> None:
    shared = {name: given.pop(name) for name in SHARED}
    train_wan(shared, **given)


_own = parameters_of(train_wan)[1:]
command.__signature__ = Signature(  # type: ignore[attr-defined]
    [*(option for option in parameters_of(train) if option.name in SHARED), *_own]
)
stages.command("wan", help="The 1.3B model, on clips of your own that `dataset` has encoded.")(
    command
)
