"""The README and the docs: every snippet is run, every link leads somewhere."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import urllib.request
from collections import Counter
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from accelerate.commands.launch import launch_command_parser
from clip_folders import moving
from commands import ultragen
from fakes import fake_models, served
from paths import ROOT
from released_reference import Sizes, released_weights
from torch.distributed.run import get_args_parser
from wan_files import make_wan

import app
from ultragen.cli import dataset, entry
from ultragen.dataset.shards import LatentDataset
from ultragen.estimates.memory import GROWING_VALUES_PER_TOKEN, WAN_PARAMETERS, Memory
from ultragen.hardware import GIB, Hardware
from ultragen.presets import RESOLUTIONS, ULTRAGEN_SOURCE, WAN, WAN_SOURCE, Resolution
from ultragen.runs import choice, loading, request
from ultragen.training import wan_distillation, wan_options, wan_sources
from ultragen.training.build import TINY_SIZE, build_classifier
from ultragen.training.stages.transformer_stage import TransformerStage
from ultragen.video import encode_video, probe_video
from ultragen.weights.released import load_ultragen
from ultragen.world.captions import vocabulary
from ultragen.world.heldout import HeldOutClip
from ultragen.world.scene import EDITIONS, allowed_values

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
TEXTS = {"README.md": README, **{f"docs/{name}": text for name, text in sorted(DOCS.items())}}
LOCAL = "http://127.0.0.1:7860"
# A frame of every name is as small: what is done with it is the same.
SMALL = {name: Resolution(name, 288, 512, 272) for name in RESOLUTIONS}
# What makes a command fast, without changing what it does.
FAST = {
    "plan": (),
    "generate": ("--frames", "5", "--steps", "1"),
    "batch": ("--frames", "5", "--steps", "1"),
    "compare": ("--frames", "5", "--steps", "1"),
    "scenes": ("--count", "1", "--frames", "1", "--resolution", "64x48"),
    "sheets": ("--count-544p", "1", "--count-1080p", "0"),
    "train": ("--tiny", "--max-steps", "1"),
    "assemble": ("--tiny",),
    "measure": (),
    "convert": (),
    "evaluate": ("--clips", "1", "--frames", "5", "--steps", "1"),
    "benchmark": ("--repeats", "1", "--skip", "parts"),
    "doctor": (),
    "dataset": (),
}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def block(language: str, word: str) -> str:
    """The one block that holds a word, wherever it stands."""
    [code] = (code for text in TEXTS.values() for code in blocks(text, language) if word in code)
    return code


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
    Path("prompts.txt").write_text("a calm lake\n\na calm lake at sunset\n")


# Commands


def test_every_command_is_shown():
    shown = {words[0] for text in TEXTS.values() for words in commands(text)}
    assert shown == set(FAST)


def launched() -> list[tuple[str, list[str], list[str]]]:
    """The launcher, its own words and the command's name of every line that starts processes."""
    lines = re.findall(
        r"\b(torchrun|accelerate launch) ([^`\n]*?-m (?:-- )?ultragen) ((?:train )?[a-z-]+)",
        "\n".join(TEXTS.values()),
    )
    return [(name, own.split(), command.split()) for name, own, command in lines]


@pytest.mark.parametrize(
    ("launcher", "own", "command"),
    [pytest.param(*line, id=" ".join((line[0], *line[1], *line[2]))) for line in launched()],
)
def test_launchers_pass_every_option_on(launcher, own, command):
    """argparse takes options behind the module's name too for short forms of a launcher's own."""
    found: Any = typer.main.get_command(entry.app)
    for name in command:
        found = found.commands[name]
    options = [name for parameter in found.params for name in parameter.opts if name[0] == "-"]
    parser = get_args_parser() if launcher == "torchrun" else launch_command_parser()
    parsed = parser.parse_args([*own, *command, *options])
    assert (parsed.module, parsed.training_script) == (True, "ultragen")
    assert parsed.training_script_args == [*command, *options] and options


def test_launched_commands_are_found():
    found = Counter((launcher, *command) for launcher, _, command in launched())
    assert found["torchrun", "train", "wan"] and found["accelerate launch", "batch"]


