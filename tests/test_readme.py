"""The README and the docs: every snippet is run, every link leads somewhere."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from functools import lru_cache, partial
from pathlib import Path

import pytest
import torch
import yaml
from commands import ultragen
from fakes import fake_models, served
from paths import ROOT
from released_reference import Sizes, released_weights
from wan_files import make_wan

import app
from ultragen.hardware import GIB, Hardware
from ultragen.presets import ULTRAGEN_SOURCE, WAN_SOURCE
from ultragen.runs import choice, loading
from ultragen.training.build import TINY_SIZE, build_classifier
from ultragen.video import probe_video
from ultragen.world.captions import vocabulary
from ultragen.world.heldout import HeldOutClip
from ultragen.world.scene import ALLOWED

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
LOCAL = "http://127.0.0.1:7860"
# What makes a command fast, without changing what it does.
FAST = {
    "generate": ("--frames", "5", "--steps", "1"),
    "compare": ("--frames", "5", "--steps", "1"),
    "scenes": ("--count", "1", "--frames", "1", "--resolution", "64x48"),
    "sheets": ("--count-544p", "1", "--count-1080p", "0"),
    "train": ("--tiny", "--max-steps", "1"),
    "assemble": ("--tiny",),
    "measure": (),
    "convert": (),
    "evaluate": ("--clips", "1", "--frames", "5", "--steps", "1"),
    "benchmark": ("--repeats", "1", "--skip", "parts"),
}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


# Several commands show the same scenes, and rendering is most of what these take.
frames_once = lru_cache(HeldOutClip.frames)


def commands(text: str) -> list[list[str]]:
    """The words after `-m ultragen` of every line that has it."""
    lines = [line for block in blocks(text, "bash") for line in block.splitlines()]
    return [shlex.split(line.split("-m ultragen ")[1]) for line in lines if "-m ultragen " in line]


def run(words: list[str]) -> int:
    return ultragen(*words)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """What the snippets write lands in a folder of the test."""
    monkeypatch.chdir(tmp_path)


# Commands


def test_every_command_is_shown():
    shown = {words[0] for text in (README, *DOCS.values()) for words in commands(text)}
    assert shown == set(FAST)


@pytest.mark.parametrize(
    "words",
    [
        # ImageNet's features are those of a true network.
        pytest.param(words, marks=[pytest.mark.slow] if "imagenet" in words else [])
        for text in (README, *DOCS.values())
        for words in commands(text)
        if words[0] not in ("train", "assemble", "convert")
    ],
    ids=" ".join,
)
def test_commands(words, monkeypatch, capsys):
    from ultragen.estimates.coefficients import CPU
    from ultragen.runs import calibrate
    from ultragen.world import preview

    monkeypatch.setattr(choice, "find_hardware", lambda: Hardware("cuda", "GPU", 80 * GIB, True))
    monkeypatch.setattr(loading, "load_models", lambda name=None: fake_models())
    monkeypatch.setattr(calibrate, "measure", lambda models, report: CPU)
    monkeypatch.setattr(HeldOutClip, "frames", frames_once)
    measure = preview.benchmark
    monkeypatch.setattr(preview, "benchmark", partial(measure, 0.0, (32, 48, 1)))
    if "classifier" in words:
        build_classifier(TINY_SIZE).save_pretrained(fake_models().source / "classifier")
    assert run([*words, *FAST[words[0]]]) == 0, capsys.readouterr().err
    if "--out" in words:
        assert Path(words[words.index("--out") + 1]).exists()


def test_the_released_weights_become_a_folder(capsys):
    [words] = (words for words in commands(README) if words[0] == "convert")
    torch.save(released_weights(Sizes(layers=2, full=(0,))), words[1])
    assert run(words) == 0, capsys.readouterr().err
    found: dict = {}
    code = next(b for b in blocks(README, "python") if "UltraGenTransformer3DModel" in b)
    exec(code, found)
    assert found["transformer"].layer_kinds == ["full", "odd"]


@pytest.mark.slow
def test_the_gpu_section(tmp_path):
    """As it stands, in a shell, but with toys: by the script that does so on a GPU."""
    ended = subprocess.run(
        [sys.executable, ROOT / "scripts" / "follow_readme.py", "work", "--tiny"],
        capture_output=True,
        text=True,
        timeout=400,
        env={name: value for name, value in os.environ.items() if "ULTRAGEN" not in name},
    )
    assert ended.returncode == 0, ended.stderr
    for clip in ("random-1080p.mp4", "lake-1080p.mp4"):
        assert probe_video(tmp_path / "work" / clip).height == 544
    assert "(5, 64, 96, 3) uint8" in ended.stdout
    assert "wan - Its weights are here" in ended.stdout
    assert "A clip from the page" in ended.stdout


def test_the_snippet_of_the_larger_model(monkeypatch, tmp_path):
    files = make_wan(tmp_path)
    for name, value in files.environment.items():
        monkeypatch.setenv(name, value)
    code = next(block for block in blocks(README, "python") if "from_wan" in block)
    for full, small in (
        ('.to("cuda")', ""),
        ("height=1088", "height=64"),
        ("width=1920", "width=96"),
        ("num_frames=81", "num_frames=5"),
        ("num_inference_steps=30", "num_inference_steps=1"),
    ):
        assert full in code
        code = code.replace(full, small)
    found: dict = {}
    exec(compile(code, "README.md", "exec"), found)
    assert found["clip"].shape == (5, 64, 96, 3)


def test_the_preloaded_files_are_those_that_are_looked_for():
    [code] = blocks(README, "yaml")
    lines = [line.split() for line in yaml.safe_load(code)["preload_from_hub"]]
    (repository, names, commit), ultragen = lines
    assert (repository, commit) == (WAN_SOURCE.repository, WAN_SOURCE.revision)
    files = names.split(",")
    assert len(files) == len(set(files)) == 19
    matched = [set(fnmatch.filter(files, pattern)) for pattern in WAN_SOURCE.files]
    assert all(matched) and set.union(*matched) == set(files)
    shards = [name for name in files if "-of-" in name]
    for first in (name for name in shards if "-00001-of-" in name):
        stem, number = first.split("-00001-of-")[0], int(first[-17:-12])
        assert len([name for name in shards if name.startswith(stem)]) == number
    assert ultragen == [ULTRAGEN_SOURCE.repository, *ULTRAGEN_SOURCE.files]
    matter = yaml.safe_load(README.split("---\n")[1])
    assert {line[0] for line in lines} == set(matter["models"])


def test_the_variables_are_those_of_the_code():
    table = set(re.findall(r"^\| `(\w+)", README, re.MULTILINE))
    assert {"ULTRAGEN_MODEL", WAN_SOURCE.variable, ULTRAGEN_SOURCE.variable} <= table


@pytest.mark.slow
def test_the_training_in_its_order(capsys):
    """Every training command as it stands, with a toy model; the one for several GPUs as well,
    in one process."""
    for words in (w for w in commands(README) if w[0] in ("train", "assemble")):
        tiny = [word for word in words if word != "ultragen/embedded"]
        if tiny != words:  # the shipped weights are not of the toy's size: the toy goes on instead
            tiny.append("runs/first/pipeline")
        assert run([*tiny, *FAST[words[0]]]) == 0, capsys.readouterr().err
    assert Path("runs/first/pipeline/model_index.json").exists()
    assert Path("runs/second/model/transformer").is_dir()


def test_make_targets_are_there():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"\bmake (\w+)$", README, re.MULTILINE))
    assert targets == {"demo", "test"}
    assert all(f"\n{target}:" in makefile for target in targets)


# Python, curl, MCP


@pytest.mark.slow
def test_the_python_snippet():
    code = next(block for block in blocks(README, "python") if "UltraGenPipeline" in block)
    for full, small in (
        ("height=544", "height=288"),
        ("width=960", "width=512"),
        ("num_frames=17", "num_frames=5"),
    ):
        assert full in code
        code = code.replace(full, small)
    exec(compile(code, "README.md", "exec"), {})
    assert probe_video(Path("lake.mp4")).num_frames == 5


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with served(fake_models(), tmp_path_factory.mktemp("runs")) as address:
        yield address


@pytest.mark.slow
def test_the_client_snippet(url, capsys):
    code = next(block for block in blocks(README, "python") if "gradio_client" in block)
    assert LOCAL in code
    found: dict = {}
    exec(compile(code.replace(LOCAL, url), "README.md", "exec"), found)
    assert probe_video(Path(found["native"])).num_frames == 17
    assert "native.mp4" in capsys.readouterr().out


@pytest.mark.slow
def test_the_curl_snippet(url):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    code, *_ = blocks(README, "sh")
    assert LOCAL in code
    ended = subprocess.run(
        ["bash", "-euc", code.replace(LOCAL, url)], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    assert "event: complete" in ended.stdout
    assert "side_by_side.mp4" in ended.stdout


def test_the_snippet_of_many_prompts():
    """It is what the script's first lines show; `test_examples.py` launches it."""
    _, code, _ = blocks(README, "sh")
    assert code in (ROOT / "examples" / "many_prompts.py").read_text()


