"""FP8 and GGUF files: turned into bfloat16 with no error beside the file's, and refused where a
weight or a scale is not what it should be."""

from __future__ import annotations

import builtins
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from commands import one_line, ultragen
from quantised_files import described, float8, is_matrix, scaled, write_gguf
from released_files import dense_weights, sharded
from released_reference import Sizes, released_weights
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ultragen.pipeline import UltraGenPipeline
from ultragen.weights.keys import model_keys
from ultragen.weights.read import read_weights
from ultragen.weights.released import load_dense, load_released, load_transformer, load_ultragen
from ultragen.weights.wan import check_wan

QKV = "blocks.1.self_attn.q"


@pytest.fixture(scope="module")
def whole() -> dict[str, Tensor]:
    """Released weights whose matrices GGUF's larger blocks divide."""
    return released_weights(Sizes(dim=256, ffn=512, text=256, freq=256, layers=3, full=(0,)))


def held(
    model: nn.Module, layers: int = 3, branched: tuple[int, ...] = (1, 2)
) -> dict[str, Tensor]:
    """A model's tensors under the original names."""
    ours = model.state_dict()
    return {key: ours[name] for key, name in model_keys(layers, branched).items()}


def layer_error(weight: Tensor, exact: Tensor) -> float:
    """How far a layer's output is from the exact one's, relative to it."""
    x = torch.randn(64, exact.shape[1], generator=torch.Generator().manual_seed(0))
    return ((x @ (weight.float() - exact.float()).T).norm() / (x @ exact.float().T).norm()).item()


# FP8


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_a_scaled_file_becomes_bfloat16_with_fp8s_own_error(small, tmp_path, prefix):
    path = tmp_path / "wan_fp8_e4m3fn_scaled.safetensors"
    file = scaled(small, prefix)
    save_file(file, path)
    model = load_released(path)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16, torch.float32}
    matrices = [name for name, x in small.items() if is_matrix(name, x)]
    assert len(matrices) > 40
    for name, found in held(model).items():
        if name not in matrices:
            assert torch.equal(found, small[name].half().to(found.dtype))
            continue
        layer = prefix + name.removesuffix(".weight")
        fp8 = file[f"{layer}.weight"].float() * file[f"{layer}.scale_weight"]
        # Rounding to bfloat16 adds 2⁻⁹ of a value at most, where FP8's own steps are 2⁻⁴.
        assert layer_error(found, small[name]) < 1.02 * layer_error(fp8, small[name]) < 0.05


@pytest.mark.parametrize("by_row", [False, True], ids=["a tensor", "a row"])
def test_the_newer_layout_with_a_scale_for(small, by_row):
    file = described(small, by_row)
    model = load_released(file)
    for name, found in held(model).items():
        if is_matrix(name, small[name]):
            scale = file[f"{name.removesuffix('.weight')}.weight_scale"]
            expected = (file[name].float() * scale).bfloat16()
            assert torch.equal(found.bfloat16(), expected)


def test_scales_for_blocks(small):
    file = described(small)
    weight, size = small[f"{QKV}.weight"], 32
    blocks = weight.view(4, size, 4, size).abs().amax(dim=(1, 3)) / 448
    spread = blocks.repeat_interleave(size, 0).repeat_interleave(size, 1)
    file[f"{QKV}.weight"] = (weight / spread).to(torch.float8_e4m3fn)
    file[f"{QKV}.weight_scale"] = blocks
    found = held(load_released(file))[f"{QKV}.weight"]
    assert torch.equal(found, (file[f"{QKV}.weight"].float() * spread).bfloat16())


def test_fp8_in_bytes(small):
    """ComfyUI's layout allows a container of bytes; the description tells what they are."""
    file = described(small)
    expected = held(load_released(file))
    file[f"{QKV}.weight"] = file[f"{QKV}.weight"].view(torch.uint8)
    found = held(load_released(file))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_a_plain_file_is_only_cast(small, kind):
    model = load_released({name: x.to(kind) for name, x in small.items()})
    for name, found in held(model).items():
        assert torch.equal(found.float(), small[name].to(kind).float())


