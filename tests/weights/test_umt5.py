"""umT5's encoder from one file: as close to the base model's as its quantisation is, in half of the
memory, and in every naming that people have."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import pytest
import torch
from quantised_files import described, float8, scaled, write_gguf
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from ultragen.estimates.memory import weights_of
from ultragen.hardware import GIB, Hardware
from ultragen.model.quantised import QuantisedEmbedding, QuantisedLinear
from ultragen.pipeline import UltraGenPipeline
from ultragen.presets import WAN_SOURCE
from ultragen.runs.choice import why_not
from ultragen.runs.loading import load_models, take_turns
from ultragen.weights.hub import base_source
from ultragen.weights.released import load_released
from ultragen.weights.umt5 import load_umt5
from ultragen.weights.wan import check_wan

SIZE = {
    "vocab_size": 128, "d_model": 256, "d_kv": 64, "d_ff": 512, "num_layers": 2, "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
}  # fmt: skip
FIRST = "encoder.block.0.layer.0.SelfAttention"
IDS = torch.tensor([[5, 17, 100, 1, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 0, 0]])
GGUF = {
    "shared": "token_embd", "encoder.final_layer_norm": "enc.output_norm",
    "layer.0.SelfAttention.relative_attention_bias": "attn_rel_b",
    "layer.0.SelfAttention.": "attn_", "layer.0.layer_norm": "attn_norm",
    "layer.1.DenseReluDense.wi_0": "ffn_gate", "layer.1.DenseReluDense.wi_1": "ffn_up",
    "layer.1.DenseReluDense.wo": "ffn_down", "layer.1.layer_norm": "ffn_norm",
    "encoder.block.": "enc.blk.",
}  # fmt: skip
WAN = {
    "shared": "token_embedding", "encoder.final_layer_norm": "norm",
    "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
    "layer.0.SelfAttention.": "attn.", "layer.0.layer_norm": "norm1",
    "layer.1.DenseReluDense.wi_0": "ffn.gate.0", "layer.1.DenseReluDense.wi_1": "ffn.fc1",
    "layer.1.DenseReluDense.wo": "ffn.fc2", "layer.1.layer_norm": "norm2",
    "encoder.block.": "blocks.",
}  # fmt: skip


@pytest.fixture(scope="module")
def encoder() -> UMT5EncoderModel:
    torch.manual_seed(0)
    model = UMT5EncoderModel(UMT5Config(**SIZE)).eval()
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model


@pytest.fixture(scope="module")
def weights(encoder) -> dict[str, Tensor]:
    return {k: v for k, v in encoder.state_dict().items() if k != "encoder.embed_tokens.weight"}


def renamed(weights: dict[str, Tensor], table: dict[str, str]) -> dict[str, Tensor]:
    found = {}
    for name, tensor in weights.items():
        for ours, theirs in table.items():
            name = name.replace(ours, theirs)
        found[name] = tensor
    return found


@torch.no_grad()
def embed(model: UMT5EncoderModel) -> Tensor:
    return model(IDS, MASK).last_hidden_state[:, :4].float()


def apart(found: UMT5EncoderModel, expected: UMT5EncoderModel) -> float:
    one, other = embed(found), embed(expected)
    return ((one - other).norm() / other.norm()).item()


def dense(held: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> UMT5EncoderModel:
    model = UMT5EncoderModel(UMT5Config(**SIZE)).eval()
    model.load_state_dict(held | {"encoder.embed_tokens.weight": held["shared.weight"]})
    return model.to(dtype)


def size(model: torch.nn.Module) -> int:
    return sum(x.nbytes for x in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("layout", [scaled, described], ids=["scaled", "newer"])
def test_comfyuis_fp8_file(encoder, weights, tmp_path, layout):
    """With the tokenizer that ComfyUI puts into it."""
    path = tmp_path / "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
    file = layout({k: v for k, v in weights.items()})
    save_file(file | {"spiece_model": torch.zeros(9, dtype=torch.uint8)}, path)
    model = load_umt5(path, torch.float32)
    assert model.config.to_dict().items() >= {**SIZE}.items()
    exact = {}
    for name in weights:
        layer = name.removesuffix(".weight")
        scale = file.get(f"{layer}.scale_weight", file.get(f"{layer}.weight_scale"))
        exact[name] = file[name].float() * (1 if scale is None else scale)
    torch.testing.assert_close(embed(model), embed(dense(exact)), rtol=1e-5, atol=1e-5)
    assert 0 < apart(model, encoder) < 0.3  # attention is sharp in such a model
    q = model.encoder.block[0].layer[0].SelfAttention.q
    assert isinstance(q, QuantisedLinear) and q.codes.dtype == torch.uint8
    assert model.encoder.embed_tokens is model.shared
    assert not model.training


def test_a_plain_fp8_file_in_the_authors_names(weights, encoder, tmp_path):
    path = tmp_path / "umt5-xxl-enc-fp8_e4m3fn.safetensors"
    save_file(float8(renamed(weights, WAN)), path)
    model = load_umt5(path, torch.float32)
    exact = dense({name: x.to(torch.float8_e4m3fn).float() for name, x in weights.items()})
    torch.testing.assert_close(embed(model), embed(exact), rtol=1e-5, atol=1e-5)
    assert isinstance(model.shared, QuantisedEmbedding)
    assert size(model) < 1.1 * sum(x.numel() for x in weights.values())


@pytest.mark.parametrize(
    ("kind", "bits"), [("Q8_0", 8.5), ("Q5_0", 5.5), ("Q4_K", 4.5), ("Q5_K", 5.5), ("Q6_K", 6.6)]
)
def test_llama_cpps_gguf_file(weights, tmp_path, kind, bits):
    path = tmp_path / f"umt5-xxl-encoder-{kind}.gguf"
    names = renamed(weights, GGUF)
    assert {"token_embd.weight", "enc.blk.1.ffn_up.weight", "enc.blk.0.attn_rel_b.weight"} <= set(
        names
    )
    held = write_gguf(path, names, kind, "t5encoder")
    exact = dense({ours: held[theirs] for ours, theirs in zip(weights, names, strict=True)})
    model = load_umt5(path, torch.float32)
    torch.testing.assert_close(embed(model), embed(exact), rtol=1e-4, atol=1e-4)
    assert isinstance(model.shared, QuantisedEmbedding)
    assert size(model) < 1.1 * sum(x.numel() for x in weights.values()) * bits / 8


@pytest.mark.parametrize("table", [{}, WAN], ids=["transformers", "authors"])
def test_words_without_a_scale(weights, tmp_path, table):
    """ComfyUI scales layers alone; tables may be in FP8 without."""
    names = dict(zip(weights, renamed(weights, table), strict=True))
    file = scaled({names[name]: x for name, x in weights.items()})
    for name in ("shared.weight", f"{FIRST}.relative_attention_bias.weight"):
        for last in ("scale_weight", "scale_input"):
            file.pop(f"{names[name].removesuffix('.weight')}.{last}", None)
        file[names[name]] = weights[name].to(torch.float8_e4m3fn)
    save_file(file, tmp_path / "text.safetensors")
    model = load_umt5(tmp_path / "text.safetensors", torch.float32)
    expected = weights["shared.weight"].to(torch.float8_e4m3fn).float()
    assert torch.equal(model.shared(IDS), expected[IDS])


def test_words_with_a_scale_for_each(weights, tmp_path):
    file, words = described(weights, by_row=True), weights["shared.weight"]
    scale = words.abs().amax(dim=1, keepdim=True) / 448
    file |= {"shared.weight": (words / scale).to(torch.float8_e4m3fn), "shared.weight_scale": scale}
    save_file(file, tmp_path / "rows.safetensors")
    model = load_umt5(tmp_path / "rows.safetensors", torch.float32)
    assert torch.equal(model.shared(IDS), (file["shared.weight"].float() * scale)[IDS])


def test_a_file_in_bfloat16_is_taken_too(weights, encoder, tmp_path):
    path = tmp_path / "umt5_xxl_bf16.safetensors"
    alias = {"encoder.embed_tokens.weight": weights["shared.weight"].bfloat16()}
    rest = {k: v.bfloat16() for k, v in weights.items() if k != "shared.weight"}
    save_file(rest | alias, path)  # under either name
    model = load_umt5(path, torch.bfloat16)
    assert torch.equal(embed(model), embed(dense(weights, torch.bfloat16)))


def test_casting_a_model_leaves_what_is_stored_as_it_is(weights, tmp_path):
    save_file(scaled(weights), tmp_path / "fp8.safetensors")
    model = load_umt5(tmp_path / "fp8.safetensors", torch.float32)
    before = model.encoder.block[0].layer[1].DenseReluDense.wo.weight
    after = model.to(torch.bfloat16).encoder.block[0].layer[1].DenseReluDense.wo.weight
    assert torch.equal(before, after)


@pytest.mark.parametrize(
    ("damage", "kind", "says"),
    [
        (lambda f: f.pop("encoder.final_layer_norm.weight"), ValueError, "missing (1): encoder.fi"),
        (lambda f: f.update(x=torch.zeros(1)), ValueError, "unexpected (1): x"),
        (lambda f: f.pop("shared.weight"), ValueError, "it has no shared.weight with 2 axes"),
        (
            lambda f: f.update({"encoder.block.1.layer.0.layer_norm.weight": torch.zeros(8)}),
            ValueError,
            "layer_norm.weight is 8, not 256",
        ),
        (lambda f: f.clear(), ValueError, "holds no state dictionary"),
    ],
    ids=["missing", "unexpected", "no words", "misshapen", "empty"],
)
def test_a_file_that_does_not_fit_is_named(weights, tmp_path, damage, kind, says):
    file, path = scaled(weights), tmp_path / "text.safetensors"
    damage(file)
    save_file(file, path)
    for device in ("cpu", "meta"):
        with pytest.raises(kind, match=re.escape(says)) as caught:
            load_umt5(path, torch.float32, device)
        assert str(path) in str(caught.value)


def test_each_file_in_the_others_place(weights, small, tmp_path):
    write_gguf(tmp_path / "umt5.gguf", renamed(weights, GGUF), "Q8_0", "t5encoder")
    with pytest.raises(ValueError, match=r"looks like a text .* goes into ULTRAGEN_TEXT_ENCODER"):
        load_released(tmp_path / "umt5.gguf")
    save_file(small, tmp_path / "wan.safetensors")
    with pytest.raises(ValueError, match=r"no text encoder of Wan.* no shared\.weight with 2 axes"):
        load_umt5(tmp_path / "wan.safetensors", torch.float32)


# In the pipeline

RUN = {"height": 128, "width": 160, "num_frames": 5, "windows": 2, "num_inference_steps": 2}


@pytest.fixture
def text_file(files, tmp_path):
    """The tiny base model's text encoder as ComfyUI would have it."""
    path = tmp_path / "umt5_fp8_scaled.safetensors"
    save_file(scaled(load_file(files.base / "text_encoder" / "model.safetensors")), path)
    return path


