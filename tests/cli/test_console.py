"""What the commands share: the start, errors as one line, and nothing half-written."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import typer
from commands import PROMPT, SMALL, one_line, ultragen
from fakes import fake_models
from paths import ROOT

from ultragen.cli import console
from ultragen.cli.options import HEADINGS, app
from ultragen.runs import loading


def test_help_is_quick_and_lists_the_commands():
    """Torch alone takes seconds to import."""
    code = (
        "import sys; sys.argv = ['ultragen', '--help']\n"
        "from ultragen import cli\n"
        "try: cli.main()\n"
        "except SystemExit as end: code = end.code\n"
        "assert code == 0\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    for command in ("generate", "compare", "scenes", "train", "assemble", "sheets", "measure"):
        assert f"\n  {command} " in ended.stdout


def test_the_help_lists_every_command_once(capsys):
    assert ultragen("--help") == 0
    said = capsys.readouterr().out.partition("Options:")[2]
    commands = typer.main.get_command(app).commands
    assert sorted(re.findall(r"^  ([a-z]+) ", said, re.MULTILINE)) == sorted(commands)
    assert all(f"{heading}:" in said for heading in HEADINGS)
    assert "..." not in said  # no summary is cut off


def test_a_word_that_is_no_command(capsys):
    assert ultragen("paint") == 2
    assert "paint" in one_line(capsys)
    assert ultragen("genrate") == 2
    assert one_line(capsys).endswith("Did you mean 'generate'? See --help.\n")


def test_without_a_command_the_help_is_shown():
    ended = subprocess.run([sys.executable, "-m", "ultragen"], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "\nClips:\n  generate " in ended.stdout


def test_a_file_in_place_of_the_folder(fake, capsys, tmp_path):
    (tmp_path / "taken").write_text("mine")
    for out in (tmp_path / "taken", tmp_path / "taken" / "below"):
        assert ultragen("compare", "--prompt", PROMPT, *SMALL, "--out", out) == 1
        assert "choose" in one_line(capsys)
    assert (tmp_path / "taken").read_text() == "mine"
    assert fake.native.calls == []


def test_what_fails_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loading, "load_models", lambda name=None: fake_models(damage="black"))
    out = tmp_path / "deep" / "run"
    assert ultragen("compare", "--prompt", PROMPT, *SMALL, "--out", out) == 1
    assert "black" in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(fake, tmp_path, monkeypatch, capsys):
    def full(*arguments):
        raise OSError("native.mp4 was not written: the disk is full")

    from ultragen.runs import write

    monkeypatch.setattr(write, "encode_video", full)
    (tmp_path / "kept.txt").write_text("mine")
    assert ultragen("compare", "--prompt", PROMPT, *SMALL, "--out", tmp_path) == 1
    assert "disk is full" in one_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


@pytest.mark.parametrize("options", [(), ("--overwrite",)])
def test_a_folder_that_has_a_results_name_stays(fake, tmp_path, capsys, options):
    """With everything in it, also where earlier results may be replaced."""
    for name, command in (("lake.mp4", "generate"), ("native.mp4", "compare")):
        kept = tmp_path / name / "kept.txt"
        kept.parent.mkdir()
        kept.write_text("mine")
        out = tmp_path / name if command == "generate" else tmp_path
        assert ultragen(command, "--prompt", PROMPT, *SMALL, "--out", out, *options) == 1
        assert f"{name} is a folder" in one_line(capsys)
        assert kept.read_text() == "mine"
    assert fake.native.calls == []


def test_errors_of_ours_keep_their_traceback():
    def broken():
        raise TypeError("a mistake")

    with pytest.raises(TypeError):
        console.run(broken)


def test_stopping_leaves_nothing(tmp_path, monkeypatch, capsys):
    made = fake_models()

    def interrupted(*arguments, **settings):
        raise KeyboardInterrupt

    made.native.decode_stream = interrupted
    monkeypatch.setattr(loading, "load_models", lambda name=None: made)
    out = tmp_path / "run"
    assert ultragen("compare", "--prompt", PROMPT, *SMALL, "--out", out) == 130
    assert "Stopped" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_control_c_ends_a_process(tmp_path):
    """A real signal, as a terminal sends it, while scenes are written."""
    out = tmp_path / "scenes"
    command = ("scenes", "--count", "1000", "--resolution", "64x48", "--out", str(out))
    process = subprocess.Popen(
        [sys.executable, "-m", "ultragen", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # As in a terminal, even where the tests run in the background, which ignores the signal.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not list(out.glob(".unfinished-*/*.mp4")) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Stopped" in said and "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_control_c_within_code_from_a_string_ends_like_any_other(tmp_path):
    """The libraries run such code while they are imported."""
    (tmp_path / "interrupted.py").write_text(
        "from ultragen import cli\n"
        "from ultragen.cli import entry\n"
        "entry.app = lambda *arguments, **options: exec('raise KeyboardInterrupt')\n"
        "cli.main()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "interrupted", "scenes"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (130, "ultragen: Stopped.\n")
