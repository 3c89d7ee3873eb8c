"""Weight files: whole, in shards, damaged, or something else."""

from __future__ import annotations

import json
import re
import zipfile

import pytest
import torch
from released_files import equal, sharded
from safetensors.torch import load_file, save_file

from ultragen.weights.released import load_released, load_transformer, save_released


def test_a_legacy_file_and_a_repackaged_one(small, tmp_path):
    path = tmp_path / "old.pth"
    torch.save(small, path, _use_new_zipfile_serialization=False)
    assert equal(save_released(load_released(path)), small)


def test_shards_need_their_index(small, tmp_path):
    index = sharded(small, tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    with pytest.raises(ValueError, match=rf"one of the model's 3 shards: choose.*{index.name}, or"):
        load_released(shards[0])
    index.unlink()
    for path in shards:  # all of them, and then one alone
        with pytest.raises(FileNotFoundError, match=rf"without their index, {index.name}: get"):
            load_released(tmp_path)
        if path != shards[-1]:
            path.unlink()
    whole = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file(small, whole)  # beside which the last shard is a leftover
    assert equal(save_released(load_released(tmp_path)), small)


def test_shards_are_put_together(small, tmp_path):
    index = sharded(small, tmp_path / "released")
    for source in (index, index.parent, str(index.parent)):
        assert equal(save_released(load_released(source)), small)


@pytest.mark.parametrize("members", [["a.txt", "b/c.txt"], []], ids=["files", "empty"])
def test_another_zip_archive_is_no_checkpoint(tmp_path, members):
    path = tmp_path / "model.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in members:
            archive.writestr(name, "text")
    holds = ", ".join(members) or "nothing"
    with pytest.raises(ValueError, match=rf"zip archive, but no PyTorch.*\(it holds {holds}\): ch"):
        load_released(path)


@pytest.mark.parametrize(
    "content, says",
    [
        ({"state_dict": {"a": torch.zeros(1)}, "epoch": 3}, r"more than tensors \(state_dict, ep"),
        ({0: torch.zeros(1)}, "more than tensors"),
        ([torch.zeros(1)], "no state dictionary, but list"),
        ({}, "no state dictionary"),
        ({"a": torch.zeros(2, dtype=torch.int8)}, r"quantised weights \(int8\): take the bfloat16"),
        (
            {"a": torch.zeros(2).to(torch.float8_e4m3fnuz)},
            r"quantised weights \(float8_e4m3fnuz\)",
        ),
    ],
    ids=["nested", "numbers", "list", "empty", "int8", "float8"],
)
def test_a_file_of_other_things(content, says, tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=says):
        load_released(path)


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt", "old.pth"])
@pytest.mark.parametrize("kept", [0.9, 0.2, 0.001])
def test_half_a_download(small, tmp_path, name, kept):
    path = tmp_path / name
    if name.endswith("safetensors"):
        save_file(small, path)
    else:
        torch.save(small, path, _use_new_zipfile_serialization=name != "old.pth")
    size = int(kept * path.stat().st_size)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(OSError, match=rf"{name} is incomplete or damaged \({size:,} bytes"):
        load_released(path)


@pytest.mark.parametrize(
    "start, says",
    [
        (b"", "is empty: download it again"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!doctype html><title>Access to model is restricted", "download was refused"),
        (b'{"error": "Invalid credentials"}', "download was refused"),
        (b"GGUF\x03\x00\x00\x00", "incomplete or damaged"),
        (b"PK\x03\x04 not a checkpoint at all", "incomplete or damaged"),
        (b"\x80\x02}garbage", "incomplete or damaged"),
        (b"\x00" * 64, "incomplete or damaged"),
    ],
    ids=["empty", "pointer", "page", "message", "gguf", "zip", "pickle", "zeros"],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_what_is_no_weights_file(start, says, suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(start)
    with pytest.raises((OSError, ValueError), match=says):
        load_released(path)


def test_a_picture_is_no_weights_file(tmp_path):
    path = tmp_path / "page.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0" * 8)
    with pytest.raises(ValueError, match=r"no weights file: choose a \.safetensors"):
        load_released(path)


def test_a_shard_is_missing_or_short(small, tmp_path):
    index = sharded(small, tmp_path / "model")
    shard = sorted(index.parent.glob("*.safetensors"))[1]
    content = load_file(shard)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=rf"1 of 3 files are missing \({shard.name}\)"):
        load_released(index.parent)
    gone = content.popitem()[0]
    save_file(content, shard)
    with pytest.raises(OSError, match=f"1 of the tensors .* such as {re.escape(gone)}"):
        load_released(index)
    for text, says in (("{}", "no weight_map"), ("[]", "no object"), ('{"weight', "corrupt")):
        index.write_text(text)
        with pytest.raises(OSError, match=says):
            load_released(index)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "weight_map is null, not dict[str, str]"),
        (["a"], 'weight_map is ["a"], not dict[str, str]'),
        ({"a": 3}, 'weight_map is {"a": 3}, not dict[str, str]'),
    ],
    ids=str,
)
def test_an_index_that_names_no_files(small, tmp_path, content, says):
    index = sharded(small, tmp_path)
    index.write_text(json.dumps({"weight_map": content}))
    with pytest.raises(OSError, match=re.escape(says)) as caught:
        load_released(tmp_path)
    assert str(index) in str(caught.value) and "download the model again" in str(caught.value)


def test_folders_without_one_model(small, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no weights file"):
        load_released(tmp_path / "nothing.ckpt")
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        load_released(tmp_path)
    (tmp_path / "ultragen_1080p.ckpt.incomplete").touch()
    with pytest.raises(OSError, match="half a download"):
        load_released(tmp_path)
    torch.save(small, tmp_path / "a.ckpt")
    assert equal(save_released(load_released(tmp_path)), small)
    torch.save(small, tmp_path / "b.ckpt")
    with pytest.raises(ValueError, match=r"several models \(a\.ckpt, b\.ckpt\): name one"):
        load_released(tmp_path)
    # Safetensors come first.
    save_file(small, tmp_path / "c.safetensors")
    assert equal(save_released(load_released(tmp_path)), small)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(OSError, match=r"config\.json is corrupt"):
        load_transformer(tmp_path)