@pytest.fixture
def without_text(files, tmp_path):
    """The base model without its text encoder."""
    shutil.copytree(files.base, tmp_path / "wan", ignore=shutil.ignore_patterns("text_encoder"))
    return tmp_path / "wan"


def sample(pipe: UltraGenPipeline) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe("a calm lake", generator=generator, output_type="latent", **RUN).frames


def test_the_pipeline_takes_a_file(files, without_text, text_file, tmp_path, monkeypatch):
    pipe = UltraGenPipeline.from_wan(
        without_text, files.ultragen, torch.float32, text_encoder=text_file
    )
    own = UltraGenPipeline.from_wan(files.base, files.ultragen, torch.float32)
    found, expected = sample(pipe), sample(own)
    assert not torch.equal(found, expected)
    assert (found - expected).norm() < 0.1 * expected.norm()
    assert weights_of(pipe).text_encoder == size(pipe.text_encoder)
    assert size(pipe.text_encoder) < size(own.text_encoder)
    monkeypatch.setenv("ULTRAGEN_TEXT_ENCODER", str(text_file))
    by_variable = UltraGenPipeline.from_wan(without_text, files.ultragen, torch.float32)
    assert torch.equal(sample(by_variable), found)
    take_turns(pipe, pipe.base_pipeline(), "cpu")
    assert torch.equal(sample(pipe), found)


