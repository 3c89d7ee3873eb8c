"""`benchmarks/one_scene.py`: how alike clips of a seed are at other sizes and lengths."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import one_scene
import pytest

from ultragen.world.heldout import held_out_clips


def scene(seed: int, frames: int, height: int, width: int) -> np.ndarray:
    """A patchwork that becomes another one in the course of the clip: uint8, t h w 3."""
    first, last = np.random.default_rng(seed).integers(255, size=(2, 9, 16)).astype(np.float64)
    part = np.linspace(0, 1, frames)[:, None, None]
    patches = (1 - part) * first + part * last
    clip = patches.repeat(height // 9, 1).repeat(width // 16, 2)
    return clip[..., None].repeat(3, -1).astype(np.uint8)


def test_a_scene_is_itself_at_every_size_and_length():
    clip = scene(0, 17, 90, 160)
    for frames, scale in ((17, 2), (9, 1), (33, 4)):
        found = one_scene.likeness(clip, scene(0, frames, 18 * scale, 32 * scale))
        assert found == pytest.approx(1, abs=0.01)
    assert abs(one_scene.likeness(clip, scene(1, 17, 90, 160))) < 0.3
    assert one_scene.likeness(clip, clip[::-1]) < 0.7
    assert one_scene.likeness(clip, 255 - clip) == pytest.approx(-1, abs=0.01)


class Scenes:
    """In place of the models: one scene a seed, or another one at every size."""

    edition = 1

    def __init__(self, steps: int | None) -> None:
        assert steps == 3
        self.native = self
        self.device = "cpu"

    def make(self, variant, caption: str, seed: int, noise: str) -> np.ndarray:
        own = 0 if noise == "spectral" else 100 * variant.num_frames + variant.base
        return scene(1000 * seed + own, variant.num_frames, 90, 160)


def test_the_table(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(one_scene, "Clips", Scenes)
    monkeypatch.setattr(Scenes, "edition", 2)
    file, pictures = tmp_path / "found.json", tmp_path / "pictures"
    arguments = ["--prompts", "2", "--steps", "3", "--json", str(file), "--pictures", str(pictures)]
    assert one_scene.main(arguments) == 0
    printed = capsys.readouterr()
    assert held_out_clips(2, edition=2)[1].caption in printed.err
    lines = printed.out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == list(one_scene.NOISES)
    assert "base | 9-frames | following | temporal | hd_mse" in lines[0]
    rows = json.loads(file.read_text())["rows"]
    for name in ("base", "9-frames"):
        assert rows["spectral"][name]["value"] == pytest.approx(1, abs=0.01)
        assert abs(rows["independent"][name]["value"]) < 0.3
    assert len(list(pictures.glob("*.png"))) == 2


def test_a_stopped_measurement_goes_on_with_what_it_kept(tmp_path: Path, monkeypatch, capsys):
    made = []

    class Counted(Scenes):
        def make(self, variant, caption: str, seed: int, noise: str) -> np.ndarray:
            made.append(seed)
            return super().make(variant, caption, seed, noise)

    monkeypatch.setattr(one_scene, "Clips", Counted)
    keep = ["--steps", "3", "--keep", str(tmp_path / "kept.jsonl")]
    one_scene.main(["--prompts", "1", *keep])
    made.clear()
    capsys.readouterr()
    one_scene.main(["--prompts", "2", *keep])
    again = capsys.readouterr().out
    assert set(made) == {1}
    one_scene.main(["--prompts", "2", "--steps", "3"])
    assert capsys.readouterr().out == again
    with pytest.raises(ValueError, match="another file for --keep"):
        one_scene.main(["--against", "9-frames", *keep])


def test_processes_share_the_prompts(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(one_scene, "Clips", Scenes)
    few = ["--prompts", "3", "--steps", "3"]
    one_scene.main(few)
    alone = capsys.readouterr().out
    keep = [*few, "--keep", str(tmp_path / "kept.jsonl")]
    for shard in ("2/2", "1/2"):
        one_scene.main([*keep, "--shard", shard])
        assert capsys.readouterr().out == ""
    lines = (tmp_path / "kept.jsonl").read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines] == [1, 0, 2]
    monkeypatch.setattr(Scenes, "make", None)  # all of them are there
    one_scene.main(keep)
    assert capsys.readouterr().out == alone
    with pytest.raises(ValueError, match="add --keep FILE"):
        one_scene.main([*few, "--shard", "1/2"])
