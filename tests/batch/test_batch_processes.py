"""Several processes share the prompts of a file, as the documentation starts them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ultragen
from paths import ROOT

FAST = ("--model", "model", "--frames", "5", "--steps", "1", "--guidance", "1")


def shown() -> list[str]:
    """The words of the documentation's command."""
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    [line] = re.findall(r"^accelerate launch .* batch .*$", text, re.MULTILINE)
    return shlex.split(line)


@pytest.mark.slow
def test_many_prompts_give_the_same_clips_for_any_number_of_processes(folder, capsys):
    """One process is this one."""
    Path("prompts.txt").write_text("a calm lake\n\na calm lake\ndunes at noon\n")
    accelerate, launch, option, count, *command = shown()
    assert (accelerate, launch, option) == ("accelerate", "launch", "--num_processes")
    assert command[:4] == ["-m", "ultragen", "batch", "prompts.txt"]
    assert ultragen(*command[2:], *FAST, "--out", "one") == 0
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    two = subprocess.run(
        [*start, count, *command, *FAST, "--out", "two"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert two.returncode == 0, two.stderr
    for printed in (capsys.readouterr().out, two.stdout):
        assert printed.count("00002 made") == 1
        assert printed.count("Written: 3 of 3 clips") == 1
    files = [
        {path.name: path.read_bytes() for path in Path(out).iterdir() if path.suffix != ".json"}
        for out in ("one", "two")
    ]
    assert set(files[0]) == {"00000.mp4", "00001.mp4", "00002.mp4", "metadata.jsonl"}
    assert files[0] == files[1]
    # The same prompt, but another seed.
    assert files[0]["00000.mp4"] != files[0]["00001.mp4"]
