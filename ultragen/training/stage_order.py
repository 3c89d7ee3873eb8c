"""The stages by name, in the order in which they build on each other.

All stages of one training share a folder: `OUT/<stage>` holds checkpoints, logs and sample sheets,
`OUT/model` collects the finished weights in diffusers' layout, from which later stages start.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..dataset.shards import LatentDataset, vae_fingerprint
from ..files import create_folder, sweep_unfinished, whole_result, write_text
from ..model.autoencoder import CompactAutoencoder
from ..model.classifier import AttributeClassifier
from ..model.coordinates import add_coordinates
from ..model.strict_loading import load_strictly
from ..model.text_encoder import ClauseTextEncoder
from ..model.transformer import UltraGenTransformer3DModel
from ..model.upscaler import UpscalerNetwork
from ..pipeline import UltraGenPipeline
from ..sampling.words import find_edition
from ..world.captions import vocabulary
from ..world.scene import EDITIONS
from .assemble import put_together
from .build import (
    ModelSize,
    build_autoencoder,
    build_base_transformer,
    build_classifier,
    build_upscaler,
    convert,
)
from .clip_sizes import ClipSize
from .growth import BLOCKS, grow_channels, grown_autoencoder
from .loop import Trainer
from .processes import check_processes, together
from .stage import Stage, TrainingConfig
from .stage_options import StageOptions
from .stages.autoencoder_stage import AutoencoderStage
from .stages.classifier_stage import ClassifierStage
from .stages.distillation import DistillStage
from .stages.flow_matching import FlowMatchingStage
from .stages.upscaler_stage import UpscalerStage
from .vocabulary import (
    build_text_encoder,
    build_tokenizer,
    extend_vocabulary,
    read_by_clauses,
    unknown_words,
)

load_wan_transformer = partial(load_strictly, WanTransformer3DModel)


def _component(folders: Sequence[Path], name: str, load: Callable[[Path], Any], stage: str) -> Any:
    """A part that an earlier stage trained, from the first of the folders that has it."""
    for folder in folders:
        if (folder / name).is_dir():
            return load(folder / name)
    raise ValueError(
        f"{folders[0] / name} is missing: run `train {stage}` with the same --out first, or start "
        "from a folder that has it."
    )


@dataclass(frozen=True)
class Sources:
    """Where a stage finds what earlier ones made.

    Attributes:
        model: Folder that this training's stages fill.
        start: Pipeline folder whose weights the stage starts from, or None to start afresh.
    """

    model: Path
    start: Path | None = None

    @property
    def folders(self) -> tuple[Path, ...]:
        return (self.model, self.start) if self.start else (self.model,)

    def initial(self, name: str, load: Callable[[Path], Any]) -> Any | None:
        """The part to train on from, None to build it afresh."""
        return load(self.start / name) if self.start and (self.start / name).is_dir() else None

    def vae(self) -> CompactAutoencoder:
        load = CompactAutoencoder.from_pretrained
        return _component(self.folders, "vae", load, "autoencoder").float()

    def dataset(self, folder: Path | None) -> LatentDataset | None:
        """The clips of a folder, if there is one, whose latents must be the autoencoder's."""
        if folder is None:
            return None
        dataset = LatentDataset(folder)
        [own, *_] = [each for each in self.folders if (each / "vae").is_dir()]
        dataset.check("embedded", vae_fingerprint(own))
        return dataset

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return _component(self.folders, "tokenizer", AutoTokenizer.from_pretrained, "base")

    def text_encoder(self) -> ClauseTextEncoder:
        return _component(
            self.folders, "text_encoder", partial(load_strictly, ClauseTextEncoder), "base"
        )