def test_with_a_file_the_base_models_own_is_not_downloaded(text_file):
    files = base_source(text_file).files
    assert set(WAN_SOURCE.files) - set(files) == {"text_encoder/*"}
    assert base_source(None) is WAN_SOURCE


def test_a_saved_pipeline_has_an_ordinary_text_encoder(files, text_file, tmp_path):
    pipe = UltraGenPipeline.from_wan(
        files.base, files.ultragen, torch.float32, text_encoder=text_file
    )
    pipe.save_pretrained(tmp_path / "saved")
    loaded = UltraGenPipeline.from_pretrained(tmp_path / "saved")
    assert isinstance(loaded.text_encoder.shared, torch.nn.Embedding)
    torch.testing.assert_close(sample(loaded), sample(pipe), rtol=1e-4, atol=1e-4)


def test_what_made_a_clip_names_the_file(files, without_text, text_file, monkeypatch):
    environment = {**files.environment, "ULTRAGEN_WAN": str(without_text)}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ULTRAGEN_TEXT_ENCODER", str(text_file))
    models = load_models()
    assert models.origins[-1] == text_file.name
    monkeypatch.delenv("ULTRAGEN_TEXT_ENCODER")
    monkeypatch.setenv("ULTRAGEN_WAN", str(files.base))
    assert load_models().fingerprint != models.fingerprint


