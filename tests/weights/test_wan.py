"""The 1.3B pipeline on tiny files of the true layout: what is loaded, what comes out of it, and
what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from released_files import Code, error
from released_reference import Sizes, released_forward, released_weights
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import UMT5EncoderModel
from wan_files import WanFiles, make_random_wan

from ultragen.model.transformer import UltraGenTransformer3DModel
from ultragen.model.wan_1_3b import RELEASED
from ultragen.pipeline import UltraGenPipeline
from ultragen.runs.loading import take_turns
from ultragen.sampling import wan_streaming
from ultragen.weights.read import read_weights
from ultragen.weights.released import load_released, save_released

RUN = {"height": 128, "width": 160, "num_frames": 5, "windows": 2, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def pipe(files) -> UltraGenPipeline:
    made = UltraGenPipeline.from_wan(files.base, files.ultragen, torch.float32)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def copy(files, tmp_path) -> WanFiles:
    """Files that a test may damage."""
    shutil.copytree(files.base, tmp_path / "wan")
    shutil.copy(files.ultragen, tmp_path)
    return WanFiles(tmp_path / "wan", tmp_path / files.ultragen.name)


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def sample(pipe: UltraGenPipeline, **changes) -> Tensor:
    return pipe(
        "a calm lake", **{**RUN, "generator": seed(), "output_type": "latent", **changes}
    ).frames


# What is loaded


def test_the_random_files_have_the_published_names(files):
    names = {path.relative_to(files.base).as_posix() for path in files.base.rglob("*.*")}
    assert names == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }
    index = json.loads((files.base / "model_index.json").read_text())
    assert index["_class_name"] == "WanPipeline"
    # As published, the word embeddings are stored once.
    text = load_file(files.base / "text_encoder" / "model.safetensors")
    assert "shared.weight" in text and "encoder.embed_tokens.weight" not in text
    config = json.loads((files.base / "text_encoder" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False


def test_the_true_size_is_that_of_the_released_weights():
    true = make_random_wan.SIZES["true"]
    with torch.device("meta"):
        model = UltraGenTransformer3DModel(
            **{**RELEASED, **true.transformer, "full_attention_layers": true.full}
        )
    assert len(save_released(model)) == 1881


def test_every_part_is_loaded_as_diffusers_loads_it(pipe, files):
    dense = WanTransformer3DModel.from_pretrained(files.base / "transformer")
    vae = AutoencoderKLWan.from_pretrained(files.base / "vae")
    text = UMT5EncoderModel.from_pretrained(files.base / "text_encoder", dtype=torch.float32)
    for ours, theirs in (
        (pipe.base_transformer, dense),
        (pipe.vae, vae),
        (pipe.text_encoder, text),
        (pipe.transformer, load_released(files.ultragen).float()),
    ):
        expected, found = theirs.state_dict(), ours.state_dict()
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
        assert not ours.training
    assert pipe.transformer.config.timestep_dtype == "bfloat16"
    assert pipe.transformer.layer_kinds == ["full", "odd", "even"]
    assert pipe.text_encoder.encoder.embed_tokens.weight is pipe.text_encoder.shared.weight
    assert pipe.text_encoder.shared.weight.any()
    assert (pipe.pixels_per_token, pipe.config.max_sequence_length) == (16, 512)


def test_the_variables_name_the_files(files, monkeypatch):
    for name, value in files.environment.items():
        monkeypatch.setenv(name, value)
    pipe = UltraGenPipeline.from_wan()
    assert pipe.transformer.dtype == torch.bfloat16


def test_in_bfloat16_what_diffusers_keeps_in_float32_is_kept(files):
    pipe = UltraGenPipeline.from_wan(files.base, files.ultragen)
    theirs = WanTransformer3DModel.from_pretrained(
        files.base / "transformer", torch_dtype=torch.bfloat16
    )
    expected = {name: p.dtype for name, p in theirs.named_parameters()}
    assert {name: p.dtype for name, p in pipe.base_transformer.named_parameters()} == expected
    assert set(expected.values()) == {torch.bfloat16, torch.float32}
    assert pipe.transformer.scale_shift_table.dtype == torch.float32
    assert pipe.vae.dtype == pipe.text_encoder.dtype == torch.bfloat16
    pipe.set_progress_bar_config(disable=True)
    assert torch.isfinite(sample(pipe)).all()


def test_a_converted_folder_stands_for_the_released_file(files, pipe, tmp_path):
    load_released(files.ultragen).save_pretrained(tmp_path / "converted")
    other = UltraGenPipeline.from_wan(files.base, tmp_path / "converted", torch.float32)
    other.set_progress_bar_config(disable=True)
    assert torch.equal(sample(other), sample(pipe))


def test_diffusers_own_loading_of_wans_folder(files):
    """Its scheduler is another one than the released weights are sampled with."""
    transformer = load_released(files.ultragen)
    with pytest.raises(ValueError, match="from_wan"):
        UltraGenPipeline.from_pretrained(files.base, transformer=transformer)
    euler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    loaded = UltraGenPipeline.from_pretrained(files.base, transformer=transformer, scheduler=euler)
    assert loaded.base_transformer is None and loaded.transformer is transformer


def test_saved_and_loaded_as_one_folder(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = UltraGenPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    for ours, theirs in ((loaded, pipe), (loaded.base_pipeline(), pipe.base_pipeline())):
        windows = 2 if ours is loaded else None
        found, expected = (sample(each, windows=windows) for each in (ours, theirs))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# What comes out


@pytest.mark.slow
@torch.no_grad()
def test_the_pipeline_samples_as_released(pipe, files):
    """30 steps of σ_i = 1 − i/30 shifted by 5, guidance 5, with Wan's own text encoder: prompts
    cleaned, 512 tokens, padding zero; against the float64 reference on the file's own weights."""

    def embed(words: str) -> Tensor:
        ids = torch.tensor([pipe.tokenizer(words).input_ids])
        hidden = pipe.text_encoder(ids).last_hidden_state
        return torch.cat([hidden, hidden.new_zeros(1, 512 - ids.shape[1], hidden.shape[2])], dim=1)

    weights = read_weights(files.ultragen)
    positive, negative = embed("a calm lake & sky"), embed("the sea")
    sigmas = [1 - i / 30 for i in range(30)]
    sigmas = [5 * s / (1 + 4 * s) for s in sigmas] + [0.0]
    noise = torch.randn((1, 16, 1, 16, 20), generator=seed(2))
    x = noise.double()
    for sigma, following in pairwise(sigmas):
        time = torch.tensor([1000 * sigma])
        towards, away = (
            released_forward(weights, x, time, text, windows=2) for text in (positive, negative)
        )
        x = x + (following - sigma) * (away + 5 * (towards - away))
    found = pipe(
        " a  calm lake &amp;amp; sky\n",
        negative_prompt="the sea",
        latents=noise,
        guidance_scale=5.0,
        output_type="latent",
        **{**RUN, "num_frames": 1, "num_inference_steps": 30},
    ).frames
    assert error(found, x) < 1e-3


