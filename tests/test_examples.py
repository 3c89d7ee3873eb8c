"""Every script that people copy is run."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import PartialState
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
    assert names == {"client.py", "generate.py", "many_prompts.py"}


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


@pytest.mark.slow
def test_many_prompts_give_the_same_clips_for_any_number_of_processes(
    tmp_path, monkeypatch, capsys
):
    """One process is this one, two are started as the README says."""
    code = made_fast(
        "many_prompts.py",
        (
            '"height": 544, "width": 960, "num_frames": 17',
            '"height": 96, "width": 128, "num_frames": 5',
        ),
    )
    (tmp_path / "many.py").write_text(code)
    (tmp_path / "prompts.txt").write_text("a calm lake\n\na calm lake\ndunes at noon\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["many.py", "prompts.txt", "--out", "one"])
    runpy.run_path("many.py", run_name="__main__")
    PartialState._reset_state()  # accelerate's, which a process makes once
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)
    two = run(*launch, "many.py", "prompts.txt", "--out", "two", folder=tmp_path)
    for printed in (capsys.readouterr().out, two):
        assert printed.count("0002.mp4: dunes at noon") == 1
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}
        for folder in ("one", "two")
    ]
    assert set(files[0]) == {"0000.mp4", "0001.mp4", "0002.mp4"}
    assert files[0] == files[1]
    # The same prompt, but another seed.
    assert files[0]["0000.mp4"] != files[0]["0001.mp4"]


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