def test_layers_in_high_precision_may_have_a_scale_of_one(small):
    file = scaled(small, keep=[f"{QKV}.weight"])
    file[f"{QKV}.scale_weight"] = torch.ones(1)
    assert torch.equal(
        held(load_released(file))[f"{QKV}.weight"], small[f"{QKV}.weight"].half().bfloat16()
    )


def test_shards_may_part_weights_from_their_scales(small, tmp_path):
    file = scaled(small)
    index = sharded(file, tmp_path / "model", shards=5)
    found, expected = held(load_released(index)), held(load_released(file))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert read_weights(index).keys() == small.keys()


def test_only_checked(small, tmp_path):
    """On the meta device, nothing but names, types and shapes is read of the weights."""
    save_file(scaled(small), tmp_path / "fp8.safetensors")
    model = load_ultragen(tmp_path / "fp8.safetensors", device="meta")
    assert all(p.is_meta for p in model.parameters())


def test_diffusers_names_in_fp8(tmp_path):
    """A folder in diffusers' layout, quantised by ComfyUI's tools."""
    dense = load_dense(dense_weights())
    dense.save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    ours = load_file(path)
    save_file(scaled(ours), path)
    assert layer_error(load_dense(tmp_path).proj_out.weight, dense.proj_out.weight) < 0.05


@pytest.mark.parametrize("config", [True, False], ids=["with config.json", "alone"])
def test_a_comfyui_file_stands_for_the_base_models_transformer(tmp_path, config):
    weights = dense_weights()
    dense = load_dense(weights)
    if config:
        dense.save_config(tmp_path)
    save_file(scaled(weights), tmp_path / "wan2.1_t2v_1.3B_fp8_scaled.safetensors")
    loaded = load_dense(tmp_path)
    assert loaded.config.num_layers == 2
    assert layer_error(loaded.proj_out.weight, dense.proj_out.weight) < 0.05


def original_names(folder: Path) -> dict[str, Tensor]:
    """The dense weights of a folder in diffusers' layout under their original names."""
    ours = load_file(folder / "diffusion_pytorch_model.safetensors")
    return {theirs: ours[name] for theirs, name in model_keys(3, ()).items()}


@pytest.mark.parametrize("kind", ["FP8", "GGUF"])
def test_the_base_model_with_a_quantised_transformer(files, tmp_path, kind):
    base = tmp_path / "wan"
    shutil.copytree(files.base, base)
    weights = original_names(base / "transformer")
    expected = load_dense(base / "transformer")
    shutil.rmtree(base / "transformer")
    (base / "transformer").mkdir()
    if kind == "FP8":
        save_file(scaled(weights), base / "transformer" / "wan2.1_t2v_1.3B_fp8.safetensors")
    else:
        write_gguf(base / "transformer" / "wan2.1-t2v-1.3b-Q8_0.gguf", weights, "Q8_0")
    check_wan(base, files.ultragen)
    dense = UltraGenPipeline.from_wan(base, files.ultragen).base_transformer
    assert dense.dtype == torch.bfloat16
    weight, exact = (model.blocks[1].ffn.net[0].proj.weight for model in (dense, expected))
    assert 0 < layer_error(weight, exact) < 0.05


def change(**tensors: Tensor | None):
    """Changes tensors of the layer, given by what comes after its name."""

    def damage(file: dict[str, Tensor]) -> None:
        for last, tensor in tensors.items():
            file.pop(f"{QKV}.{last}", None)
            if tensor is not None:
                file[f"{QKV}.{last}"] = tensor

    return damage


