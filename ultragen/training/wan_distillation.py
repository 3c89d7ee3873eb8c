"""`train wan-distill`: from the 1.3B model and prompts to one that needs few steps and no
guidance."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..dataset.shard_files import Size, size_text
from ..dataset.shards import text_fingerprint
from ..model.transformer import UltraGenTransformer3DModel
from ..presets import RESOLUTIONS, T3_4K, WAN, WAN_SOURCE
from ..weights.fingerprint import fingerprint
from ..weights.hub import locate
from ..weights.released import cast_weights, load_dense, load_ultragen
from .checkpoint import check_data
from .loop import Trainer
from .processes import check_processes, each_by_itself, together
from .prompt_texts import PromptTexts, embed_missing, prompts_fingerprint, read_prompts
from .stage import TrainingConfig
from .stage_order import allow_fast_products
from .stages.wan_distillation_stage import WanDistillStage
from .wan_options import WanDistillOptions, dense_layout
from .wan_sources import (
    CHECKPOINT,
    EXPORT,
    READERS,
    check_dense,
    check_sizes,
    check_start,
    locate_start,
)
from .wan_training import check_gpu_memory, computed_in, make_samples, prepare, print_start

TEXTS = "prompts"


@dataclass(frozen=True)
class DistillSources:
    """What a distillation is made of, found and checked, not yet read.

    Attributes:
        base: Wan's folder.
        start: The teacher's weights; None for the base model's own.
        prompts: What clips are made of.
        negative_prompt: What the teacher's guidance leads away from.
        size: Of the clips.
        config: Settings of the transformer.
        texts: Folder for the prompts' embeddings.
        settings: What can't change while the training goes on, for people.
    """

    base: Path
    start: Path | None
    prompts: tuple[str, ...]
    negative_prompt: str
    size: Size
    config: dict[str, Any]
    texts: Path
    settings: dict[str, str]


def train_wan_distill(options: WanDistillOptions, config: TrainingConfig) -> Path:
    """Distils the 1.3B model, or a LoRA for it.

    Args:
        options: What is distilled, to how many steps.
        config: `out` is the folder of this training.

    Returns:
        The folder of the result, `config.out / "export"`, as `train_wan` writes it; weights that
        are no LoRA say how many steps they take.

    Raises:
        ValueError: if something does not fit: prompts, base model, weights, memory.
        OSError: if a file is missing, incomplete or damaged.
    """
    with together(config.out):
        trainer = distill_together(options, config)
    trainer.accelerator.end_training()
    return config.out / EXPORT


def distill_together(options: WanDistillOptions, config: TrainingConfig) -> Trainer:
    """What `train_wan_distill` does while all processes are there; returns what has trained."""
    state = check_processes()
    sources = check_distill_sources(options, config.out)
    copied = options.trained != "lora"
    check_gpu_memory(
        sources.config, [sources.size], options, config, state.num_processes, teacher=copied
    )
    allow_fast_products()
    torch.manual_seed(config.seed)
    with each_by_itself():
        read = (*sources.prompts, sources.negative_prompt)
        embed_missing(sources.texts, sources.base, read, state)
    texts = PromptTexts(sources.texts, sources.prompts)
    sampling = {
        "num_inference_steps": options.steps,
        "guidance_scale": 1.0,
        "shift": options.shift,
    }
    samples = make_samples(sources.base, options, config.out, sources.size, **sampling)
    student, teacher = load_pair(sources, options, config)
    batch, processes = options.batch_size, state.num_processes
    first = [
        (turn * processes + state.process_index) * batch for turn in range(config.accumulation)
    ]
    stage = WanDistillStage(
        student,
        teacher,
        texts,
        texts.of(sources.negative_prompt),
        sources.size,
        options.steps,
        options.guidance_scale,
        options.shift,
        batch,
        config.accumulation * processes * batch,
        [place + i for place in first for i in range(batch)],
        config.seed,
        samples,
        sources.settings,
    )
    trainer = Trainer(stage, config)
    clips = f"Clips: {size_text(sources.size)}, of {len(texts)} prompts; {stage.group} a step."
    print_start(trainer, clips)
    trainer.train()
    return trainer


def check_distill_sources(options: WanDistillOptions, out: Path) -> DistillSources:
    """Finds and checks what a distillation is made of, the prompts first: the base model may have
    to be downloaded.

    Args:
        options: As in `train_wan_distill`.
        out: The training's folder, which may have a checkpoint.

    Raises:
        ValueError: if something does not fit.
        OSError: if a file is missing, incomplete or damaged.
    """
    options.check()
    prompts = read_prompts(options.prompts)
    check_data(out / CHECKPOINT, prompts_fingerprint(prompts))
    base = locate(options.base, WAN_SOURCE)
    dense = check_dense(base)
    if not (base / READERS[0]).is_dir():
        raise ValueError(
            f"{base} has no text encoder, which the prompts are embedded by: take all of the base "
            "model."
        )
    start = None if options.start is None else locate_start(options.start)
    model = as_ultragen(dense) if start is None else check_start(start, dense)
    if model.config.distilled_steps:
        raise ValueError(
            f"{start} is distilled already, to {model.config.distilled_steps} steps: give --start "
            "the weights that it was distilled from."
        )
    preset = T3_4K if model.config.t3_windows else WAN
    shape = RESOLUTIONS[options.resolution or preset.resolution].shaped(options.aspect)
    size = shape.height, shape.width, options.num_frames or preset.num_frames
    check_sizes(model, [size], "Choose another --resolution or --aspect.")
    negative = options.negative_prompt
    negative = preset.negative_prompt if negative is None else negative
    readers = text_fingerprint(base)[:12]
    settings = {
        "kind of training": options.trained,
        "start": fingerprint(start or base / "transformer")[:12],
        "student": f"{options.steps} steps, shift {options.shift:g}",
        "guidance of the teacher": f"{options.guidance_scale:g}, away from {negative!r}",
        "size of clips": size_text(size),
        "text encoder": readers,
    }
    texts = out / TEXTS / readers
    return DistillSources(base, start, prompts, negative, size, dict(model.config), texts, settings)


def as_ultragen(dense: Any) -> UltraGenTransformer3DModel:
    """Dense Wan as it is, in the class whose weights `ULTRAGEN_WEIGHTS` takes."""
    return UltraGenTransformer3DModel.from_wan(dense, **dense_layout(dense.config.num_layers))


def load_pair(
    sources: DistillSources, options: WanDistillOptions, config: TrainingConfig
) -> tuple[UltraGenTransformer3DModel, UltraGenTransformer3DModel | None]:
    """The student, with what is trained marked, and its teacher; None where the student without its
    adapter is the teacher."""
    if sources.start is None:
        student = as_ultragen(load_dense(sources.base / "transformer"))
    else:
        student = load_ultragen(sources.start)
    teacher = None
    if options.trained != "lora":
        teacher = cast_weights(deepcopy(student), computed_in(config))
    prepare(student, options, config)
    student.register_to_config(distilled_steps=options.steps, distilled_shift=float(options.shift))
    return student, teacher