def test_no_block_is_left_out():
    """Tests take blocks by what stands in them: another one needs a test of its own."""
    found = Counter(
        language
        for text in TEXTS.values()
        for language in re.findall(r"^```(\w+)$", text, re.MULTILINE)
    )
    known = {"python": 6, "js": 1, "json": 1, "yaml": 2, "mermaid": 1, "bibtex": 1, "text": 2}
    assert {name: found[name] for name in set(found) - {"bash", "sh"}} == known


@pytest.mark.parametrize(
    "words",
    [
        # ImageNet's features are those of a true network.
        pytest.param(words, marks=[pytest.mark.slow] if "imagenet" in words else [])
        for text in TEXTS.values()
        for words in commands(text)
        if words[0] not in ("train", "assemble", "convert", "dataset")
    ],
    ids=" ".join,
)
def test_commands(words, monkeypatch, capsys):
    from ultragen.estimates.coefficients import CPU
    from ultragen.runs import calibrate
    from ultragen.world import preview

    monkeypatch.setattr(choice, "find_hardware", lambda: Hardware("cuda", "GPU", 80 * GIB, True))
    monkeypatch.setattr(loading, "load_models", lambda name=None, loras=None: fake_models())
    monkeypatch.setattr(calibrate, "measure", lambda models, report: CPU)
    monkeypatch.setattr(HeldOutClip, "frames", frames_once)
    monkeypatch.setattr(request, "RESOLUTIONS", SMALL)
    measure = preview.benchmark
    monkeypatch.setattr(preview, "benchmark", partial(measure, 0.0, (32, 48, 1)))
    if "classifier" in words:
        build_classifier(TINY_SIZE).save_pretrained(fake_models().source / "classifier")
    assert run([*words, *FAST[words[0]]]) == 0, capsys.readouterr().err
    if "--out" in words:
        assert Path(words[words.index("--out") + 1]).exists()


def test_the_commands_for_clips_of_ones_own(files, monkeypatch, capsys):
    """In their order, with small sizes and a table as UltraVideo's."""
    monkeypatch.setenv(WAN_SOURCE.variable, str(files.base))
    sizes = {name: Resolution(name, 32, 64, 32) for name in RESOLUTIONS}
    monkeypatch.setattr(dataset, "RESOLUTIONS", sizes)
    Path("clips").mkdir()
    encode_video(moving(82, 64, 96), Path("clips/a.mp4"), WAN.fps)
    rows = "clip_id,Brief Description,Summarized Description\na,waves,colours in waves\n"
    Path("clips/metadata.csv").write_text(rows)
    for words in commands(DOCS["dataset.md"]):
        assert run(words) == 0, capsys.readouterr().err
    assert Path("latents/preview.jpg").exists() and Path("latents-4k/preview.jpg").exists()
    assert LatentDataset("latents-4k").clips[0].num_frames == 29
    [clip] = LatentDataset("latents-two-captions").clips
    assert clip.captions == ("colours in waves", "waves")


def test_the_training_of_the_larger_model_in_its_order(files, monkeypatch, capsys):
    """Every command but the one that makes a clip, with a toy, small clips and one step each."""
    monkeypatch.setenv(WAN_SOURCE.variable, str(files.base))
    sizes = {name: Resolution(name, 64, 96, 64) for name in RESOLUTIONS}
    monkeypatch.setattr(dataset, "RESOLUTIONS", sizes)
    for module in (wan_sources, wan_options, wan_distillation):
        monkeypatch.setattr(module, "RESOLUTIONS", sizes)
    Path("clips").mkdir()
    encode_video(moving(82, 128, 192), Path("clips/a.mp4"), WAN.fps)
    Path("clips/a.txt").write_text("colours in waves")
    short = ("--max-steps", "1", "--accumulation", "1", "--sample-prompt", "a lake")
    fast = {
        "train wan": (*short, "--sample-steps", "1"),
        "train wan-distill": (*short, "--frames", "5", "--steps", "1"),
    }
    every = [
        words
        for words in commands(DOCS["training-wan.md"])
        if words[0] in ("train", "dataset", "convert")
    ]
    assert len(every) == 9
    for words in every:
        more = fast.get(" ".join(words[:2]), ())
        assert run([*words, *more]) == 0, capsys.readouterr().err
    assert load_ultragen("models/ultragen-own").layer_kinds == ["even", "odd", "even"]
    for run_of in ("wan-lora", "wan-fast-lora"):
        assert Path(f"runs/{run_of}/export/comfyui_lora.safetensors").is_file()
    assert load_ultragen("runs/wan-fast/export").config.distilled_steps == 1


