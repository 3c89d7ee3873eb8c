"""`dataset`: from the command line to a dataset and its contact sheet; bad input in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from clip_folders import BUCKETS, LEFT_OUT, make_clips, moving
from commands import one_line, ultragen
from PIL import Image

from ultragen.cli.dataset import buckets
from ultragen.dataset.shards import LatentDataset
from ultragen.presets import EMBEDDED, EMBEDDED_MODEL, WAN
from ultragen.video import encode_video

SMALL = [word for bucket in BUCKETS for word in ("--bucket", bucket)]
EMBEDDED_ONES = ("--model", "embedded", *SMALL)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return make_clips(tmp_path_factory.mktemp("people") / "clips")


@pytest.fixture(scope="module")
def made(clips, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("datasets") / "made"
    assert ultragen("dataset", clips, "--out", out, *EMBEDDED_ONES) == 0
    return out


def test_clips_become_a_dataset_with_a_sheet(clips, tmp_path, capsys, files):
    out = tmp_path / "out"
    words = (clips, "--out", out, "--base", files.base, *SMALL, "--frame-rate", 12, "--preview")
    assert ultragen("dataset", *words) == 0
    printed = capsys.readouterr()
    assert "Clips to encode" in printed.err and "2  64x96x5" in printed.err
    assert f"Written to {out}: 4 clips" in printed.out and "preview.jpg" in printed.out
    assert all(reason in printed.out for reason in LEFT_OUT.values())
    assert np.asarray(Image.open(out / "preview.jpg")).std() > 5
    dataset = LatentDataset(out)
    assert dataset.settings.model == "wan" and len(dataset.empty_text()) == 1
    assert ultragen("dataset", *words[:-1]) == 0
    assert capsys.readouterr().err == ""


def test_a_sheet_of_an_earlier_dataset(made, tmp_path, capsys):
    folder = Path(shutil.copytree(made, tmp_path / "copy"))
    assert ultragen("dataset", folder, "--preview") == 0
    assert f"Written: {folder / 'preview.jpg'}" in capsys.readouterr().out
    assert (folder / "preview.jpg").is_file()


def test_what_scenes_writes_is_read(tmp_path, capsys):
    drawn = ("--count", 2, "--frames", 5, "--resolution", "96x64")
    assert ultragen("scenes", *drawn, "--out", tmp_path / "clips") == 0
    words = ("dataset", tmp_path / "clips", "--out", tmp_path / "out", *EMBEDDED_ONES)
    assert ultragen(*words) == 0
    entries = json.loads((tmp_path / "clips" / "captions.json").read_text())
    assert [clip.captions for clip in LatentDataset(tmp_path / "out").clips] == [
        (entry["caption"],) for entry in entries
    ]


def test_buckets_of_a_resolution():
    assert [str(each) for each in buckets(WAN, None, None, None)] == [
        *("1088x1920x81", "1088x1920x1", "1440x1440x81", "1440x1440x1"),
        *("1920x1088x81", "1920x1088x1"),
    ]
    found = {str(each) for each in buckets(EMBEDDED, "720P", [17, 33], None)}
    assert {"736x1280x33", "736x1280x17", "736x1280x1", "960x960x17"} <= found
    for preset, name in ((WAN, "4k"), (EMBEDDED, "4k"), (EMBEDDED, "2k")):
        for bucket in buckets(preset, name, None, None):
            bucket.check_grid(preset.pixels_per_token)


def table(folder: Path, text: str) -> Path:
    folder.mkdir()
    encode_video(moving(6, 64, 96), folder / "a.mp4", 12)
    (folder / "metadata.csv").write_text(text)
    return folder


def bad_inputs() -> dict[str, tuple]:
    """By what is wrong: what makes the folder of clips, options, and words of the message."""

    def empty(folder: Path) -> None:
        folder.mkdir()

    def without_captions(folder: Path) -> None:
        table(folder, "").joinpath("metadata.csv").unlink()

    def unknown_column(folder: Path) -> None:
        table(folder, "video,prompt\na.mp4,waves\n")

    def missing_files(folder: Path) -> None:
        table(folder, "video,prompt\nb.mp4,waves\n")

    return {
        "no folder": (None, (), ["no folder"]),
        "no clips": (empty, (), ["no clips in"]),
        "no captions": (without_captions, (), ["none of the 1 clips", "NAME.txt"]),
        "no such column": (unknown_column, ("--caption-column", "text"), ["'text'", "prompt"]),
        "captions without files": (missing_files, (), ["no clip with a caption", "file missing"]),
        "no bucket": (unknown_column, ("--bucket", "big"), ["HEIGHTxWIDTHxFRAMES", "big"]),
        "a grid": (unknown_column, ("--bucket", "48x96x5"), ["multiples of 32", "64x96x5"]),
        "frames": (unknown_column, ("--bucket", "64x96x6"), ["4n + 1", "5 or 9"]),
        "a resolution": (unknown_column, ("--resolution", "9k"), ["9k", "1080p"]),
        "both": (
            unknown_column,
            ("--bucket", "64x96x5", "--frames", 5),
            ["either --bucket", "--frames"],
        ),
    }


@pytest.mark.parametrize("wrong", bad_inputs())
def test_bad_input(wrong, tmp_path, capsys):
    make, options, words = bad_inputs()[wrong]
    if make is not None:
        make(tmp_path / "clips")
    out = tmp_path / "out"
    assert (
        ultragen("dataset", tmp_path / "clips", "--out", out, "--model", "embedded", *options) == 2
    )
    line = one_line(capsys)
    assert all(word in line for word in words), line
    assert not out.exists()


def test_a_folder_for_the_dataset_is_asked_for(clips, made, capsys):
    assert ultragen("dataset", clips, *EMBEDDED_ONES) == 2
    assert "--out is missing" in one_line(capsys)
    assert ultragen("dataset", clips, "--out", clips, *EMBEDDED_ONES) == 2
    assert "holds the clips" in one_line(capsys)
    assert ultragen("dataset", made) == 2
    assert "add --preview" in one_line(capsys)


def test_another_dataset_is_not_mixed_in(clips, made, capsys, files):
    for options, words in (
        (("--frame-rate", 6), ["frame_rate 12.0, not 6.0", "--overwrite"]),
        (("--bucket", "32x32x5"), ["buckets", "32x32x5", "another --out"]),
        (("--clips", "all"), ["clips head, not all"]),
    ):
        assert ultragen("dataset", clips, "--out", made, *EMBEDDED_ONES, *options) == 2
        line = one_line(capsys)
        assert all(word in line for word in words), line
    assert ultragen("dataset", clips, "--out", made, "--base", files.base, *SMALL) == 2
    assert "model embedded, not wan" in one_line(capsys)


def test_another_vae_is_refused(made, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(EMBEDDED_MODEL / "vae", other / "vae")
    config = json.loads((other / "vae" / "config.json").read_text())
    (other / "vae" / "config.json").write_text(json.dumps(config | {"noise": 0.04}))
    assert ultragen("dataset", made, "--preview", "--base", other) == 2
    line = one_line(capsys)
    assert "latents of another VAE" in line and "--base" in line
    (other / "vae" / "config.json").unlink()
    assert ultragen("dataset", made, "--preview", "--base", other) == 2
    assert "has no vae/config.json" in one_line(capsys)


def test_an_image_conditioned_base_is_refused(clips, tmp_path, capsys, files):
    base = tmp_path / "i2v"
    shutil.copytree(files.base, base)
    index = json.loads((base / "model_index.json").read_text())
    index["_class_name"] = "WanImageToVideoPipeline"
    (base / "model_index.json").write_text(json.dumps(index))
    out = tmp_path / "out"
    assert ultragen("dataset", clips, "--out", out, "--base", base, *SMALL) == 2
    assert "looks like WanImageToVideoPipeline, not text-to-video" in one_line(capsys)
    assert not out.exists()


def test_the_transformer_is_not_needed(clips, tmp_path, files):
    base = tmp_path / "base"
    shutil.copytree(files.base, base)
    shutil.rmtree(base / "transformer")
    words = (clips, "--out", tmp_path / "out", "--base", base, "--frame-rate", 12, *SMALL)
    assert ultragen("dataset", *words) == 0
    (base / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert ultragen("dataset", *words) == 1