def text(content: str) -> Tensor:
    return torch.tensor(list(content.encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (change(weight_scale=None), rf"FP8 weights without scales: weights \(1\): {QKV}\.weight"),
        (change(weight=None), rf"scales, but not their weights: layers \(1\): {QKV}"),
        (change(weight_scale=torch.ones(3)), "weight_scale is 3, and the weight 128 × 128"),
        (change(weight_scale=torch.ones(5, 4)), "is 5 × 4, and the weight 128 × 128"),
        (change(weight_scale=torch.tensor(float("nan"))), "weight_scale is no finite number"),
        (change(scale_weight=torch.ones(())), "two scales for .*scale_weight and weight_scale"),
        (change(weight=torch.zeros(128, 128).bfloat16()), "tells float8_e4m3fn, and the weight is"),
        (change(comfy_quant=text('{"format": "nvfp4"}')), r"quantised weights \(nvfp4, .*FP8"),
        (change(comfy_quant=text("{format")), "comfy_quant is no description of a layer"),
        (change(comfy_quant=text("[1]")), "comfy_quant is no description of a layer"),
        (change(comfy_quant=None, weight=torch.zeros(128, 128)), "which is not quantised"),
        (change(weight=torch.zeros(128, 64).to(torch.float8_e4m3fn)), "is 128 × 64, not 128 × 128"),
        (change(weight_scale_2=torch.ones(())), rf"unexpected \(1\): {QKV}\.weight_scale_2"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_a_damaged_fp8_file_is_named(small, tmp_path, capsys, damage, says):
    file = described(small)
    damage(file)
    path = tmp_path / "fp8.safetensors"
    save_file(file, path)
    with pytest.raises(ValueError, match=says):
        load_released(path)
    assert ultragen("convert", path, tmp_path / "out") == 2
    assert str(path) in one_line(capsys)


# GGUF


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"])
def test_gguf_becomes_bfloat16(whole, tmp_path, kind):
    path = tmp_path / f"ultragen-{kind}.gguf"
    expected = write_gguf(path, whole, kind)
    model = load_released(path)
    for name, found in held(model).items():
        assert torch.equal(found, expected[name].bfloat16().to(found.dtype)) or torch.equal(
            found, expected[name].to(found.dtype)
        )
    kept = model.condition_embedder.time_embedder.linear_1
    assert (model.dtype, kept.weight.dtype) == (torch.bfloat16, torch.float32)


def test_gguf_has_five_axes_and_rearranged_weights(tmp_path):
    """`patch_embedding` has five; `comfy.gguf.orig_shape` tells those that were cut elsewhere."""
    weights = released_weights(Sizes(dim=128, ffn=64, text=80, freq=32, layers=2, full=(0, 1)))
    expected = write_gguf(tmp_path / "wan.gguf", weights, "Q8_0")
    assert weights["text_embedding.0.weight"].shape == (128, 80)
    found = read_weights(tmp_path / "wan.gguf")
    assert found.keys() == weights.keys()
    for name, value in found.items():
        assert value.shape == weights[name].shape
        torch.testing.assert_close(value.float(), expected[name], rtol=2**-8, atol=0)
    assert load_dense(tmp_path / "wan.gguf").config.text_dim == 80


def test_convert_takes_quantised_files(whole, tmp_path, capsys):
    write_gguf(tmp_path / "ultragen.gguf", whole, "Q8_0")
    save_file(scaled(whole), tmp_path / "ultragen.safetensors")
    for source in ("ultragen.gguf", "ultragen.safetensors"):
        out = tmp_path / f"out-{source}"
        assert ultragen("convert", tmp_path / source, out) == 0
        assert "2 with UltraGen's branches\n" in capsys.readouterr().out
        found, expected = load_ultragen(out), load_released(tmp_path / source)
        for name, value in expected.state_dict().items():
            assert torch.equal(found.state_dict()[name].float(), value.float())
        size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
        assert size < 2.2 * found.num_parameters()


@pytest.mark.parametrize("kept", [0.9, 0.5, 0.05, 0.001])
def test_half_a_gguf_file(whole, tmp_path, kept):
    path = tmp_path / "half.gguf"
    write_gguf(path, whole, "Q8_0")
    path.write_bytes(path.read_bytes()[: max(8, int(kept * path.stat().st_size))])
    with pytest.raises(OSError, match=r"half\.gguf is incomplete or damaged"):
        load_released(path)


def test_a_gguf_file_of_another_kind(tmp_path):
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(str(tmp_path / "tq.gguf"), "wan")
    kind = gguf.GGMLQuantizationType.TQ1_0
    stored = gguf.quants.quantize(np.zeros((4, 256), np.float32), kind)
    writer.add_tensor("blocks.0.ffn.0.weight", stored, raw_dtype=kind)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file):
        write()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match=r"blocks\.0\.ffn\.0\.weight as TQ1_0, which only ggml"):
        load_transformer(tmp_path / "tq.gguf")


def test_a_vocabulary_in_a_gguf_file_is_passed_over(tmp_path):
    """As text encoders bring it, before and after what is needed of the header."""
    import gguf
    import numpy as np

    path, number = tmp_path / "umt5.gguf", 5000
    writer = gguf.GGUFWriter(str(path), "t5encoder")
    writer.add_array("tokenizer.ggml.tokens", [f"piece {i}" for i in range(number)])
    writer.add_array("comfy.gguf.orig_shape.a.weight", [2, 2, 32])
    writer.add_array("tokenizer.ggml.scores", [0.5] * number)
    writer.add_array("tokenizer.ggml.token_type", [1] * number)
    writer.add_array("tokenizer.ggml.added_tokens", ["<extra>"])
    values = np.arange(128, dtype=np.float32).reshape(4, 32)
    writer.add_tensor("a.weight", values)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file):
        write()
    writer.write_tensors_to_file()
    writer.close()
    found = read_weights(path)["a.weight"]
    assert torch.equal(found, torch.from_numpy(values).view(2, 2, 32))
    path.write_bytes(path.read_bytes()[:60_000])  # within the pieces
    with pytest.raises(OSError, match=r"umt5\.gguf is incomplete or damaged"):
        read_weights(path)


