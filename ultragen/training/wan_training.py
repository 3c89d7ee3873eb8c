"""`train wan`: from a dataset and the base model to weights that `ULTRAGEN_WEIGHTS` takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..dataset.shard_files import Size, size_text
from ..estimates.training_memory import TrainingMemory
from ..hardware import fast_bfloat16
from ..model.transformer import UltraGenTransformer3DModel
from ..ops.gradients import Recomputation, Results
from ..ops.tiles import suits
from ..presets import FRAMES_PER_LATENT, WAN
from ..weights.released import load_dense, load_ultragen
from ..weights.wan import load_vae
from .clip_order import ClipOrder
from .loop import Trainer
from .processes import check_processes, together
from .stage import TrainingConfig
from .stage_order import allow_fast_products
from .stages.wan_samples import WanSamples, embed_sample_prompts, sample_size
from .stages.wan_stage import WanStage
from .trained_parts import BRANCHES, choose_trained
from .wan_options import WanOptions, WanTraining
from .wan_sources import EXPORT, READERS, Sources, area, check_sources, convert


def train_wan(options: WanOptions, config: TrainingConfig, epochs: float | None = None) -> Path:
    """Trains UltraGen's transformer, or a LoRA for it.

    Args:
        options: What is trained, from what, on which clips.
        config: `out` is the folder of this training.
        epochs: Passes over the clips after which it ends; None for no limit.

    Returns:
        The folder of the result, `config.out / "export"`: one that `ULTRAGEN_WEIGHTS` takes, or of
        a LoRA.

    Raises:
        ValueError: if something does not fit: clips, base model, weights, memory.
        OSError: if a file is missing, incomplete or damaged.
    """
    with together(config.out):
        trainer = train_together(options, config, epochs)
    trainer.accelerator.end_training()
    return config.out / EXPORT


def train_together(options: WanOptions, config: TrainingConfig, epochs: float | None) -> Trainer:
    """What `train_wan` does while all processes are there; returns what has trained."""
    processes = check_processes().num_processes
    sources = check_sources(options, config.out)
    group = options.batch_size * config.accumulation * processes
    steps = ClipOrder(sources.clips, group, config.seed).groups
    if epochs is not None:
        most = max(1, round(epochs * steps))
        config = replace(config, max_steps=min(most, config.max_steps or most))
    check_gpu_memory(sources.config, sources.clips, options, config, processes)
    allow_fast_products()
    torch.manual_seed(config.seed)
    size = max(sources.clips, key=tokens_of)
    samples = make_samples(
        sources.base, options, config.out, size, num_inference_steps=options.sample_steps
    )
    stage = WanStage(
        load_model(sources, options, config),
        sources.dataset,
        sources.clips,
        options.batch_size,
        group,
        config.seed,
        samples,
        sources.settings,
    )
    trainer = Trainer(stage, config)
    print_plan(trainer, sources, group, steps)
    trainer.train()
    return trainer


def print_plan(trainer: Trainer, sources: Sources, group: int, steps: int) -> None:
    """Says what is about to happen."""
    sizes = ", ".join(f"{size_text(size)} ({len(found)})" for size, found in sources.clips.items())
    print_start(trainer, f"Clips: {sizes}; {group} a step, {steps} steps a pass.")


def print_start(trainer: Trainer, clips: str) -> None:
    """Says what is about to be trained, on which clips."""
    parameters = [p for p in trainer.stage.model.parameters() if p.requires_grad]
    trained = sum(p.numel() for p in parameters) / 1e6
    settings = ", ".join(f"{key} {value}" for key, value in trainer.stage.settings.items())
    trainer.accelerator.print(
        f"{clips} Trained: {trained:.1f} million parameters ({settings}).", flush=True
    )


def check_gpu_memory(
    model: Mapping[str, Any],
    sizes: Iterable[Size],
    options: WanTraining,
    config: TrainingConfig,
    processes: int,
    teacher: bool = False,
) -> None:
    """Checks, on GPUs, that the training fits into memory.

    Args:
        model: The transformer's configuration.
        sizes: Of the clips.
        options: What is trained.
        config: Its settings.
        processes: How many train.
        teacher: Whether a frozen copy of the model lies beside it.

    Raises:
        ValueError: if it does not fit, with what would.
    """
    if not torch.cuda.is_available():
        return
    size = max(sizes, key=tokens_of)
    memory = training_memory(model, size, options, config, processes, teacher)
    memory.check(torch.cuda.mem_get_info()[0], f"{options.batch_size} × {size_text(size)}")


def tokens_of(size: Size) -> int:
    """Tokens of a clip."""
    frames = (size[2] - 1) // FRAMES_PER_LATENT + 1
    return frames * area(size) // WAN.pixels_per_token**2


def training_memory(
    config_of_model: Mapping[str, Any],
    size: Size,
    options: WanTraining,
    config: TrainingConfig,
    processes: int,
    teacher: bool,
) -> TrainingMemory:
    """What a training takes, counted on the meta device; arguments as in `check_gpu_memory`."""
    with torch.device("meta"):
        model = UltraGenTransformer3DModel.from_config(config_of_model)
        before = model.num_parameters()
        choose_trained(model, options.trained, options.lora, torch.bfloat16)
    return TrainingMemory(
        tokens=options.batch_size * tokens_of(size),
        parameters=before,
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        branches=sum(p.numel() for name, p in model.named_parameters() if BRANCHES in name),
        layers=model.config.num_layers,
        width=model.config.num_attention_heads * model.config.attention_head_dim,
        full_layers=len(model.config.full_attention_layers),
        one_operation=torch.cuda.is_available() and suits(torch.device("cuda")),
        recomputed=options.recomputed,
        on_host=options.on_host,
        optimizer=config.optimizer,
        average=config.average,
        processes=processes,
        teacher=before if teacher else 0,
    )


# Loading


def load_model(
    sources: Sources, options: WanOptions, config: TrainingConfig
) -> UltraGenTransformer3DModel:
    """The transformer, with what is trained marked."""
    if sources.start is None:
        dense = load_dense(sources.base / "transformer")
        model = convert(dense, options, max(sources.clips, key=area))
    else:
        model = load_ultragen(sources.start)
        # Weights that are trained on need guidance and all steps again.
        model.register_to_config(distilled_steps=None, distilled_shift=None)
    prepare(model, options, config)
    return model


def prepare(
    model: UltraGenTransformer3DModel, options: WanTraining, config: TrainingConfig
) -> None:
    """Marks what is trained of a transformer, and says what is computed again."""
    choose_trained(model, options.trained, options.lora, computed_in(config))
    every = {"all": 1, "half": 2}.get(options.recomputed)
    if every is not None:
        # On the host there is room for what attention gave, which saves computing it again.
        results: Results = "all" if options.on_host else "whole"
        kept = Recomputation(every, results, options.on_host)
        model.enable_gradient_checkpointing(kept)  # type: ignore[operator]


def computed_in(config: TrainingConfig) -> torch.dtype:
    """The type that is computed in, over trained weights in float32."""
    fast = torch.cuda.is_available() or fast_bfloat16()
    bfloat16 = config.precision == "bfloat16" or (config.precision is None and fast)
    return torch.bfloat16 if bfloat16 else torch.float32


def make_samples(
    base: Path, options: WanTraining, out: Path, size: Size, **sampling: Any
) -> WanSamples | None:
    """What makes sample sheets; None where the base model has no text encoder.

    Args:
        base: Wan's folder.
        options: What they show.
        out: The training's folder, for their prompts' embeddings.
        size: Of the largest clips that are trained on.
        sampling: How `WanSamples` samples.
    """
    if not (base / READERS[0]).is_dir():
        return None
    state = check_processes()
    device = state.device
    with state.main_process_first():  # the others find its file
        texts = embed_sample_prompts(
            base, options.sample_prompts, out / "prompts.safetensors", device
        )
    vae = load_vae(base / "vae", torch.bfloat16 if device.type == "cuda" else torch.float32)
    return WanSamples(vae, *texts, sample_size(size), **sampling)