@torch.no_grad()
def test_the_base_pipeline_is_the_dense_model(pipe, files):
    dense = WanTransformer3DModel.from_pretrained(files.base / "transformer")
    base = pipe.base_pipeline()
    noise = torch.randn((1, 16, 2, 16, 20), generator=seed(3))
    text, _ = base.encode_prompt("a calm lake")
    velocity = dense(noise, torch.tensor([1000.0]), text).sample
    found = sample(base, windows=None, latents=noise, num_inference_steps=1, guidance_scale=1.0)
    torch.testing.assert_close(found, noise - velocity, rtol=1e-4, atol=1e-4)


def test_memory_that_is_short_changes_nothing_in_the_clip(pipe, monkeypatch):
    latents = torch.randn(1, 16, 2, 16, 8, generator=seed())
    plain = list(pipe.decode_stream(latents))
    monkeypatch.setattr(wan_streaming, "free_memory", lambda device: 0)
    in_strips = list(pipe.decode_stream(latents))
    assert [piece.shape for piece in plain] == [(1, 3, t, 128, 64) for t in (1, 4)]
    for one, other in zip(in_strips, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_parts_take_turns_on_the_gpu_of_their_process(monkeypatch):
    """diffusers 0.42.1 takes the first one for a device without a number."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    native, base = Mock(), Mock()
    take_turns(native, base, "cuda")
    for pipe in (native, base):
        pipe.enable_model_cpu_offload.assert_called_once_with(device=torch.device("cuda:1"))


def test_offloaded_parts_take_turns_in_both_pipelines(files):
    """Text encoder → transformer → autoencoder, each sent back by the next. The CPU stands for the
    GPU here: the order is shown, and that nothing changes in the result."""
    native = UltraGenPipeline.from_wan(files.base, files.ultragen, torch.float32)
    base = native.base_pipeline()
    for pipe in (native, base):
        pipe.set_progress_bar_config(disable=True)
    expected = [sample(native), sample(base, windows=None)]
    take_turns(native, base, "cpu")

    def order(pipe: UltraGenPipeline) -> list[object]:
        """What each part sends back before it computes."""
        parts = (pipe.text_encoder, pipe.transformer, pipe.vae)
        before = (part._hf_hook.prev_module_hook for part in parts)
        return [hook and hook.model for hook in before]

    for _ in range(2):
        for pipe, windows, frames in zip((native, base), (2, None), expected, strict=True):
            assert order(pipe)[:2] == [None, pipe.text_encoder]
            assert torch.equal(sample(pipe, windows=windows), frames)
            # A run gives all parts their hooks anew.
            assert order(pipe) == [None, pipe.text_encoder, pipe.transformer]
            assert [piece.shape[2] for piece in pipe.decode_stream(frames)] == [1, 4]


# What is refused


def remove(name: str) -> Callable[[WanFiles], None]:
    def damage(files: WanFiles) -> None:
        path = files.base / name
        (shutil.rmtree if path.is_dir() else Path.unlink)(path)

    return damage


def cut(name: str) -> Callable[[WanFiles], None]:
    def damage(files: WanFiles) -> None:
        path = files.base / name
        path.write_bytes(path.read_bytes()[:-40])

    return damage


def drop(name: str, key: str) -> Callable[[WanFiles], None]:
    """Takes one weight out of a file that stays whole."""

    def damage(files: WanFiles) -> None:
        path = files.base / name
        weights = load_file(path)
        del weights[key]
        save_file(weights, path, metadata={"format": "pt"})

    return damage


def rename_class(name: str) -> Callable[[WanFiles], None]:
    def damage(files: WanFiles) -> None:
        path = files.base / "model_index.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": name}))

    return damage


def only_a_download_begun(files: WanFiles) -> None:
    path = files.base / "text_encoder" / "model.safetensors"
    path.rename(path.with_suffix(".safetensors.incomplete"))


def original_layout(files: WanFiles) -> None:
    (files.base / "model_index.json").unlink()
    (files.base / "Wan2.1_VAE.pth").touch()


def write(name: str, field: str, value: object) -> Callable[[WanFiles], None]:
    """Damages one field of a JSON file, which is made if it is not there."""

    def damage(files: WanFiles) -> None:
        path = files.base / name
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(content | {field: value}))

    return damage


def a_shard_alone(files: WanFiles) -> None:
    path = files.base / TEXT
    path.rename(path.with_name("model-00001-of-00002.safetensors"))


TEXT, VAE = "text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors"
DENSE = "transformer/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("damage", "kind", "says"),
    [
        (remove("model_index.json"), OSError, "model_index.json is missing"),
        (remove("vae"), OSError, "vae is missing"),
        (remove(TEXT), OSError, "text_encoder holds no weights"),
        (only_a_download_begun, OSError, "half a download (model.safetensors.incomplete)"),
        (cut(TEXT), OSError, "model.safetensors is truncated"),
        (cut(VAE), OSError, "diffusion_pytorch_model.safetensors is truncated"),
        (remove("tokenizer/tokenizer.json"), OSError, "tokenizer.json is missing"),
        (cut("tokenizer/tokenizer.json"), OSError, "tokenizer.json is corrupt"),
        (drop(TEXT, "shared.weight"), ValueError, "shared.weight"),
        (drop(TEXT, "encoder.final_layer_norm.weight"), ValueError, "final_layer_norm"),
        (drop(VAE, "decoder.conv_out.bias"), ValueError, "decoder.conv_out.bias"),
        (drop(DENSE, "proj_out.bias"), ValueError, "missing (1): proj_out.bias"),
        (a_shard_alone, OSError, "and their index model.safetensors.index.json is missing"),
        (write(f"{TEXT}.index.json", "weight_map", None), OSError, "weight_map is null, not dict"),
        (write(f"{VAE}.index.json", "weight_map", ["a"]), OSError, 'weight_map is ["a"], not dict'),
        (write(f"{DENSE}.index.json", "weight_map", {"a": 1}), OSError, 'weight_map is {"a": 1}'),
        (write(f"{DENSE}.index.json", "metadata", {}), OSError, "is corrupt: no weight_map"),
        (write("model_index.json", "vae", []), OSError, "vae is [], not tuple[str | None, str"),
        (write("model_index.json", "vae", "x"), OSError, 'vae is "x", not tuple[str | None'),
        (write("model_index.json", "_class_name", None), OSError, "_class_name is null, not str"),
        (write("transformer/config.json", "num_layers", None), OSError, "num_layers is null, not"),
        (
            write("transformer/config.json", "num_layers", "2"),
            OSError,
            'num_layers is "2", not int',
        ),
        (write("vae/config.json", "z_dim", None), OSError, "vae can't be loaded"),
        (
            write("text_encoder/config.json", "num_layers", "2"),
            OSError,
            "text_encoder can't be loa",
        ),
        (rename_class("WanImageToVideoPipeline"), ValueError, "looks like WanImageToVideoPipeline"),
        (rename_class("FluxPipeline"), ValueError, "looks like FluxPipeline, not text-to-video"),
        (original_layout, ValueError, "is Wan in its authors' own layout, not diffusers'"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_damaged_or_foreign_base_is_named(copy, damage, kind, says):
    damage(copy)
    with pytest.raises(kind) as caught:
        UltraGenPipeline.from_wan(copy.base, copy.ultragen, torch.float32)
    assert says in str(caught.value)
    assert str(copy.base) in str(caught.value)


def test_a_vocabulary_may_have_any_word(copy):
    write("tokenizer/added_tokens.json", "weight_map", 17)(copy)
    (copy.base / "tokenizer" / "merges.json").write_text("[]")
    UltraGenPipeline.from_wan(copy.base, copy.ultragen, torch.float32)


def test_a_file_is_no_base_model(files):
    with pytest.raises(ValueError, match=r"is a file, and the base model is a folder: take Wan-AI"):
        UltraGenPipeline.from_wan(files.ultragen, files.ultragen)


def pickled(path: Path) -> None:
    torch.save({"a": Code(path.parent / "made")}, path)


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "kind", "says"),
    [
        (pickled, ValueError, "could run code, so it is refused"),
        (half, OSError, "incomplete or damaged"),
        (
            lambda path: torch.save({"double_blocks.0.x": torch.zeros(1)}, path),
            ValueError,
            "looks like Flux or HunyuanVideo",
        ),
        (
            lambda path: torch.save(released_weights(Sizes(layers=2, full=(0, 1))), path),
            ValueError,
            "is dense Wan without UltraGen's branches",
        ),
        (
            lambda path: torch.save(released_weights(Sizes(text=24, channels=16)), path),
            ValueError,
            "The transformer was trained with {'text features': 24, 'latent channels': 16}, and "
            "the base model has {'text features': 16, 'latent channels': 16}",
        ),
    ],
    ids=["pickle", "half", "other model", "dense", "other size"],
)
def test_damaged_or_foreign_weights_are_named(copy, damage, kind, says):
    damage(copy.ultragen)
    with pytest.raises(kind) as caught:
        UltraGenPipeline.from_wan(copy.base, copy.ultragen, torch.float32)
    assert says in str(caught.value)
    assert not (copy.base.parent / "made").exists()


def test_the_random_files_replace_nothing(files, capsys):
    out = files.base.parent
    assert make_random_wan.main([str(out), "--size", "tiny"]) == 1
    said = capsys.readouterr().err
    assert "already holds wan, ultragen_1080p.ckpt" in said and said.count("\n") == 1


def test_random_files_of_the_base_model_alone(tmp_path):
    assert make_random_wan.main([str(tmp_path), "--size", "tiny", "--base-only"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["wan"]
    parts = {"model_index.json", "scheduler", "text_encoder", "tokenizer", "transformer", "vae"}
    assert {path.name for path in (tmp_path / "wan").iterdir()} == parts