def test_the_hours_of_a_training_follow_from_its_seconds():
    row = r"^\| [^|]* \| ([\d.]+) \| ([\d,]+) \| ([\d,]+) \| ([\d.]+) \|$"
    rows = re.findall(row, DOCS["training-wan.md"], re.MULTILINE)
    assert len(rows) == 6
    for cells in rows:
        seconds, epoch, all_, days = (float(cell.replace(",", "")) for cell in cells)
        hours = 42_000 * seconds / 3600
        assert epoch == round(hours)
        assert all_ == round(50 * hours)
        assert days == round(50 * hours / 32 / 24, 1)


def test_the_released_weights_become_a_folder(capsys):
    [words] = (words for words in commands(DOCS["wan.md"]) if words[0] == "convert")
    torch.save(released_weights(Sizes(layers=2, full=(0,))), words[1])
    assert run(words) == 0, capsys.readouterr().err
    found: dict = {}
    exec(block("python", "UltraGenTransformer3DModel"), found)
    assert found["transformer"].layer_kinds == ["full", "odd"]


def in_this_process(walk, title: str, code: str, **variables: str) -> None:
    """Lines of a shell as `Walk.shell` runs them, without an interpreter of its own for each."""
    print(title)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(walk.work)
        for name, value in variables.items():
            patch.setenv(name, value)
        for line in code.replace("; ", "\n").strip().splitlines():
            program, *words = shlex.split(line)
            if program == "export":
                for name, value in (word.split("=", 1) for word in words):
                    patch.setenv(name, value)
            elif words[:2] == ["-m", "ultragen"]:
                assert run(words[2:]) == 0, line
            elif program == "python":
                patch.setattr(sys, "argv", words)
                try:
                    runpy.run_path(words[0], run_name="__main__")
                except SystemExit as ended:
                    assert not ended.code, line
            else:
                assert program == "cat", line


@pytest.mark.slow
def test_the_gpu_section(tmp_path, monkeypatch, capfd):
    """As it stands, but with toys: by the script that does so on a GPU. What a fresh interpreter
    may see otherwise runs in a shell: preloaded files, the page and its client."""
    import follow_readme

    for name in [name for name in os.environ if "ULTRAGEN" in name]:
        monkeypatch.delenv(name)
    in_a_shell = follow_readme.Walk.shell

    def shell(walk, title: str, code: str, **variables: str) -> None:
        fresh = "-c" in shlex.split(code) or "client.py" in code
        (in_a_shell if fresh else in_this_process)(walk, title, code, **variables)

    monkeypatch.setattr(follow_readme.Walk, "shell", shell)
    ended, (out, err) = follow_readme.main(["work", "--tiny"]), capfd.readouterr()
    assert ended == 0, err
    for clip in ("random-1080p.mp4", "lake-1080p.mp4"):
        assert probe_video(tmp_path / "work" / clip).height == 544
    assert "(5, 64, 96, 3) uint8" in out
    assert "wan - Its weights are here" in out
    assert "A clip from the page" in out


def test_the_snippet_of_the_larger_model(monkeypatch, tmp_path):
    files = make_wan(tmp_path)
    for name, value in files.environment.items():
        monkeypatch.setenv(name, value)
    code = block("python", "from_wan")
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


