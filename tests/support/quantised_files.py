"""Quantised files as the tools write them that people use, from weights that a test knows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FLOAT8_MAX = torch.finfo(torch.float8_e4m3fn).max


def is_matrix(name: str, tensor: Tensor) -> bool:
    """What ComfyUI's tools quantise: the weights of linear layers."""
    linear = not re.search(r"embedding|^shared", name)
    return tensor.ndim == 2 and name.endswith(".weight") and linear


def float8(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A plain FP8 file: everything cast, with nothing beside it."""
    return {name: tensor.to(torch.float8_e4m3fn) for name, tensor in weights.items()}


def scaled(
    weights: Mapping[str, Tensor], prefix: str = "", keep: Iterable[str] = ()
) -> dict[str, Tensor]:
    """ComfyUI's older "scaled" layout: one scale a tensor, and a marker."""
    found = {f"{prefix}scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}
    for name, tensor in weights.items():
        if not is_matrix(name, tensor) or name in keep:
            found[prefix + name] = tensor.half()
            continue
        layer, scale = prefix + name.removesuffix(".weight"), tensor.abs().max() / FLOAT8_MAX
        found[f"{layer}.weight"] = (tensor / scale).to(torch.float8_e4m3fn)
        found[f"{layer}.scale_weight"] = scale.float()
        found[f"{layer}.scale_input"] = torch.ones(())
    return found


def described(weights: Mapping[str, Tensor], by_row: bool = False) -> dict[str, Tensor]:
    """ComfyUI's newer layout: a scale, and a layer's format as JSON."""
    found = {}
    for name, tensor in weights.items():
        if not is_matrix(name, tensor):
            found[name] = tensor.bfloat16()
            continue
        layer = name.removesuffix(".weight")
        largest = tensor.abs().amax(dim=1, keepdim=True) if by_row else tensor.abs().max()
        scale = largest / FLOAT8_MAX
        found[name] = (tensor / scale).to(torch.float8_e4m3fn)
        found[f"{layer}.weight_scale"] = scale.float()
        found[f"{layer}.input_scale"] = torch.tensor(0.5)
        text = json.dumps({"format": "float8_e4m3fn", "full_precision_matrix_mult": True})
        found[f"{layer}.comfy_quant"] = torch.tensor(list(text.encode()), dtype=torch.uint8)
    return found


def write_gguf(
    path: Path, weights: Mapping[str, Tensor], kind: str, architecture: str = "wan"
) -> dict[str, Tensor]:
    """A GGUF file as ComfyUI-GGUF's `tools/convert.py` writes it: matrices whose rows can be cut
    into blocks are quantised, or rearranged first; all else is float32.

    Returns:
        What the file holds, as ggml reads it.
    """
    import gguf

    number = gguf.GGMLQuantizationType[kind]
    block, _ = gguf.GGML_QUANT_SIZES[number]
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    held = {}
    for name, tensor in weights.items():
        values, as_kind = tensor.float().numpy(), gguf.GGMLQuantizationType.F32
        if tensor.ndim == 2 and tensor.numel() % block == 0:
            as_kind = number
            if tensor.shape[-1] % block:
                writer.add_array(f"comfy.gguf.orig_shape.{name}", list(tensor.shape))
                values = values.reshape(-1, block)
        stored = quantise(values, as_kind)
        writer.add_tensor(name, stored, raw_dtype=as_kind)
        read = gguf.quants.dequantize(stored, as_kind)
        held[name] = torch.from_numpy(read.astype(np.float32)).view(tensor.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


def quantise(values: np.ndarray, kind) -> np.ndarray:
    """Values in a kind of blocks. The package writes no K-quants: of these, blocks are made whose
    values are small, whatever the weights are."""
    import gguf

    try:
        return gguf.quants.quantize(values, kind)
    except NotImplementedError:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        rows, columns = values.shape
        drawn = np.random.default_rng(0).integers(0, 256, (rows * columns // block, size), np.uint8)
        for place in SCALES[kind.name]:
            drawn[:, place : place + 2] = np.frombuffer(np.float16(1e-4).tobytes(), np.uint8)
        return drawn.reshape(rows, -1)


SCALES = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""Where the scales of a K-quant's block lie, in float16."""
