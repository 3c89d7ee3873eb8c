"""The native clip that is shown while the rest of a run goes on."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import pytest
from fakes import PatientPipeline, fake_models

from ultragen.presets import EMBEDDED
from ultragen.runs import early, worker
from ultragen.runs.early import NativeReady
from ultragen.runs.progress import Progress, with_last_preview
from ultragen.runs.recipe import read_recipe
from ultragen.runs.request import Request
from ultragen.runs.worker import Finished
from ultragen.web.runs import CANCELLED, Runs

SHORT = Request("a calm lake", "720p", num_frames=5, num_inference_steps=3).validate(EMBEDDED)


@pytest.fixture
def runs(tmp_path):
    return Runs(fake_models(delay=0.2), tmp_path)


def test_the_native_clip_comes_before_the_base_clip_is_made(runs, tmp_path):
    seen = b""
    base = runs.models.base = PatientPipeline()
    for item in runs.items(SHORT, runs.frames):
        if isinstance(item, NativeReady):
            assert seen == b""
            seen = item.file.read_bytes()
            base.told.set()
            assert item.metadata["labels"]["native"] == "UltraGen, native 1280×720"
        elif isinstance(item, Finished):
            result = item.value
    assert seen == result.native.read_bytes()
    assert read_recipe(result.native) == read_recipe(result.upscaled)
    assert list(tmp_path.iterdir()) == [result.native.parent]
    measured = result.metadata["seconds"]["measured"]
    assert measured["encode"] > 0


def test_a_cancelled_run_leaves_no_early_file(runs, tmp_path):
    stop = Event()
    items = []
    for item in runs.items(SHORT, runs.frames, stop):
        items.append(item)
        if isinstance(item, NativeReady):
            stop.set()
    assert items[-1] == CANCELLED
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_ends_leaves_no_early_file(runs, tmp_path, monkeypatch):
    """What is not removed by then stays until the next start: a page ends while its threads run."""
    monkeypatch.setattr(worker, "_ended", Event())
    items = runs.items(SHORT, runs.frames)
    assert any(isinstance(item, NativeReady) for item in items)
    assert len(list(tmp_path.iterdir())) == 1
    worker.stop_all(10)
    assert list(tmp_path.iterdir()) == []
    assert list(items)[-1] == CANCELLED
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_no_early_file_does_not_end_the_run(runs, monkeypatch, capsys):
    def full(frames, path: Path, fps: int, comment: str):
        raise OSError(f"{path} was not written: the disk is full")

    monkeypatch.setattr(early, "encode_video", full)
    items = list(runs.items(SHORT, runs.frames))
    assert isinstance(items[-1], Finished)
    assert not any(isinstance(item, NativeReady) for item in items)
    assert "the disk is full" in capsys.readouterr().err


def test_a_preview_stays_until_the_next_one_or_the_next_stage():
    first = Progress("denoise", 2, 8, 0.1, "step 2", b"picture")
    assert with_last_preview(None, first) is first
    later = Progress("denoise", 3, 8, 0.2, "step 3")
    assert with_last_preview(later, first).preview == b"picture"
    assert with_last_preview(later, first).step == 3
    newer = Progress("denoise", 3, 8, 0.2, "step 3", b"newer")
    assert with_last_preview(newer, first).preview == b"newer"
    assert with_last_preview(Progress("decode", 0, 8, 0.3, ""), first).preview is None
