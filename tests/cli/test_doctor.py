"""`doctor`: what a bug report needs, and nothing that must not be in one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from commands import one_line, ultragen

from ultragen import __version__, hardware
from ultragen.cli import doctor
from ultragen.hardware import GIB, Hardware
from ultragen.ops import dispatch

TOKEN = "hf_" + "Secret" * 5


@pytest.fixture(autouse=True)
def _settings(monkeypatch):
    for name in ("ULTRAGEN_MODEL", "ULTRAGEN_DTYPE", "ULTRAGEN_WAN", "ULTRAGEN_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)


def examined(capsys, *words: str) -> str:
    assert ultragen("doctor", *words) == 0
    return capsys.readouterr().out


def test_this_machine(capsys):
    said = examined(capsys)
    for heading in doctor.PARTS:
        assert f"{heading}\n  " in said
    assert re.search(rf"^  ultragen +{re.escape(__version__)}$", said, re.MULTILINE)
    assert re.search(rf"^  torch +{re.escape(torch.__version__)}$", said, re.MULTILINE)
    assert re.search(r"^  ffmpeg +\S*\d", said, re.MULTILINE)
    assert re.search(r"^  diffusers +native$", said, re.MULTILINE)
    assert re.search(r"^  auto +embedded\. .*Not on this machine", said, re.MULTILINE)
    assert said.count("GiB free in ") >= 3
    assert "not found out" not in said


def test_json_has_the_same_facts(capsys):
    text, report = examined(capsys), json.loads(examined(capsys, "--json"))
    assert list(report) == list(doctor.PARTS)
    lines = [line.split(maxsplit=1)[0] for line in text.splitlines() if line.startswith("  ")]
    assert len(lines) == sum(max(1, len(facts)) for facts in report.values())
    changes = ("Disk",)  # free space, from one moment to the next
    for heading, facts in report.items():
        for name, fact in facts.items():
            pattern = rf"^  {re.escape(name)} +{re.escape(fact)}$"
            assert heading in changes or re.search(pattern, text, re.MULTILINE), name


def test_a_kernel_that_does_not_run_says_why(capsys, monkeypatch):
    monkeypatch.setattr(
        hardware, "find_hardware", lambda: Hardware("cuda", "A card", 24 * GIB, bfloat16=True)
    )
    reasons = {"triton_windows": "no C compiler\nTraceback of many lines"}
    monkeypatch.setattr(dispatch, "why_not", lambda name, device: reasons.get(name))
    facts = json.loads(examined(capsys, "--json"))
    kernels = facts["Fused operations"]
    assert set(kernels) == {*dispatch.FUSED["cuda"], *dispatch.FLOAT8}
    assert kernels.pop("triton_windows") == "does not run: no C compiler"
    assert set(kernels.values()) == {"runs"}
    assert facts["Device"]["device"] == "cuda: A card"
    assert facts["Device"]["memory"] == "24.0 GiB free"


@pytest.mark.parametrize(
    ("asked", "says"),
    [("float32", "float32 (ULTRAGEN_DTYPE=float32)"), ("auto", "float32 (automatic: this CPU")],
)
def test_the_precision_and_why(capsys, monkeypatch, asked, says):
    monkeypatch.setenv("ULTRAGEN_DTYPE", asked)
    monkeypatch.setattr(hardware, "fast_bfloat16", lambda: False)
    assert says in examined(capsys)


@pytest.mark.parametrize("how", [(), ("--json",)])
def test_secrets_are_never_printed(capsys, monkeypatch, how):
    """Neither as what they are, nor within another setting or the reason of an error."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("GRADIO_SECRET_KEY", "do-not-show-me")
    monkeypatch.setenv("HF_ENDPOINT", "https://someone:do-not-show-me@mirror.example")
    monkeypatch.setenv("HF_OTHER", f"Bearer {TOKEN[:20]}")
    monkeypatch.setenv("ULTRAGEN_MODEL", f"/models/{TOKEN}/do-not-show-me")
    said = examined(capsys, *how)
    assert TOKEN[:20] not in said and "do-not-show-me" not in said and "someone" not in said
    assert re.search(r'HF_TOKEN\W+set"?,?$', said, re.MULTILINE)
    assert "https://…@mirror.example" in said


def test_the_home_folder_is_not_named(capsys, monkeypatch, tmp_path):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("ULTRAGEN_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("ULTRAGEN_OTHER", f"{tmp_path}-2")
    monkeypatch.setenv("ULTRAGEN_MORE", f"/mnt{tmp_path}")
    monkeypatch.chdir(tmp_path)
    settings = json.loads(examined(capsys, "--json"))
    assert settings["Settings"]["ULTRAGEN_WEIGHTS"] == str(Path("~", "weights"))
    assert settings["Settings"]["ULTRAGEN_OTHER"] == f"{tmp_path}-2"
    assert settings["Settings"]["ULTRAGEN_MORE"] == f"/mnt{tmp_path}"
    assert settings["Disk"]["clips of the commands"].endswith(" free in ~")


def test_what_can_not_be_found_out_says_why_and_leaves_the_rest(capsys, monkeypatch):
    def broken():
        raise RuntimeError("the driver is older than this torch\nmore")

    monkeypatch.setattr(hardware, "find_hardware", broken)
    monkeypatch.setattr("imageio_ffmpeg.get_ffmpeg_version", broken)
    monkeypatch.setenv("ULTRAGEN_MODEL", "/no/such/model")
    facts = json.loads(examined(capsys, "--json"))
    assert facts["Device"]["GPUs"] == str(torch.cuda.device_count())
    why = "the driver is older than this torch"
    assert facts["Device"]["not found out"] == facts["Fused operations"]["not found out"] == why
    assert facts["Versions"]["ffmpeg"] == f"not found out: {why}"
    assert "There is no model" in facts["Model"]["ULTRAGEN_MODEL"]
    assert facts["Attention"]["diffusers"]


def test_a_wrong_precision_is_told_not_raised(capsys, monkeypatch):
    monkeypatch.setenv("ULTRAGEN_DTYPE", "float8")
    assert "ULTRAGEN_DTYPE must be one of auto, float32, bfloat16, not 'float8'" in examined(capsys)


def test_a_library_that_is_missing(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "LIBRARIES", ("torch", "no-such-library"))
    assert re.search(r"^  no-such-library +not installed$", examined(capsys), re.MULTILINE)


def test_it_takes_no_words(capsys):
    assert ultragen("doctor", "everything") == 2
    assert "everything" in one_line(capsys)
