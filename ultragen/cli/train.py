"""Commands of the training: its stages, and what becomes of their weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from inspect import Parameter, Signature, signature
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from ..presets import EMBEDDED_MODEL
from . import console
from .options import Overwrite, app

STAGE_OF = {
    "vae": "autoencoder",
    "tokenizer": "base",
    "text_encoder": "base",
    "base_transformer": "base",
    "transformer": "ultragen",
    "upscaler": "upscaler",
}
"""Which training stage makes which part of a pipeline folder."""

BRANCHES = ("hierarchical", "global")
"""Those of UltraGen's attention that an ablation may lack."""


class Stages(TyperGroup):
    """The stages; an option that only others have is an error that says which."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args[:1] != ["--help"] and not set(args[:1]) & set(self.commands):
            found = f"not {args[0]!r:.40}" if args else "and none is named"
            raise ValueError(
                f"`train` needs a stage first, {found}: choose from {', '.join(self.commands)}."
            )
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:  # Typer's own classes are not public
            option = getattr(error, "option_name", None)
            users = [name for name, command in self.commands.items() if option in _options(command)]
            if not users or ctx.invoked_subcommand in users:
                raise
            stages = " and ".join(f"`train {name}`" for name in users)
            raise ValueError(
                f"{option} is for {stages} alone: leave it out for {ctx.invoked_subcommand}."
            ) from error


def _options(command: Any) -> set[str]:
    return {name for parameter in command.params for name in parameter.opts}


stages = typer.Typer(
    cls=Stages,
    subcommand_metavar="STAGE [ARGS]...",
    help="Train one stage. One that was stopped goes on from its last checkpoint.",
)
app.add_typer(stages, name="train")


def train(
    stage: str,
    settings: Iterable[Callable[[Any], Any]],
    out: Annotated[Path, typer.Option(help="Folder of the whole training, for all stages.")],
    minutes: Annotated[float, typer.Option(help="Of this stage, all its runs together.")] = 20.0,
    run_minutes: Annotated[
        float | None, typer.Option(help="Stop this run earlier, with a checkpoint.")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="End after so many steps.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and data.")] = 0,
    start_from: Annotated[
        Path | None, typer.Option(help="Pipeline folder to start from instead of from scratch.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=1e-8, help="Peak; the stage's own if not given.")
    ] = None,
    warmup_steps: Annotated[
        int, typer.Option(min=1, help="Steps until the learning rate has reached its peak.")
    ] = 50,
    decay: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Last part of the training, over which the learning rate falls: 1 for all "
            "of it, 0 for none.",
        ),
    ] = 0.3,
    sample_minutes: Annotated[
        float, typer.Option(min=0.0, help="Minutes between sample sheets.")
    ] = 4.0,
    profile_step: Annotated[
        int | None, typer.Option(min=1, help="Profile a few steps after this one.")
    ] = None,
    batch_scale: Annotated[
        float,
        typer.Option(min=0.001, help="Batches so many times as large, for another GPU or a CPU."),
    ] = 1.0,
    edition: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=2,
            help="Of the world that scenes are drawn from: 2 has more words than 1 and near ground "
            "in focus. The same for all stages of a training; without it, that of the words which "
            "the weights know that are there, or 1.",
        ),
    ] = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="A toy model, to try the steps.")] = False,
) -> None:
    """Trains one stage; all parameters but the first two are options that every stage has.

    Args:
        stage: Its name.
        settings: What changes the `StageOptions` of an ordinary training, or of a toy, in turn.
    """
    if find_spec("tensorboard") is None:
        raise OSError(
            "Training needs one more package: pip install -e '.[train]' in the clone's folder."
        )
    from ..training.stage import TrainingConfig
    from ..training.stage_options import StageOptions
    from ..training.stage_order import edition_of
    from ..training.stage_order import train as train_stage
    from ..training.tiny import TINY

    config = TrainingConfig(
        out=out,
        minutes=minutes,
        run_minutes=run_minutes,
        max_steps=max_steps,
        learning_rate=learning_rate,
        seed=seed,
        warmup_steps=warmup_steps,
        decay=decay,
        profile_step=profile_step,
        sample_minutes=sample_minutes,
    )
    options = replace(
        TINY if tiny else StageOptions(), edition=edition or edition_of(out, start_from)
    )
    if batch_scale != 1:
        options = options.with_batches(batch_scale)
    for change in settings:
        options = change(options)
    weights = train_stage(stage, config, options, start_from)
    if os.environ.get("RANK", "0") == "0":
        print(f"Written: {weights}")


def on_crops(
    options: Any,
    adversarial: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="How strongly the adversary pulls at the picture, as a part of the other losses; "
            "the more, the more detail is drawn that looks right but is not the clip's own.",
        ),
    ] = 0.5,
    detail: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="How strongly the amount of fine detail, place by place, pulls at the picture, as "
            "a part of the other losses.",
        ),
    ] = 0.0,
    perceptual: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="How strongly what a network trained on photographs sees pulls at the picture, as "
            "a part of the other losses.",
        ),
    ] = 0.0,
    ground_share: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="Part of the crops that come from below the frame's middle."
        ),
    ] = 0.5,
    render_share: Annotated[
        float,
        typer.Option(
            min=0.01, max=0.9, help="Part of the time that goes into rendering new crops."
        ),
    ] = 0.35,
    decoder_blocks: Annotated[
        tuple[int, int, int] | None,
        typer.Option(
            metavar="A B C",
            help="The decoder's residual blocks, coarsest size first, 4 3 4 if not given: "
            "fewer decode faster. One that is trained on loses none.",
        ),
    ] = None,
) -> Any:
    own = (
        ("adversarial", adversarial), ("detail", detail), ("perceptual", perceptual),
        ("ground_share", ground_share), ("share", render_share),
    )  # fmt: skip
    if decoder_blocks is not None:
        if min(decoder_blocks) < 1:
            raise ValueError(
                f"--decoder-blocks must be from 1, not {' '.join(map(str, decoder_blocks))}."
            )
        options = replace(options, size=options.size.with_decoder_blocks(decoder_blocks))
    return replace(options, autoencoder=(*options.autoencoder, *own))


def autoencoder(
    options: Any,
    anchor: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="How strongly latents are held where --start-from has them, so that transformers "
            "stay of use; 0.01 lets them move a little.",
        ),
    ] = 0.0,
) -> Any:
    return replace(options, autoencoder=(*options.autoencoder, ("anchor", anchor)))


def on_clips(
    options: Any,
    render_on: Annotated[
        list[str] | None,
        typer.Option(help="A device that only renders, such as cuda:1; may be repeated."),
    ] = None,
    render_share: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=0.9,
            help="Part of the time that goes into rendering new clips; 0.45 if not given.",
        ),
    ] = None,
    render_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Steps with a kind of clip between new ones, instead of a part of the time: a "
            "slower model sees the same clips in the same steps.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of clips that `dataset --model embedded` encoded with this training's "
            "autoencoder, instead of rendered ones."
        ),
    ] = None,
) -> Any:
    """A transformer that learns from clips, which are rendered while it does unless they are
    given."""
    if render_share and render_every:
        raise ValueError("--render-share and --render-every say the same: leave out one of them.")
    if (render_share or render_every) and render_on:
        given = "--render-share" if render_share else "--render-every"
        raise ValueError(
            f"{given} is for a device that also trains: leave it out with --render-on."
        )
    if data is not None and (render_share or render_every or render_on):
        raise ValueError(
            "Clips that are given are not rendered: leave out --data, or --render-on, "
            "--render-share and --render-every."
        )
    return replace(
        options,
        data=data,
        render_on=tuple(render_on or ()),
        render_share=render_share or options.render_share,
        render_every=render_every,
    )


def base(
    options: Any,
    freeze_text: Annotated[
        bool,
        typer.Option(
            "--freeze-text",
            help="Leave the text encoder's weights as they are, for UltraGen's sake.",
        ),
    ] = False,
    clauses: Annotated[
        bool,
        typer.Option(
            "--clauses",
            help="A text encoder that --start-from brings reads clause by clause from now on: "
            '"the camera pans left" stays out of "the sun on the right"; UltraGen is to be '
            "trained on too. The shipped one reads so, and those that are trained afresh. Name it "
            "again to resume.",
        ),
    ] = False,
) -> Any:
    return replace(options, freeze_text=freeze_text, clauses=clauses)


def ultragen(
    options: Any,
    without: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Branch that the attention lacks, {' or '.join(BRANCHES)}; may be repeated. An "
            "ablation."
        ),
    ] = None,
    crossing: Annotated[
        Literal["grow", "shift", "none"] | None,
        typer.Option(
            help="Windows of odd layers: grow has one more on each axis, as the paper; shift moves "
            "them by half of one, as Swin; none has those of even layers. An ablation."
        ),
    ] = None,
    lora_rank: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Rank of the compressed branches' updates, 0 for none. These three are for a base "
            "model that is converted; name them again to resume.",
        ),
    ] = None,
) -> Any:
    for name in without or ():
        if name not in BRANCHES:
            raise ValueError(f"Unknown --without {name!r}: choose from {', '.join(BRANCHES)}.")
    kept = tuple(name for name in BRANCHES if name not in (without or ()))
    given = {
        "branches": kept if without else None,
        "crossing": crossing,
        "lora_rank": lora_rank,
    }
    attention = tuple((name, value) for name, value in given.items() if value is not None)
    return replace(options, attention=(*options.attention, *attention))


def distillation(
    options: Any,
    teacher_guidance_scale: Annotated[
        float | None,
        typer.Option(
            "--teacher-guidance-scale",
            "--teacher-guidance",
            min=1.0,
            help="The teacher's guidance, which the student learns; 3 if not given, also for a "
            "training that is resumed.",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Steps that the student takes, the same for both models; 8 if not given. The "
            "teacher takes twice as many. Name it again to resume.",
        ),
    ] = None,
) -> Any:
    given = {"guidance_scale": teacher_guidance_scale, "steps": steps}
    own = tuple((name, value) for name, value in given.items() if value is not None)
    return replace(options, distill=(*options.distill, *own))


def add_stage(name: str, summary: str, *settings: Callable[..., Any]) -> None:
    """Adds `train NAME`, with the options of `train` and the stage's own.

    Args:
        name: As `training.stage_order` calls the stage.
        summary: A sentence for `--help`.
        settings: Functions that take `StageOptions` and options of the command line, and give what
            becomes of the former; one after the other.
    """
    own = {function: parameters_of(function)[1:] for function in settings}

    def command(**given: Any) -> None:
        chosen = [
            partial(function, **{option.name: given.pop(option.name) for option in options})
            for function, options in own.items()
        ]
        train(name, chosen, **given)

    merged = [*parameters_of(train)[2:], *chain.from_iterable(own.values())]
    command.__signature__ = Signature(merged)  # type: ignore[attr-defined]
    stages.command(name, help=summary)(command)


def parameters_of(function: Callable[..., Any]) -> list[Parameter]:
    parameters = signature(function, eval_str=True).parameters.values()
    return [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in parameters]


add_stage("autoencoder", "The autoencoder, which all others build on.", on_crops, autoencoder)
add_stage("decoder", "The decoder alone: all latents stay as they are.", on_crops)
add_stage("base", "The dense base model and the text encoder.", on_clips, base)
add_stage("ultragen", "UltraGen, which starts from the base model's weights.", on_clips, ultragen)
add_stage("base-distill", "Few steps and no guidance for the base model.", distillation)
add_stage("distill", "Few steps and no guidance for UltraGen.", distillation)
add_stage("upscaler", "The network that the base model's clips are enlarged with.")
add_stage("classifier", "The judge of generated clips; it needs no other stage.")


@app.command()
def assemble(
    model_dir: Annotated[Path, typer.Argument(help="OUT/model of a training.")],
    out: Annotated[Path, typer.Argument(help="Folder of the pipeline.")],
    undistilled: Annotated[
        bool,
        typer.Option(
            "--undistilled",
            help="Take the teachers of the distillation, also where their students are there: for "
            "`evaluate --set distillation --teacher`.",
        ),
    ] = False,
    tiny: Annotated[bool, typer.Option("--tiny", help="For a training with --tiny.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Put the finished weights of all stages together.

    The result is what --model and the page load.
    """
    if out.resolve() == model_dir.resolve():
        raise ValueError(f"{out} is the training's own folder: choose another one.")
    for part, stage in STAGE_OF.items():
        if not (model_dir / part).is_dir():
            raise ValueError(f"{model_dir / part} is missing: run `train {stage}` first.")
    names = ("model_index.json", *STAGE_OF)
    console.check_free(out, names, overwrite)
    from ..training.assemble import assemble as assemble_stages
    from ..training.stage_options import StageOptions
    from ..training.tiny import TINY

    with console.whole_results(out, names) as folder:
        assemble_stages(model_dir, folder, TINY if tiny else StageOptions(), undistilled)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    shown = " (the embedded model)" if out.resolve() == EMBEDDED_MODEL.resolve() else ""
    print(f"Written: {out}{shown}, {size:.1f} MB")