def autoencoder_stage(sources: Sources, options: StageOptions, seed: int) -> Stage:
    start = sources.initial("vae", CompactAutoencoder.from_pretrained)
    if start is None and dict(options.autoencoder).get("anchor"):
        raise ValueError(
            "An anchor holds the latents of an autoencoder that is there: name its pipeline folder "
            "to start from, also for a training that is resumed."
        )
    settings = {"seed": seed, "edition": options.edition, **dict(options.autoencoder)}
    if start is None:
        return AutoencoderStage(build_autoencoder(options.size), **settings)
    vae = grown_autoencoder(start.float(), options.size.z_dim, **blocks(options.size))
    return AutoencoderStage(vae, origin=start, **settings)


def blocks(size: ModelSize) -> dict[str, tuple[int, int, int] | None]:
    """Residual blocks of an autoencoder, of which older ones have fewer."""
    shape = dict(size.autoencoder)
    return {name: shape.get(name) for name in BLOCKS}


def decoder_stage(sources: Sources, options: StageOptions, seed: int) -> Stage:
    """Trains the decoder on, with the encoder and so all latents unchanged."""
    settings = {"seed": seed, "edition": options.edition, **dict(options.autoencoder)}
    more = blocks(options.size)["decoder_blocks"]
    vae = grown_autoencoder(sources.vae(), decoder_blocks=more)
    return AutoencoderStage(vae, part="decoder", **settings)


def base_stage(sources: Sources, options: StageOptions, seed: int) -> Stage:
    size = options.size
    transformer = sources.initial("base_transformer", load_wan_transformer)
    if transformer is None:
        if options.freeze_text:
            raise ValueError(
                "A text encoder that stays as it is must be there: name the pipeline folder to "
                "start from, also for a training that is resumed."
            )
        tokenizer = build_tokenizer(vocabulary(options.edition), size.text_length)
        text_encoder = build_text_encoder(len(tokenizer), size.text_dim)
    else:
        tokenizer, text_encoder = sources.tokenizer(), sources.text_encoder()
        if missing := unknown_words(tokenizer, vocabulary(options.edition)):
            if options.freeze_text:
                raise ValueError(
                    f"The text encoder to start from does not know {len(missing)} words of edition "
                    f"{options.edition}, such as {missing[-1]!r}, and has to learn them: leave out "
                    "--freeze-text."
                )
            tokenizer = extend_vocabulary(tokenizer, text_encoder, missing)
    if options.clauses or transformer is None:
        read_by_clauses(text_encoder, tokenizer)
    transformer = transformer if transformer is not None else build_base_transformer(size)
    vae = sources.vae()
    add_coordinates(transformer)  # older weights have none
    grow_channels(transformer, vae.config.z_dim)  # or fewer than the autoencoder now
    pipeline = put_together(
        size,
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=vae,
        transformer=transformer,
    )
    return FlowMatchingStage(
        pipeline,
        options.base_sizes,
        train_text=not options.freeze_text,
        share=options.render_share,
        seed=seed,
        render_on=options.render_on,
        dataset=sources.dataset(options.data),
        edition=options.edition,
        every=options.render_every,
    )


def with_trained_parts(
    sources: Sources, size: ModelSize, transformer: Any, solver_order: int | None = None
) -> UltraGenPipeline:
    """A transformer with the parts that earlier stages have trained."""
    return put_together(
        size,
        solver_order,
        tokenizer=sources.tokenizer(),
        text_encoder=sources.text_encoder(),
        vae=sources.vae(),
        transformer=transformer,
    )


def ultragen_stage(sources: Sources, options: StageOptions, seed: int) -> Stage:
    size, own = options.size, dict(options.attention)
    transformer = sources.initial("transformer", UltraGenTransformer3DModel.from_pretrained)
    if transformer is None:
        base = _component(sources.folders, "base_transformer", load_wan_transformer, "base")
        transformer = convert(base.float(), size, **own)
    elif _said(own) != _said(has := {name: transformer.config[name] for name in own}):
        raise ValueError(
            f"{sources.start} has an UltraGen of its own, with {_said(has)}, not {_said(own)}: "
            "start from a folder that has a base_transformer but no transformer, or leave the "
            "attention's settings out."
        )
    add_coordinates(transformer)
    grow_channels(transformer, sources.vae().config.z_dim)
    pipeline = with_trained_parts(sources, size, transformer)
    stage = FlowMatchingStage(
        pipeline,
        options.ultragen_sizes,
        train_text=False,
        share=options.render_share,
        seed=seed,
        render_on=options.render_on,
        dataset=sources.dataset(options.data),
        edition=options.edition,
        every=options.render_every,
    )
    if own:  # older checkpoints know of no attention but the paper's
        stage.settings = {"attention": _said(own)}
    return stage


