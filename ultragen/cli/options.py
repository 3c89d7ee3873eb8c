"""What commands share: the application, options, and loading with errors for people."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from ..presets import (
    ASPECTS,
    CACHES,
    FAST,
    FRAME_RATES,
    PROGRESSIVE,
    RESOLUTIONS,
    SOLVERS,
    find_size,
)
from . import console

if TYPE_CHECKING:
    from ..runs.recipe import Recipe

HEADINGS = {
    "Clips": ("generate", "batch", "compare", "sheets"),
    "Measurements and reports": ("measure", "plan", "evaluate", "benchmark", "doctor"),
    "Training and weights": ("scenes", "dataset", "train", "assemble", "convert"),
}
"""How `--help` lists the commands."""


class Commands(TyperGroup):
    """The commands under headings, which Typer has for its coloured help alone."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for heading, names in HEADINGS.items():
            with formatter.section(heading):
                formatter.write_dl(
                    [(name, self.commands[name].get_short_help_str(100)) for name in names]
                )


# Torch and the models are imported inside the commands, so that `--help` answers at once.
app = typer.Typer(
    cls=Commands,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 100},
    help="Text to native high-resolution video. `python -m ultragen COMMAND --help` tells more.",
)

FIELDS = re.compile(
    r"num_frames|(base_)?num_inference_steps|(base_)?guidance_scale|guidance_interval"
    r"|negative_prompt|\bfps\b"
    r"|\b(cache|shift|solver|progressive)\b|^fast\b"
)
"""Settings that errors name, whose options are called like them."""
OF_WEIGHTS = (
    "num_inference_steps", "guidance_scale", "base_num_inference_steps", "base_guidance_scale",
    "loras",
)  # fmt: skip
"""Settings that depend on a model's weights where they are left out."""
OTHER_NAMES = {"resolution": ("width", "height"), "aspect": ("width", "height")}
"""Options that name a setting in another way than the one which is called like it."""

