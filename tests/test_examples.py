"""Every script that people copy is run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import fake_models, served
from paths import ROOT

import app
from ultragen.presets import EMBEDDED_MODEL
from ultragen.video import probe_video


def run(*command: object, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_no_example_is_forgotten_here():
    names = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert names == {"client.py", "generate.py"}


@pytest.mark.slow
def test_client(tmp_path):
    with served(fake_models(), tmp_path / "runs") as url:
        printed = run(ROOT / "examples" / "client.py", url, folder=tmp_path)
    paths = re.findall(r"(\S+\.mp4)", printed)
    assert [Path(path).name for path in paths] == ["native.mp4", "upscaled.mp4", "side_by_side.mp4"]
    assert probe_video(Path(paths[0])).num_frames == 17
    assert "seed 0" in printed


def made_fast(name: str, *changes: tuple[str, str]) -> str:
    """An example as it stands but for the size and the length."""
    if not (EMBEDDED_MODEL / "model_index.json").exists():
        pytest.skip("the embedded model is not there")
    code = (ROOT / "examples" / name).read_text()
    for full, fast in changes:
        assert full in code
        code = code.replace(full, fast)
    return code


@pytest.mark.slow
def test_generate(tmp_path):
    code = made_fast(
        "generate.py",
        ("height=544, width=960, num_frames=17", "height=288, width=512, num_frames=5"),
    )
    (tmp_path / "generate.py").write_text(code)
    assert "lake.mp4" in run("generate.py", folder=tmp_path)
    info = probe_video(tmp_path / "lake.mp4")
    assert (info.height, info.width, info.num_frames) == (288, 512, 5)


def test_make_examples_writes_what_the_page_shows(tmp_path, monkeypatch):
    import make_examples

    monkeypatch.setattr(make_examples, "load_models", fake_models)
    monkeypatch.setattr(make_examples, "PROMPTS", make_examples.PROMPTS[:1])
    make_examples.main(["--out", str(tmp_path / "docs")])
    (example,) = app.load_examples(tmp_path / "docs")
    assert example.native.parent.name == "1-a-calm-lake-under"
    metadata = json.loads(example.metadata_path.read_text())
    assert metadata["request"]["prompt"] == make_examples.PROMPTS[0]
    assert sum(path.stat().st_size for path in example.native.parent.iterdir()) < 4e6