def test_gguf_of_another_model_and_of_other_widths(whole, tmp_path):
    write_gguf(tmp_path / "flux.gguf", {"double_blocks.0.x.weight": torch.zeros(4, 32)}, "Q8_0")
    with pytest.raises(ValueError, match=r"flux\.gguf looks like Flux"):
        load_transformer(tmp_path / "flux.gguf")
    other = {**whole, f"{QKV}.weight": torch.zeros(256, 128)}
    write_gguf(tmp_path / "other.gguf", other, "Q8_0")
    with pytest.raises(ValueError, match=rf"misshapen \(1\): {QKV}\.weight is 256 × 128, not 256"):
        load_released(tmp_path / "other.gguf")


def test_without_the_package_a_line_names_it(tmp_path, monkeypatch, capsys):
    path = tmp_path / "wan.gguf"
    write_gguf(path, {"a.weight": torch.zeros(4, 32)}, "Q8_0")
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name == "diffusers.quantizers.gguf.utils":
            raise ImportError("No module named 'gguf'")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    assert ultragen("convert", path, tmp_path / "out") == 2
    assert "pip install 'gguf>=" in one_line(capsys)


# Two models


@pytest.mark.parametrize(
    ("others", "says"),
    [
        (["first_stage_model.encoder.conv1.weight"], "two models, Wan's transformer and .* a VAE"),
        (["text_encoders.umt5xxl.transformer.shared.weight"], "two models.* a text encoder"),
        (["shared.weight", "encoder.block.0.layer.0.x"], "two models.* text or image encoder"),
        (["input_blocks.0.0.weight"], "two models.*Stable Diffusion UNet"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_two_models_in_one_file(small, tmp_path, capsys, others, says):
    file = {f"model.diffusion_model.{name}": x for name, x in float8(small).items()}
    save_file(file | {name: torch.zeros(2) for name in others}, tmp_path / "all.safetensors")
    assert ultragen("convert", tmp_path / "all.safetensors", tmp_path / "out") == 2
    assert re.search(says, one_line(capsys))


def test_a_description_in_the_header_changes_nothing(small, tmp_path):
    """Newer tools repeat the layers' formats in the file's metadata."""
    file = described(small)
    layers = {key.removesuffix(".comfy_quant"): {"format": "float8_e4m3fn"}
              for key in file if key.endswith(".comfy_quant")}  # fmt: skip
    metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    alone = {key: x for key, x in file.items() if not key.endswith(".comfy_quant")}
    save_file(alone, tmp_path / "fp8.safetensors", metadata=metadata)
    found, expected = held(load_released(tmp_path / "fp8.safetensors")), held(load_released(file))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