Prompt = Annotated[
    str | None,
    typer.Option(help="What the clip shows, in English; without it the prompt of --from."),
]
From = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="FILE",
        help="Settings of an earlier clip: its metadata.json, the .json beside it, or the MP4 or "
        "WebM itself. Options that are given too win.",
    ),
]
ResolutionOption = Annotated[
    str | None,
    typer.Option(help=f"One of {', '.join(RESOLUTIONS)}; without it the model's own."),
]
Windows = Annotated[str, typer.Option(help="Windows on each axis: auto, or an even number.")]
NumFrames = Annotated[
    int | None,
    typer.Option("--num-frames", "--frames", help="Frames, 4n + 1; without it the model's own."),
]
Seed = Annotated[int, typer.Option(help="The same seed gives the same clip.")]
NumInferenceSteps = Annotated[
    int | None,
    typer.Option(
        "--num-inference-steps",
        "--steps",
        help="Denoising steps; without it the model's own.",
    ),
]
GuidanceScale = Annotated[
    float | None,
    typer.Option(
        "--guidance-scale",
        "--guidance",
        help="Guidance, 0 to 100, off at 1 and below; without it the model's own.",
    ),
]
BaseSteps = Annotated[
    int | None,
    typer.Option(
        "--base-num-inference-steps",
        "--base-steps",
        help="Denoising steps of the base model's clip; without it the native clip's, or the base "
        "model's own where only the native one is distilled.",
    ),
]
BaseGuidance = Annotated[
    float | None,
    typer.Option(
        "--base-guidance-scale",
        "--base-guidance",
        help="Guidance of the base model's clip; without it as for its steps.",
    ),
]
GuidanceInterval = Annotated[
    str,
    typer.Option(
        metavar="LOW-HIGH",
        help="Noise levels, 0 to 1, between which guidance is computed; other steps take half the "
        "time. 0.6-1 drifts least for what it saves, see docs/benchmarks.md.",
    ),
]
Cache = Annotated[
    str,
    typer.Option(
        metavar="|".join(CACHES),
        help="Predict every second step after the fifth, or two of three, from those before. Of 30 "
        "steps taylor-2 leaves out 13 and taylor-3 17; the scene stays, its detail changes a "
        "little, see docs/benchmarks.md.",
    ),
]
Fast = Annotated[
    bool,
    typer.Option(
        "--fast",
        help=f"--cache {FAST['cache']} and --guidance-interval {FAST['guidance_interval']}, unless "
        "others are given: of 30 guided steps half the time, see docs/benchmarks.md. Without "
        "guidance it is refused.",
    ),
]
Shift = Annotated[
    float | None,
    typer.Option(
        help="Shift of the noise levels, above 1 towards more noise; without it the model's own, 5 "
        "for the 1.3B model. Distillation LoRAs want 3 to 8.",
    ),
]
Solver = Annotated[
    str,
    typer.Option(
        metavar="|".join(SOLVERS),
        help="What takes the steps: the model's own, Euler's, or UniPC, which learns from several.",
    ),
]
Progressive = Annotated[
    str,
    typer.Option(
        metavar="|".join(PROGRESSIVE),
        help="Make a smaller clip first, which decides where things are, and leave out the first "
        "steps of the large one: auto does where frames are larger than the model was trained for, "
        "on wherever there is a smaller size.",
    ),
]
GuidanceDevice = Annotated[
    str | None,
    typer.Option(help="A second GPU, such as cuda:1, for the pass that guidance adds to a step."),
]
Fp8 = Annotated[
    bool,
    typer.Option(
        "--fp8",
        help="Compute the 1.3B model's large layers in 8 bits; needs an Ada, Hopper or Blackwell "
        "GPU.",
    ),
]
Loras = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="FILE_OR_REPO[:SCALE]",
        help="A LoRA: a file, a folder, owner/name or owner/name/FILE on the Hub, or a name in the "
        "folder loras; may be given several times. Without it those of ULTRAGEN_LORA.",
    ),
]
NoiseOption = Annotated[
    str,
    typer.Option(
        help="spectral: a seed is much the same scene at every size; independent: another."
    ),
]
Aspect = Annotated[
    str | None,
    typer.Option(help=f"Shape of the frame: {', '.join(ASPECTS)}; without it {ASPECTS[0]}."),
]
Width = Annotated[
    int | None,
    typer.Option(help="Columns of the file, with --height instead of --resolution and --aspect."),
]
Height = Annotated[int | None, typer.Option(help="Rows of the file, with --width.")]
FrameRate = Annotated[
    int | None,
    typer.Option(
        help=f"Frames a second of the file: {', '.join(map(str, FRAME_RATES))}, or without it the "
        "model's own. The same frames, shown faster or slower: none are added."
    ),
]
NegativePrompt = Annotated[str | None, typer.Option(help="What guidance leads away from.")]
Model = Annotated[
    str | None,
    typer.Option(
        envvar="ULTRAGEN_MODEL", help="auto, embedded, wan, or a model's folder.", show_envvar=True
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Run on a Ray cluster: auto, ray://HOST:PORT or HOST:PORT. auto starts one of this "
        "machine where none runs.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1, help="Ray's actors; without it one for each GPU, or for each machine without any."
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace earlier results.")]


def make_request(
    model: str | None, lora: list[str] | None = None, fast: bool = False, **settings: Any
) -> Any:
    """A request that a model can take, as far as is known before it is loaded; errors name the
    options as they are typed."""
    from ..runs.choice import choose
    from ..runs.request import Request, check_fast

    try:
        request = Request(**settings).validate(choose(model, lora).preset)
        if fast:
            check_fast(request)
        # Settled when the model is loaded: weights that are downloaded by then may bring steps of
        # their own, and it is known then which LoRAs fit.
        asked: dict[str, Any] = {name: settings.get(name) for name in OF_WEIGHTS}
        return replace(request, **asked)
    except ValueError as error:
        raise as_typed(error) from error


def as_typed(error: ValueError) -> ValueError:
    """An error of a request's settings that names the options as they are typed."""
    return ValueError(FIELDS.sub(lambda found: f"--{found[0].replace('_', '-')}", str(error)))


def asked_size(
    resolution: str | None, aspect: str | None, width: int | None, height: int | None
) -> dict[str, str | None]:
    """`resolution` and `aspect` of a request, from options that name a size in one of two ways.

    Raises:
        ValueError: Both ways are mixed, one side is missing, or no clip has this size.
    """
    if width is None and height is None:
        return {"resolution": resolution, "aspect": aspect or ASPECTS[0]}
    if width is None or height is None:
        missing = "width" if width is None else "height"
        raise ValueError(f"--{missing} is missing: --width and --height belong together.")
    if resolution is not None or aspect is not None:
        raise ValueError(
            "A size is named by --width and --height, or by --resolution and --aspect: leave out "
            "one of the two."
        )
    name, shape = find_size(width, height)
    return {"resolution": name, "aspect": shape}


def is_typed(context: typer.Context, name: str) -> bool:
    """Whether a setting was given, by the option that is called like it or by another one."""
    sources = map(context.get_parameter_source, (name, *OTHER_NAMES.get(name, ())))
    return any(source is not None and source.name == "COMMANDLINE" for source in sources)


def fast_settings(context: typer.Context, fast: bool) -> dict[str, str]:
    """What --fast sets, where it was given, but for what was typed."""
    return {name: value for name, value in FAST.items() if fast and not is_typed(context, name)}


def settings_of(
    context: typer.Context, recipe: Recipe | None, fast: bool, **options: Any
) -> dict[str, Any]:
    """The settings of a command: its options, or those of a recipe where none was typed.

    Raises:
        ValueError: if there is neither a prompt nor a recipe.
    """
    if recipe is None:
        if options["prompt"] is None:
            raise ValueError(
                "--prompt is missing: say what the clip shows, or give an earlier clip's settings "
                "by --from FILE. See --help."
            )
        return options | fast_settings(context, fast)
    stored = recipe.request.to_dict()

    settings = {
        name: value if is_typed(context, name) else stored[name] for name, value in options.items()
    } | fast_settings(context, fast)
    return settings if is_typed(context, "lora") else settings | {"loras": stored["loras"]}


def read_recipe(path: Path | None) -> Recipe | None:
    """The settings of an earlier clip, where some are asked for; errors as in `recipe`."""
    if path is None:
        return None
    from ..runs.recipe import read_recipe

    return read_recipe(path)


def say_what_differs(recipe: Recipe | None, models: Any) -> None:
    """Says on stderr if the models are others than those of the earlier clip."""
    told = recipe.differs(models) if recipe is not None else ""
    if told:
        print(told, file=sys.stderr)


def load(model: str | None, loras: list[str] | None = None) -> Any:
    """The models, loaded without the libraries' own messages."""
    from ..runs.loading import load_models

    console.quiet_libraries()
    return load_models(model) if loras is None else load_models(model, loras)


def check_fp8(model: str | None) -> None:
    """Checks that FP8 works here, before minutes of loading."""
    from ..runs import loading

    console.quiet_libraries()
    loading.check_fp8(model)


def load_for(
    request: Any,
    model: str | None,
    guidance_device: str | None,
    fp8: bool,
    loras: list[str] | None = None,
) -> Any:
    """The models; says which words of the prompt they don't know."""
    if fp8:
        check_fp8(model)
    if guidance_device is not None:  # before minutes of loading
        from ..hardware import find_hardware
        from ..sampling.parallel_guidance import check_second

        check_second(guidance_device, find_hardware().device)
    models = load(model, loras)
    for name, reason in models.left_out.items():
        print(f"The LoRA {name} is left out: {reason}", file=sys.stderr)
    if fp8:
        models.enable_fp8()
    if guidance_device is not None:
        models.enable_parallel_guidance(guidance_device)
    unknown = models.unknown_words(request.prompt)
    if unknown:
        print(f"The model does not know: {', '.join(unknown)}.", file=sys.stderr)
    return models


def print_seconds(metadata: dict[str, Any]) -> None:
    from ..estimates.cost import STAGES

    for stage, seconds in metadata["seconds"]["measured"].items():
        print(f"{STAGES[stage]:<40}{seconds:8.1f} s")
    print(f"{'Together':<40}{sum(metadata['seconds']['measured'].values()):8.1f} s")
