"""`convert`: foreign weights into diffusers' layout, and the way back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import console
from .options import Overwrite, app

FILES = (".safetensors", ".ckpt", ".pth", ".pt", ".bin")
"""Suffixes that make the result one file with the authors' names."""


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(help="Weights: a file, the index of shards, or a model's folder.")
    ],
    out: Annotated[
        Path,
        typer.Argument(
            help="Folder of the transformer in diffusers' layout; with a suffix such as "
            ".safetensors, a file with the authors' names."
        ),
    ],
    overwrite: Overwrite = False,
    layout: Annotated[
        str | None,
        typer.Option(help="t3: the weights are T3-Video's, whatever the file is called."),
    ] = None,
) -> None:
    """Convert weights to diffusers' layout, or back into the authors'.

    They are the released UltraGen weights, T3-Video's, or dense Wan, to train on. Settings that
    differ from the released ones need a .safetensors file, whose header holds them.
    """
    if out.resolve() in (source.resolve(), *source.resolve().parents):
        raise ValueError(f"{out} holds the weights that are converted: choose another folder.")
    one_file = out.suffix in FILES
    earlier = [] if one_file else list(out.glob("diffusion_pytorch_model*"))
    names = (out.name,) if one_file else ("config.json", *(path.name for path in earlier))
    console.check_free(out.parent if one_file else out, names, overwrite)
    console.quiet_libraries()
    from ..model.transformer import UltraGenTransformer3DModel
    from ..weights.released import load_transformer, save_released

    model: Any = load_transformer(source, layout=layout)
    trained = isinstance(model, UltraGenTransformer3DModel)
    if not trained:
        model = UltraGenTransformer3DModel.from_wan(model)
    if one_file:
        save_released(model, out)
    else:
        # What is there may have more shards.
        with console.whole_results(out, names) as folder:
            model.save_pretrained(folder)
    kinds = model.layer_kinds
    other = sum(kind != "full" for kind in kinds)
    what = "T3-Video's windows" if model.config.t3_windows else "UltraGen's branches"
    print(
        f"Written: {out}, {model.num_parameters() / 1e9:.2f} billion parameters, "
        f"{len(kinds)} layers, {other} with {what}"
        + ("" if trained else ", which are untrained: a start for training, not a model to use")
    )
