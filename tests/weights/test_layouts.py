"""T3-Video's weights, which have dense Wan's names and shapes: told by what they are called."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import ultragen
from diffusers import WanTransformer3DModel
from huggingface_hub import constants
from released_files import dense_weights, equal
from released_reference import TRUE, Sizes, released_shapes, released_weights
from safetensors.torch import save_file
from wan_files import WanFiles, make_t3, make_wan

from ultragen.model.transformer import UltraGenTransformer3DModel
from ultragen.model.wan_1_3b import T3
from ultragen.pipeline import UltraGenPipeline
from ultragen.presets import LAYOUT_VARIABLE, T3_4K, T3_SOURCE, ULTRAGEN_SOURCE, WAN
from ultragen.runs.choice import choose
from ultragen.weights.hub import locate
from ultragen.weights.layouts import asked_layout, layout_of, weights_source
from ultragen.weights.released import (
    load_dense,
    load_released,
    load_transformer,
    load_ultragen,
    save_released,
)

FILE = T3_SOURCE.files[0]
WINDOWS = T3["t3_windows"]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    for name in ("ULTRAGEN_MODEL", LAYOUT_VARIABLE, ULTRAGEN_SOURCE.variable):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> WanFiles:
    return make_wan(tmp_path_factory.mktemp("wan"))


def is_t3(model) -> bool:
    ours = isinstance(model, UltraGenTransformer3DModel)
    return ours and [*map(tuple, model.config.t3_windows)] == [*WINDOWS]


def dense_file(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dense_weights(), folder / name)
    return folder / name


@pytest.mark.parametrize(
    ("name", "layout"),
    [(FILE, None), ("my-t3-video.safetensors", None), ("x.safetensors", "t3"), (FILE, "t3")],
)
def test_a_file_is_told_by_its_name_or_by_who_gives_it(name, layout, tmp_path):
    path = dense_file(tmp_path, name)
    for device in ("cpu", "meta"):
        model = load_transformer(path, device, layout)
        assert is_t3(model) and model.layer_kinds == [*WINDOWS[:2]]
        assert model.config.timestep_dtype == "bfloat16"
    loaded = load_ultragen(path, layout=layout)
    assert torch.equal(loaded.proj_out.weight, dense_weights()["head.head.weight"])


def test_the_true_file_has_the_825_names_of_dense_wan():
    shapes = released_shapes(Sizes(**TRUE.__dict__ | {"full": tuple(range(30))}))
    meta = {key: torch.empty(s, device="meta", dtype=torch.bfloat16) for key, s in shapes.items()}
    model = load_transformer(meta, layout="t3")
    assert len(meta) == 825 and model.layer_kinds == [*WINDOWS] * 6
    dense = load_transformer(meta)
    assert type(dense) is WanTransformer3DModel
    assert dense.state_dict().keys() == model.state_dict().keys()


def test_of_a_folder_with_both_published_files_the_one_for_this_model_is_taken(tmp_path):
    folder = tmp_path / "T3-Video"
    dense_file(folder, FILE)
    (folder / "T3-Video-Wan2.2-T2V-5B.safetensors").write_bytes(b"not read")
    assert is_t3(load_ultragen(folder))


def test_dense_wan_in_diffusers_layout_becomes_t3_where_it_is_asked_for(files):
    folder = files.base / "transformer"
    dense, model = load_transformer(folder), load_transformer(folder, layout="t3")
    assert is_t3(model)
    assert equal(model.state_dict(), dense.state_dict())


def test_nothing_else_is_taken_for_it(tmp_path):
    path = dense_file(tmp_path, "wan.safetensors")
    assert type(load_transformer(path)) is WanTransformer3DModel
    with pytest.raises(ValueError, match="say that the file is T3-Video's with ULTRAGEN_LAYOUT=t3"):
        load_ultragen(path)
    with pytest.raises(ValueError, match="is UltraGen, where dense Wan is needed"):
        load_dense(dense_file(tmp_path, FILE))


def test_refusals_name_what_is_wrong(small, tmp_path):
    save_file(small, tmp_path / FILE)
    with pytest.raises(ValueError, match=r"T3-Video-.* has UltraGen's branches, which T3-Video"):
        load_transformer(tmp_path / FILE)
    load_released(small).save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match="ours has UltraGen's layers"):
        load_transformer(tmp_path / "ours", layout="t3")
    with pytest.raises(ValueError, match="There is no layout 'dense': choose t3"):
        load_transformer(tmp_path / "ours", layout="dense")
    with pytest.raises(ValueError, match="There is no layout 'dense'"):
        load_transformer(dense_weights(), layout="dense")
    larger = released_weights(Sizes(layers=2, full=(0, 1), channels=48))
    save_file(larger, tmp_path / "T3-Video-Wan2.2-T2V-5B.safetensors")
    with pytest.raises(ValueError, match=r"is T3-Video for Wan2\.2-5B.*take T3-Video-Wan2\.1"):
        load_transformer(tmp_path / "T3-Video-Wan2.2-T2V-5B.safetensors")
    lacking = dense_weights()
    del lacking["blocks.1.self_attn.q.weight"]
    save_file(lacking, tmp_path / FILE)
    with pytest.raises(ValueError, match=r"missing \(1\): blocks\.1\.self_attn\.q\.weight"):
        load_transformer(tmp_path / FILE)


def test_a_folder_of_our_own_says_it_itself(small, tmp_path):
    load_released(small).save_pretrained(tmp_path / "better-than-t3-video")
    assert layout_of(tmp_path / "better-than-t3-video") is None
    assert load_ultragen(tmp_path / "better-than-t3-video").layer_kinds[1] == "odd"


def test_the_released_names_cannot_tell_it(tmp_path):
    model = load_transformer(dense_file(tmp_path, FILE))
    with pytest.raises(ValueError, match="can't tell T3-Video's windows from dense Wan"):
        save_released(model)


def test_convert_keeps_it(tmp_path, capsys):
    path = dense_file(tmp_path, FILE)
    assert ultragen("convert", path, tmp_path / "out") == 0
    assert "2 layers, 2 with T3-Video's windows\n" in capsys.readouterr().out
    assert is_t3(load_ultragen(tmp_path / "out")) and layout_of(tmp_path / "out") == "t3"
    renamed = path.rename(tmp_path / "renamed.safetensors")
    assert ultragen("convert", renamed, tmp_path / "again", "--layout", "t3") == 0
    assert is_t3(load_ultragen(tmp_path / "again"))
    assert ultragen("convert", renamed, tmp_path / "third", "--layout", "t4") == 2
    assert "There is no layout 't4'" in capsys.readouterr().err


# The Hub


@pytest.mark.parametrize("given", ["APRIL-AIGC/T3-Video", "me/t3-video@refs/pr/1"])
def test_its_repository_gives_its_file(given, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv(ULTRAGEN_SOURCE.variable, given)
    assert weights_source() is weights_source(given) is T3_SOURCE
    repository, _, revision = given.partition("@")
    stored, commit = tmp_path / f"models--{repository.replace('/', '--')}", "0" * 40
    ref = stored / "refs" / (revision or "main")
    ref.parent.mkdir(parents=True)
    ref.write_text(commit)
    path = dense_file(stored / "snapshots" / commit, FILE)
    assert locate(None, weights_source(), local_files_only=True) == path
    assert layout_of(given) == layout_of(path) == "t3"


def test_other_names_are_ultragens():
    for given in (None, "JTUplayer/Ultragen", "me/mirror"):
        assert weights_source(given) is ULTRAGEN_SOURCE


# What runs


def test_the_preset_is_that_of_the_weights(files, tmp_path, monkeypatch):
    path = make_t3(files, tmp_path)
    for name, value in files.environment.items():
        monkeypatch.setenv(name, value)
    assert choose().preset is WAN
    monkeypatch.setenv(ULTRAGEN_SOURCE.variable, str(path))
    found = choose()
    assert found.name == "wan" and found.preset is T3_4K
    assert (found.preset.resolution, found.preset.num_frames) == ("4k", 81)
    assert (found.preset.num_inference_steps, found.preset.guidance_scale) == (50, 5.0)
    monkeypatch.setenv(ULTRAGEN_SOURCE.variable, str(path.rename(tmp_path / "x.safetensors")))
    assert choose("auto").name == "embedded"  # it is dense Wan by all that it says
    monkeypatch.setenv(LAYOUT_VARIABLE, "t3")
    assert choose("auto").preset is T3_4K
    monkeypatch.setenv(LAYOUT_VARIABLE, "t4")
    with pytest.raises(ValueError, match="There is no layout 't4'"):
        asked_layout()


def test_a_saved_pipeline_is_told_too(files, tmp_path):
    path = make_t3(files, tmp_path)
    pipe = UltraGenPipeline.from_wan(files.base, path, torch.float32)
    assert is_t3(pipe.transformer)
    assert pipe.default_size == (2176, 3840, 81)
    assert pipe.base_pipeline().default_size == (480, 832, 81)
    pipe.save_pretrained(tmp_path / "saved")
    assert choose(tmp_path / "saved").preset is T3_4K
    again = UltraGenPipeline.from_pretrained(tmp_path / "saved")
    assert again.transformer.layer_kinds == pipe.transformer.layer_kinds
    named = UltraGenPipeline.from_wan(
        files.base, path.rename(tmp_path / "x.safetensors"), torch.float32, layout="t3"
    )
    assert is_t3(named.transformer)