def test_the_distillation_lora(files, monkeypatch, capsys):
    """With toys of the same layout."""
    for name, value in files.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(request, "RESOLUTIONS", {"1080p": Resolution("1080p", 96, 160, 90)})
    code = block("python", "distilled.safetensors")
    full = "layers, width, hidden, rank = 30, 1536, 8960, 32"
    config = json.loads((files.base / "transformer" / "config.json").read_text())
    width = config["num_attention_heads"] * config["attention_head_dim"]
    small = f"{config['num_layers']}, {width}, {config['ffn_dim']}, 2"
    assert full in code
    exec(code.replace(full.split(" = ")[1], small), {})
    [words] = (
        shlex.split(line.split("-m ultragen ")[1])
        for line in block("sh", "distilled.safetensors").splitlines()
    )
    assert run([*words, "--resolution", "1080p", "--frames", "5"]) == 0, capsys.readouterr().err
    metadata = json.loads(Path("lake.json").read_text())
    asked = metadata["request"]
    assert (asked["num_inference_steps"], asked["guidance_scale"]) == (4, 1.0)
    assert (asked["shift"], asked["solver"]) == (8.0, "euler")
    assert [lora["name"] for lora in metadata["model"]["loras"]] == ["distilled"]


def test_the_preloaded_files_are_those_that_are_looked_for():
    code = block("yaml", "preload_from_hub")
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
    table = set(re.findall(r"^\| `(\w+)", DOCS["wan.md"], re.MULTILINE))
    assert {"ULTRAGEN_MODEL", WAN_SOURCE.variable, ULTRAGEN_SOURCE.variable} <= table


@pytest.mark.slow
def test_the_training_in_its_order(monkeypatch, capsys):
    """Every training command as it stands, with a toy model and sample sheets of one step; the one
    for several GPUs as well, in one process. The README's goes on from what the others trained."""
    sample_sheet = TransformerStage.sample_sheet

    def sheet_of_one_step(stage):
        stage.num_inference_steps = 1
        return sample_sheet(stage)

    monkeypatch.setattr(TransformerStage, "sample_sheet", sheet_of_one_step)
    every = [words for text in (DOCS["training.md"], README) for words in commands(text)]
    for words in (w for w in every if w[0] in ("train", "assemble")):
        tiny = [word for word in words if word != "ultragen/embedded"]
        if tiny != words:  # the shipped weights are not of the toy's size: the toy goes on instead
            tiny.append("runs/first/pipeline")
        assert run([*tiny, *FAST[words[0]]]) == 0, capsys.readouterr().err
    assert Path("runs/first/pipeline/model_index.json").exists()
    assert Path("runs/second/model/transformer").is_dir()


def test_make_targets_are_there():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"\bmake ([a-z]+)(?=`|$)", README, re.MULTILINE))
    assert targets == {"demo", "test"}
    assert all(f"\n{target}:" in makefile for target in targets)


# Python, curl, MCP


