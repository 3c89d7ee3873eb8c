"""Clips as other kinds of files, made on demand."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
import pytest
from fakes import fake_models
from patterns import waves

import app
from ultragen.video import encode_video, probe_video
from ultragen.web import downloads
from ultragen.web.downloads import make_file, size_text


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    made = app.Page(fake_models(), tmp_path_factory.mktemp("runs"))
    made.build()
    return made


@pytest.fixture
def clip(tmp_path):
    return str(encode_video(waves(5, 96, 160), tmp_path / "native.mp4", 24))


@pytest.mark.parametrize("suffix", [".webm", ".gif", ".webp"])
def test_a_file_is_made_and_its_size_is_said(page, clip, tmp_path, suffix):
    updates = make_file(page.ui, tmp_path / "runs", "upscaled", suffix, None, clip, None)
    file = Path(updates[page.ui.download]["value"])
    assert file.name == f"upscaled{suffix}"
    said = updates[page.ui.download_size]
    assert size_text(file.stat().st_size) in said
    assert ("for chats" in said) == (suffix != ".webm")
    if suffix == ".webm":
        assert (probe_video(file).fps, probe_video(file).num_frames) == (24, 5)


def test_without_a_clip_it_is_said_what_to_do(page, tmp_path):
    with pytest.raises(gr.Error, match="make one, or choose an example"):
        make_file(page.ui, tmp_path / "runs", "native", ".gif", None, None, None)
    assert list(tmp_path.iterdir()) == []


def test_what_goes_wrong_shows_no_path(page, clip, tmp_path, monkeypatch, capsys):
    def full(source, target):
        raise OSError(f"{target} was not written: the disk is full")

    monkeypatch.setattr(downloads, "convert_video", full)
    with pytest.raises(gr.Error, match="could not be made") as error:
        make_file(page.ui, tmp_path / "runs", "native", ".gif", clip, None, None)
    assert str(tmp_path) not in error.value.message
    assert "the disk is full" in capsys.readouterr().err


def test_sizes_are_read_easily():
    assert size_text(190_694) == "191 kB"
    assert size_text(2_268_650) == "2.3 MB"
