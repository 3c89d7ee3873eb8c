"""Trained parts together as one pipeline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from transformers import AutoTokenizer

from ..files import create_folder, whole_result
from ..model.autoencoder import CompactAutoencoder
from ..model.classifier import AttributeClassifier
from ..model.strict_loading import load_strictly
from ..model.text_encoder import ClauseTextEncoder
from ..model.transformer import UltraGenTransformer3DModel
from ..model.upscaler import UpscalerNetwork
from ..pipeline import UltraGenPipeline
from ..weights.fingerprint import write_digests
from .build import ModelSize, build_scheduler
from .stage_options import StageOptions
from .stages.distillation import DISTILLED, distilled_steps

SHARD_SIZE = "8MB"  # the Hub refuses files above 10 MB that are not in LFS


def put_together(
    size: ModelSize, solver_order: int | None = None, **parts: Any
) -> UltraGenPipeline:
    """A pipeline of these parts, with the settings that they are trained with.

    Args:
        size: Supplies the scheduler, the prediction and the text length.
        solver_order: Order of the sampler in place of the size's own.
        parts: Tokenizer, text encoder, autoencoder and transformers by their names in
            `UltraGenPipeline`; other settings of it.
    """
    return UltraGenPipeline(
        scheduler=build_scheduler(size),
        max_sequence_length=size.text_length,
        prediction=size.prediction,
        data_std=size.data_std,
        solver_order=solver_order or size.solver_order,
        **parts,
    )


def assemble(
    model: Path, out: Path, options: StageOptions | None = None, undistilled: bool = False
) -> None:
    """Puts the finished weights together as one pipeline folder in float16, in small files. An
    earlier one there is replaced as a whole or not at all.

    Args:
        model: Folder that the stages filled.
        out: Folder for the pipeline, loaded by `UltraGenPipeline.from_pretrained`.
        options: As the stages had them.
        undistilled: Takes the teachers also where their students are there.

    Raises:
        ValueError: if only one of the two transformers is distilled, or each to other steps.
    """
    options = options or StageOptions()
    size = options.size
    steps = None if undistilled else distilled_steps(model, dict(options.distill)["steps"])
    weights = model / DISTILLED if steps else model
    pipeline = put_together(
        size,
        1 if steps else None,
        distilled_steps=steps,
        tokenizer=AutoTokenizer.from_pretrained(model / "tokenizer"),
        text_encoder=load_strictly(ClauseTextEncoder, model / "text_encoder"),
        vae=CompactAutoencoder.from_pretrained(model / "vae"),
        transformer=UltraGenTransformer3DModel.from_pretrained(weights / "transformer"),
        base_transformer=load_strictly(WanTransformer3DModel, weights / "base_transformer"),
    )
    upscaler = UpscalerNetwork.from_pretrained(model / "upscaler")
    with whole_result(create_folder(out)) as folder:
        for path in (*out.glob("*.md"), *out.glob("*.npy")):  # people's words, colours of previews
            shutil.copy(path, folder)
        pipeline.to(torch.float16).save_pretrained(folder, max_shard_size=SHARD_SIZE)
        upscaler.to(torch.float16).save_pretrained(folder / "upscaler")
        save_classifier(model, out, folder)
        for path in folder.glob("*/config.json"):
            forget_origin(path)
        write_digests(folder)


def save_classifier(model: Path, out: Path, folder: Path) -> None:
    """Saves what measures clips, which is not needed to make them: the trained one, or else the
    one that the earlier pipeline at `out` has."""
    if (model / "classifier").is_dir():
        classifier = AttributeClassifier.from_pretrained(model / "classifier")
        classifier.to(torch.float16).save_pretrained(folder / "classifier")
        shutil.copy(model / "classifier" / "accuracy.json", folder / "classifier")
    elif (out / "classifier").is_dir():
        shutil.copytree(out / "classifier", folder / "classifier")


def forget_origin(path: Path) -> None:
    """Takes out of a configuration where its model was loaded from: a folder of this machine."""
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.pop("_name_or_path", None) is not None:
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