@pytest.mark.slow
def test_the_python_snippet():
    code = block("python", "encode_video")
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
def test_the_snippet_of_several_processes(tmp_path):
    """By two of them on a CPU, with toys."""
    code = block("python", "enable_context_parallel")
    for on_gpus, here in (
        ('torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))\n', ""),
        ('"nccl"', '"gloo"'),
        ('pipe("a calm lake")', 'pipe("a calm lake", **SMALL)'),
    ):
        assert on_gpus in code
        code = code.replace(on_gpus, here)
    small = {"height": 288, "width": 384, "num_frames": 1, "num_inference_steps": 1}
    script = tmp_path / "several.py"
    script.write_text(
        f"from pipelines import seed\nfrom sharing import pipeline\n\nSMALL = {small}\n"
        f"SMALL['generator'] = seed(0)\npipe = pipeline()\n{code}"
        "print(f'frames {frames.shape}', flush=True)\n"
    )
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    done = subprocess.run(
        [*words, str(script)], env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.stdout.count("frames (1, 1, 288, 384, 3)") == 2, done.stderr


@pytest.mark.slow
def test_the_client_snippet(url, capsys):
    code = block("python", "gradio_client")
    assert LOCAL in code
    found: dict = {}
    exec(compile(code.replace(LOCAL, url), "README.md", "exec"), found)
    assert probe_video(Path(found["native"])).num_frames == 17
    assert "native.mp4" in capsys.readouterr().out


@pytest.mark.slow
def test_the_curl_snippet(url):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    code = block("sh", "curl")
    assert LOCAL in code
    ended = subprocess.run(
        ["bash", "-euc", code.replace(LOCAL, url)], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    assert "event: complete" in ended.stdout
    assert "side_by_side.mp4" in ended.stdout


@pytest.mark.slow
def test_the_javascript_snippet(url, tmp_path):
    npm, code = shutil.which("npm"), block("js", "@gradio/client")
    if npm is None:
        pytest.skip("npm is not installed")
    [package] = re.findall(r"npm install (@gradio/client@[\d.]+)", DOCS["space.md"])
    if subprocess.run([npm, "install", "--silent", package], cwd=tmp_path, timeout=300).returncode:
        pytest.skip("npm's registry can't be reached")
    assert LOCAL in code
    (tmp_path / "call.mjs").write_text(code.replace(LOCAL, url))
    ended = subprocess.run(
        ["node", "call.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"/native\.mp4 \d", ended.stdout)


def test_the_snippet_that_trains_and_measures(tmp_path):
    """Its steps are printed; `test_train_and_measure.py` follows them."""
    words = shlex.split(block("sh", "train_and_measure.py runs"))
    assert words[0] == "python"
    ended = subprocess.run(
        [sys.executable, str(ROOT / words[1]), str(tmp_path / "out"), *words[3:], "--dry-run"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert "train ultragen" in ended.stdout and "evaluate --set distillation" in ended.stdout


def test_the_snippets_of_the_ablations(tmp_path):
    """The steps are printed, and the evaluation is one of them; `test_table4_script.py` follows
    them."""
    words = shlex.split(block("sh", "table4.py runs"))
    ended = subprocess.run(
        [sys.executable, str(ROOT / words[1]), str(tmp_path / "out"), *words[3:], "--dry-run"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("train ultragen") == 6
    [command] = (shlex.split(line) for line in block("sh", "--set table4").splitlines())
    printed = [shlex.split(line) for line in ended.stdout.splitlines() if "--set table4" in line]
    elsewhere = {"runs/table4/models/seed-0", "outputs/table4-1080p"}  # folders
    asked = [word for word in command if word not in elsewhere]
    assert any(set(asked) <= set(words) for words in printed)


def test_the_mcp_snippet(url):
    code = block("json", "mcpServers")
    address = json.loads(code)["mcpServers"]["ultragen"]["url"].replace(LOCAL, url)
    with urllib.request.urlopen(f"{address.rstrip('/')}/schema", timeout=60) as answer:
        [tool] = json.load(answer)
    assert tool["name"].endswith("generate")
    assert "prompt" in tool["inputSchema"]["properties"]


def test_the_arguments_of_the_endpoint_are_named():
    paragraph = README[README.index("one endpoint") : README.index("```python\nfrom gradio_client")]
    named = re.findall(r"`(\w+)`", paragraph)
    assert named == [name for name in app.SETTINGS if name != "prompt"]
    table = DOCS["space.md"].split("## The API")[1]
    assert re.findall(r"^\| `(\w+)", table, re.MULTILINE) == list(app.SETTINGS)


# Front matter, links, pictures


def test_the_front_matter_is_complete():
    """What the Hub needs to start the Space, and what it shows."""
    matter = yaml.safe_load(README.split("---\n")[1])
    assert matter["sdk"] == "gradio"
    assert matter["sdk_version"] in (ROOT / "requirements.txt").read_text()
    assert matter["python_version"] == "3.12"  # text: as a number 3.10 would become 3.1
    assert (ROOT / matter["app_file"]).exists()
    assert "thumbnail" not in matter  # an address, and each Space has its own
    told = (ROOT / "docs" / "space.md").read_text().partition("\nthumbnail: ")[2].partition("\n")[0]
    space, _, picture = told.partition("/resolve/main/")
    assert space == "https://huggingface.co/spaces/OWNER/ultragen"
    assert (ROOT / picture).exists()
    assert len(matter["short_description"]) <= 60
    assert matter["license"] == "apache-2.0"
    assert matter["pinned"] is False
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {matter["colorFrom"], matter["colorTo"]} <= colours
    for name in ("title", "emoji", "suggested_hardware", "startup_duration_timeout"):
        assert isinstance(matter[name], str) and matter[name]
    assert all("/" in model for model in matter["models"]) and matter["tags"]


def anchors(text: str) -> set[str]:
    """What GitHub and the Hub call the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name):
    folder = (ROOT / name).parent
    for link, _, anchor in re.findall(r"\]\(([^)#\s]*)(#([^)\s]+))?\)", TEXTS[name]):
        if not link.startswith("http"):
            assert (folder / link).exists(), link
            if anchor:
                page = (folder / link).read_text(encoding="utf-8") if link else TEXTS[name]
                assert anchor in anchors(page), f"{link}#{anchor}"


def test_headline_figures_are_those_of_the_docs():
    """Every figure of the README's first table stands in the page that its row links."""
    rows = re.findall(r"^\| \[.*\]\(docs/(\w+\.md).*?\| (.*?) \|", README, re.MULTILINE)
    assert len(rows) == 4
    for page, result in rows:
        for figure in re.findall(r"\d+(?:\.\d+)?(?![\w.]*p\b|K|\d)", result):
            assert re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d.]*\d)", DOCS[page]), figure


def equations(text: str) -> set[int]:
    """Numbers such as those of `eq. 6-9` and `eq. 2, 4 and 5`."""
    parts = [part for run in re.findall(r"eq\. ([\d,\s\-and]+)", text) for part in run.split(",")]
    ends = [[int(number) for number in re.findall(r"\d+", part)] for part in parts]
    spans = ("-" in part for part in parts)
    return {
        number
        for span, numbers in zip(spans, ends, strict=True)
        for number in (range(numbers[0], numbers[-1] + 1) if span else numbers)
    }


def test_equations_lead_to_files_that_name_them():
    table = README[README.index("The paper's equation") : README.index("The loop over")]
    shown: list[int] = []
    for row in re.findall(r"^\| (\d.*)$", table, re.MULTILINE):
        numbers = sorted(equations(f"eq. {row.split(':')[0]}"))
        shown += numbers
        for path in re.findall(r"\]\((\S+)\)", row):
            named = equations((ROOT / path).read_text(encoding="utf-8"))
            assert named & set(numbers), f"{path} names none of {numbers}"
    assert shown == list(range(2, 14))


def test_pictures_are_small():
    for picture in (ROOT / "docs").glob("**/*.jpg"):
        if "examples" not in picture.parts:
            assert picture.stat().st_size <= 200_000, picture


@pytest.mark.parametrize("edition", EDITIONS)
def test_the_world_is_described_in_full(edition):
    table = DOCS["world.md"].split("## The second edition")[edition - 1]
    for name, values in allowed_values(edition).items():
        if name not in ("celestial_side", "celestial_altitude", "snow_caps", "trees", "birds"):
            row = [value for value in values if value not in ("none", "scattered")]
            assert all(value in table for value in row), name
    known = set(vocabulary(edition))
    rows = re.findall(r"^\|.*\|.*\|(.*)\|$", table, re.MULTILINE)[2:]
    assert len(rows) > 10
    for row in rows:
        assert set(re.findall(r"[a-z]+", row.lower())) <= known, row


def test_all_words_of_the_world_are_listed():
    listed = re.findall(r"^```text\n(.*?)```", DOCS["world.md"], re.MULTILINE | re.DOTALL)
    assert [word for words in listed for word in words.split()] == vocabulary(2)
    assert listed[0].split() == vocabulary()


def test_the_rule_of_the_hardware_page_is_the_programs():
    """Its columns `rule`, which are counted, beside what was measured."""
    memory = Memory(0, WAN_PARAMETERS.scaled(2), values_per_token=GROWING_VALUES_PER_TOKEN)
    size = r"^\| (\d+)×(\d+), (\d+) frames \| "
    clips = re.findall(size + r"(whole|in turn) .*\| (\S+) \|$", DOCS["hardware.md"], re.MULTILINE)
    assert len(clips) == 4
    for height, width, frames, placement, rule in clips:
        peak = memory.peak(placement, int(height), int(width), int(frames))
        assert rule == f"{peak / GIB:.1f}"
    passes = re.findall(size + r"([\d,]+) .*\| (\S+) \|$", DOCS["hardware.md"], re.MULTILINE)
    assert len(passes) == 7
    for height, width, frames, tokens, rule in passes:
        count = (int(frames) + 3) // 4 * int(height) // 16 * int(width) // 16
        assert tokens == f"{count:,}"
        assert rule == f"{2 * GROWING_VALUES_PER_TOKEN * count / GIB:.1f}"