def test_the_snippet_that_trains_and_measures(tmp_path):
    """Its steps are printed; `test_train_and_measure.py` follows them."""
    *_, code = blocks(README, "sh")
    words = shlex.split(code)
    assert words[0] == "python"
    ended = subprocess.run(
        [sys.executable, str(ROOT / words[1]), str(tmp_path / "out"), *words[3:], "--dry-run"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert "train ultragen" in ended.stdout and "evaluate --set distillation" in ended.stdout


def test_the_mcp_snippet(url):
    [code] = blocks(README, "json")
    address = json.loads(code)["mcpServers"]["ultragen"]["url"].replace(LOCAL, url)
    with urllib.request.urlopen(f"{address.rstrip('/')}/schema", timeout=60) as answer:
        [tool] = json.load(answer)
    assert tool["name"].endswith("generate")
    assert "prompt" in tool["inputSchema"]["properties"]


def test_the_arguments_of_the_endpoint_are_named():
    paragraph = README[README.index("one endpoint") : README.index("```python\nfrom gradio_client")]
    named = re.findall(r"`(\w+)`", paragraph)
    assert named == [name for name in app.SETTINGS if name != "prompt"]


# Front matter, links, pictures


def test_the_front_matter_is_complete():
    """What the Hub needs to start the Space, and what it shows."""
    matter = yaml.safe_load(README.split("---\n")[1])
    assert matter["sdk"] == "gradio"
    assert matter["sdk_version"] in (ROOT / "requirements.txt").read_text()
    assert matter["python_version"] == "3.12"  # text: as a number 3.10 would become 3.1
    assert (ROOT / matter["app_file"]).exists()
    assert (ROOT / matter["thumbnail"]).exists()
    assert len(matter["short_description"]) <= 60
    assert matter["license"] == "apache-2.0"
    assert matter["pinned"] is False
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {matter["colorFrom"], matter["colorTo"]} <= colours
    for name in ("title", "emoji", "suggested_hardware", "startup_duration_timeout"):
        assert isinstance(matter[name], str) and matter[name]
    assert all("/" in model for model in matter["models"]) and matter["tags"]


@pytest.mark.parametrize("name", ["README.md", *(f"docs/{name}" for name in sorted(DOCS))])
def test_links_lead_somewhere(name):
    text, folder = (ROOT / name).read_text(encoding="utf-8"), (ROOT / name).parent
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        if not link.startswith("http"):
            assert (folder / link).exists(), link


def test_pictures_are_small():
    for picture in (ROOT / "docs").glob("**/*.jpg"):
        if "examples" not in picture.parts:
            assert picture.stat().st_size <= 200_000, picture


def test_the_world_is_described_in_full():
    table = DOCS["world.md"]
    for name, values in ALLOWED.items():
        if name not in ("celestial_side", "celestial_altitude", "snow_caps", "trees", "birds"):
            row = [value for value in values if value not in ("none", "scattered")]
            assert all(value in table for value in row), name
    known = set(vocabulary())
    for row in re.findall(r"^\|.*\|.*\|(.*)\|$", table, re.MULTILINE)[2:]:
        assert set(re.findall(r"[a-z]+", row.lower())) <= known, row