def test_checking_reads_no_weights_and_finds_what_is_wrong(files, without_text, text_file):
    check_wan(without_text, files.ultragen, text_file)
    with pytest.raises(OSError, match="text_encoder is missing"):
        check_wan(without_text, files.ultragen)
    own = load_file(files.base / "text_encoder" / "model.safetensors")
    wide = {k: v.repeat_interleave(2, -1) if v.ndim == 2 else v for k, v in own.items()}
    save_file(scaled(wide), text_file)
    with pytest.raises(ValueError, match="does not fit umT5's encoder"):
        check_wan(without_text, files.ultragen, text_file)


def test_a_text_encoder_that_is_not_there(files, monkeypatch):
    monkeypatch.setenv("ULTRAGEN_TEXT_ENCODER", "nowhere.gguf")
    with pytest.raises(FileNotFoundError, match=r"no file nowhere\.gguf: set ULTRAGEN_TEXT_ENC"):
        UltraGenPipeline.from_wan(files.base, files.ultragen)
    for name, value in files.environment.items():
        monkeypatch.setenv(name, value)
    assert "nowhere.gguf" in load_models("auto").choice.why


def test_a_small_text_encoder_lets_a_card_of_12_gb_run(tmp_path, monkeypatch):
    card = Hardware("cuda", "a card of 12 GB", int(11.4 * GIB), True)
    assert "takes 11." in why_not(card) and "umT5 in FP8 or GGUF" in why_not(card)
    assert "FP8" not in why_not(replace(card, memory=4 * GIB))
    path = tmp_path / "umt5.gguf"
    with path.open("wb") as file:
        file.truncate(4 * GIB)  # of which nothing is written
    monkeypatch.setenv("ULTRAGEN_TEXT_ENCODER", str(path))
    assert why_not(card) == ""