def _said(settings: dict[str, Any]) -> str:
    """Settings as people read them; what is a tuple here is a list where it was loaded."""
    plain = {
        name: (" and ".join(value) or "none") if isinstance(value, list | tuple) else value
        for name, value in settings.items()
    }
    return ", ".join(f"{name} {value}" for name, value in plain.items())


def distillation(
    sources: Sources,
    options: StageOptions,
    transformer: Any,
    sizes: tuple[ClipSize, ...],
    seed: int,
) -> Stage:
    """A student learns the mean velocity of a whole step, which is exact for Euler's steps only.

    Raises:
        ValueError: if the teacher was trained with another autoencoder's channels.
    """
    pipeline = with_trained_parts(sources, options.size, transformer, solver_order=1)
    own, needed = transformer.config.out_channels, pipeline.vae.config.z_dim
    if own != needed:
        raise ValueError(
            f"The teacher has {own} latent channels and the autoencoder {needed}: train base and "
            "ultragen with this autoencoder first."
        )
    stage = DistillStage(
        pipeline, sizes, seed=seed, edition=options.edition, **dict(options.distill)
    )
    if stage.steps != dict(StageOptions().distill)["steps"]:  # older checkpoints know of no others
        stage.settings = {"student": f"{stage.steps} steps"}
    return stage


def base_distill_stage(sources: Sources, options: StageOptions, seed: int) -> Stage:
    """Few steps and no guidance for the dense model."""
    transformer = _component(sources.folders, "base_transformer", load_wan_transformer, "base")
    return distillation(sources, options, transformer, options.base_distill_sizes, seed)


def distill_stage(sources: Sources, options: StageOptions, seed: int) -> Stage:
    """Few steps and no guidance for UltraGen."""
    load = UltraGenTransformer3DModel.from_pretrained
    transformer = _component(sources.folders, "transformer", load, "ultragen")
    return distillation(sources, options, transformer, options.distill_sizes, seed)


def upscaler_stage(sources: Sources, options: StageOptions, seed: int) -> Stage:
    network = sources.initial("upscaler", UpscalerNetwork.from_pretrained)
    begun = sources.model.parent / "upscaler"
    if network is None and (begun / "checkpoint").is_dir() and (begun / "export").is_dir():
        # Older versions began it in another shape.
        network = UpscalerNetwork.from_pretrained(begun / "export" / "upscaler")
    network = network.float() if network is not None else build_upscaler()
    return UpscalerStage(
        network, sources.vae(), seed=seed, edition=options.edition, **dict(options.upscaler)
    )


def classifier_stage(sources: Sources, options: StageOptions, seed: int) -> Stage:
    """Trains the judge of generated clips, on rendered ones alone: no other stage is needed."""
    network = sources.initial("classifier", AttributeClassifier.from_pretrained)
    network = (
        network.float() if network is not None else build_classifier(options.size, options.edition)
    )
    return ClassifierStage(network, seed=seed, edition=options.edition, **dict(options.classifier))


STAGES: dict[str, Callable[[Sources, StageOptions, int], Stage]] = {
    "autoencoder": autoencoder_stage,
    "decoder": decoder_stage,
    "base": base_stage,
    "ultragen": ultragen_stage,
    "base-distill": base_distill_stage,
    "distill": distill_stage,
    "upscaler": upscaler_stage,
    "classifier": classifier_stage,
}


def train(
    name: str,
    config: TrainingConfig,
    options: StageOptions | None = None,
    start: Path | None = None,
) -> Path:
    """Trains one stage.

    Args:
        name: One of `STAGES`.
        config: `out` is the folder of the whole training.
        options: Sizes and data.
        start: Pipeline folder whose weights the stage starts from; it also supplies the parts
            that this training has not made. Has no effect on a training that is resumed.

    Returns:
        The folder that collects the finished weights, `config.out / "model"`.

    Raises:
        ValueError: for an unknown stage, one whose predecessors were not trained, or a folder to
            start from that does not exist.
    """
    if name not in STAGES:
        raise ValueError(f"Unknown stage {name!r}: choose from {', '.join(STAGES)}.")
    if start is not None and not start.is_dir():
        raise ValueError(f"There is no folder {start} to start from.")
    options = options or StageOptions()
    allow_fast_products()
    config = replace(
        config,
        out=config.out / name,
        learning_rate=config.learning_rate or dict(options.learning_rates)[name],
    )
    options = as_begun(config.out, options)
    sources = Sources(config.out.parent / "model", start)
    with together(config.out):
        if check_processes().is_main_process:
            sweep_unfinished(sources.model)
        torch.manual_seed(config.seed)
        seed = config.seed + 1000 * list(STAGES).index(name) + _count_run(config.out)
        trainer = Trainer(STAGES[name](sources, options, seed), config)
        export = trainer.train()
        if trainer.accelerator.is_main_process:
            collect(export, sources.model)
        trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()  # the processes part: none can wait for another after it
    return sources.model


def edition_of(out: Path, start: Path | None = None) -> int:
    """The edition of the world that a training belongs to, if nobody says another: that of the
    words which its model knows by now, or the weights do that it starts from.

    Args:
        out: Folder of the whole training.
        start: Pipeline folder that it starts from.
    """
    base = out / "base"
    begun = [base / "export"] if (base / "checkpoint").is_dir() else []  # that may be broken off
    for folder in (*begun, *Sources(out / "model", start).folders):
        if (folder / "tokenizer" / "tokenizer.json").is_file():
            return find_edition(AutoTokenizer.from_pretrained(folder / "tokenizer"))
    return EDITIONS[0]


def as_begun(folder: Path, options: StageOptions) -> StageOptions:
    """The options with which a training of an autoencoder goes on: those of another shape than
    today's were begun by an older version.

    Args:
        folder: Of the stage.
        options: Of a new training.
    """
    path = folder / "export" / "vae" / "config.json"
    if not ((folder / "checkpoint").exists() and path.is_file()):
        return options
    config = json.loads(path.read_text(encoding="utf-8"))
    names = ("encoder_channels", "decoder_channels", *BLOCKS)
    shape = tuple((name, tuple(config[name])) for name in names)
    return replace(options, size=replace(options.size, z_dim=config["z_dim"], autoencoder=shape))


def collect(export: Path, model: Path) -> None:
    """Copies what a stage has exported to the parts of all stages, the whole of it or nothing.

    Args:
        export: Folder with a folder of each part.
        model: Folder for them; created when missing.
    """
    with whole_result(create_folder(model)) as folder:
        for part in export.iterdir():
            if (model / part.name).is_dir():  # that of distilled weights has those of two stages
                shutil.copytree(model / part.name, folder / part.name)
            shutil.copytree(part, folder / part.name, dirs_exist_ok=True)


def allow_fast_products() -> None:
    """Lets a GPU compute what is still in float32 in its faster, coarser way."""
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True


def _count_run(folder: Path) -> int:
    """How many runs this stage had before, so that a resumed training sees other scenes. Several
    processes of one run may differ by one here: their data differ by rank anyway."""
    path = folder / "runs"
    path.parent.mkdir(parents=True, exist_ok=True)
    number = int(path.read_text() or 0) if path.exists() else 0
    if check_processes().is_main_process:
        write_text(path, str(number + 1))
    return number
